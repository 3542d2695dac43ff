"""The user's thing to a graph or a network: torch.export programs, other tools' ONNX files."""
