"""What the ranks of a launch measure."""
