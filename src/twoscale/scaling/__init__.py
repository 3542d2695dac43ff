"""Measurements of data-parallel training."""
