"""Train PyTorch image classifiers data-parallel, and turn them into integer-only networks."""

__version__ = "0.1.0"
