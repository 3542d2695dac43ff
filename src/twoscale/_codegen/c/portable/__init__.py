"""Portable C99 for microcontrollers: one call per layer, whole tensors."""
