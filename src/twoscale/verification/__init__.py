"""Verification: equal bits in every executor, accuracy, and noise against the float network."""

from twoscale.metrics import SignalToNoise, labelled
from twoscale.verification.comparison import accuracy, verify

__all__ = ["SignalToNoise", "accuracy", "labelled", "verify"]
