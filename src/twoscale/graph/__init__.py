"""FloatGraph: typed nodes with NumPy weights (nodes), made from nn.Module (capture), folded, and run (evaluate)."""
