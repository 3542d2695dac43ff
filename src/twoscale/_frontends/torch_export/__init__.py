"""nn.Module to FloatGraph, through torch.export."""
