"""Networks and their verification as tables, for terminals and notebooks."""
