"""The quantization lab: train, look, quantize step by step, verify, and a page with every picture."""

from __future__ import annotations

from twoscale._lab.run import LabConfig, run_lab

__all__ = ["LabConfig", "run_lab"]
