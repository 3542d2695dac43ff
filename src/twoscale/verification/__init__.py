"""Verification: equal bits in every executor, accuracy, and noise against the float network."""

from twoscale.verification.comparison import SignalToNoise, accuracy, labelled, verify

__all__ = ["SignalToNoise", "accuracy", "labelled", "verify"]
