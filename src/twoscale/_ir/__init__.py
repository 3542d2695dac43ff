"""Float graphs and integer networks: their operators, the arithmetic, the bounds, and the NumPy reference."""
