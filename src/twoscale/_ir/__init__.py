"""What networks are: float graphs, integer networks, what their operators compute, and the bounds that prove it."""
