"""Accuracy of the steps between the float and the integer network, on the same test images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from twoscale._ir.float_module import GraphModule
from twoscale._lab.records import StageResult
from twoscale._metrics import SignalToNoise

if TYPE_CHECKING:
    from twoscale._ir.float_graph import FloatGraph
    from twoscale._ir.integer_network import IntegerNetwork

__all__ = ["Judge", "Score"]


@dataclass(frozen=True)
class Score:
    """Logits compared with the labels and with the float network."""

    samples: int
    top1: float
    """Fraction correct, 0..1."""
    agreement: float
    """Fraction with the float network's class, 0..1."""
    sqnr_db: float | None
    """Logit signal to noise against the float network, dB."""


class Judge:
    """Scores logits on the test set.

    Args:
        graph: the float network to compare with.
        batches: (images, labels) of the test set.
    """

    def __init__(self, graph: FloatGraph, batches: list[tuple[NDArray[Any], NDArray[np.uint8]]]) -> None:
        self.graph = graph
        self.batches = batches
        self.labels = np.concatenate([labels for _, labels in batches])
        self.float_logits = self.run(GraphModule(graph))

    def head(self, count: int) -> Judge:
        """Return a judge of the first ``count`` images, or of all if there are fewer."""
        kept: list[tuple[NDArray[Any], NDArray[np.uint8]]] = []
        for images, labels in self.batches:
            if count > 0:
                kept.append((images[:count], labels[:count]))
            count -= len(labels)
        return Judge(self.graph, kept)

    def run(self, function: Callable[[torch.Tensor], torch.Tensor]) -> NDArray[np.float32]:
        """Return the logits of all test images."""
        with torch.no_grad():
            return np.concatenate([function(torch.from_numpy(images)).numpy() for images, _ in self.batches])

    def run_integers(self, network: IntegerNetwork) -> NDArray[np.float32]:
        """Return the logits of an integer network for all test images."""
        from twoscale._runtimes import create

        executor = create("torch", network)
        return np.concatenate([network.logits(executor.run(images)[network.output]) for images, _ in self.batches])

    def score(self, logits: NDArray[np.float32]) -> Score:
        """Compare logits with the labels and with the float network."""
        noise = SignalToNoise()
        noise.update(self.float_logits, logits)
        predicted = logits.argmax(1)
        return Score(
            samples=len(self.labels),
            top1=float((predicted == self.labels).mean()),
            agreement=float((predicted == self.float_logits.argmax(1)).mean()),
            sqnr_db=noise.db,
        )

    def stage(
        self, scheme: str, key: str, title: str, logits: NDArray[np.float32], note: str = "", *, in_units: bool = True
    ) -> StageResult:
        """Return the row of a step whose logits these are.

        Args:
            scheme: name of the scheme, or "float".
            key: of the stage.
            title: for display.
            logits: (N, classes).
            note: one sentence, where the row has a lesson.
            in_units: whether the logits are in the float network's units; otherwise only classes are compared.
        """
        score, is_float = self.score(logits), key == "float"
        return StageResult(
            network=self.graph.name,
            scheme=scheme,
            stage=key,
            title=title,
            samples=score.samples,
            top1=score.top1,
            agreement=None if is_float else score.agreement,
            sqnr_db=score.sqnr_db if in_units and not is_float else None,
            note=note,
        )
