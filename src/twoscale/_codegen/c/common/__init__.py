"""What every C target shares: names, memory, constants, self-test, sizes."""
