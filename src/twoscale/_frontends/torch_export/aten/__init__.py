"""ATen operators, as torch.export writes them, to nodes of a FloatGraph."""
