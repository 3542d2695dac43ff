"""Verification: compares the integers of executors, and measures accuracy and noise against the float network."""

from twoscale._metrics import SignalToNoise, labelled
from twoscale._verification.comparison import accuracy, verify

__all__ = ["SignalToNoise", "accuracy", "labelled", "verify"]
