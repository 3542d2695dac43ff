"""A float network in a file as a module of torch, for whatever takes a trained model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from twoscale._ir.float_graph import FloatGraph
from twoscale._ir.float_module import GraphModule
from twoscale.errors import ConfigurationError

__all__ = ["FileModule", "graph"]


class FileModule(nn.Module):
    """A trained network in a file: images (N, C, H, W), or several inputs, to its first output, on the CPU.

    Its constants are buffers, so that :func:`twoscale._ir.weights_hash.weights_hash` covers them.

    Args:
        path: the file.
        constants: in the file.
        input_count: number of inputs.
    """

    weights_form: str
    """Names of constants in a file are not those of the model that was exported; this names the kind of file."""

    def __init__(self, path: Path, constants: Iterable[NDArray[Any]], input_count: int) -> None:
        super().__init__()
        self.path = path
        for index, constant in enumerate(constants):
            self.register_buffer(f"constant_{index}", torch.from_numpy(np.array(constant)))
        self.input_count = input_count
        self._runners: dict[tuple[tuple[int, ...], ...], GraphModule] = {}
        self.eval()

    @abstractmethod
    def graph(self, example_nchw: Any, name: str | None = None) -> FloatGraph:
        """Return the graph for images of the example's shape."""

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Compute the first output; of a classifier the logits."""
        shapes = tuple(tuple(part.shape[1:]) for part in inputs)
        if shapes not in self._runners:
            self._runners[shapes] = GraphModule(self.graph(inputs if len(inputs) > 1 else inputs[0]))
        runner = self._runners[shapes]
        return runner(torch.cat([part.flatten(1) for part in inputs], 1) if len(inputs) > 1 else inputs[0])

    def train(self, mode: bool = True) -> FileModule:
        """Refuse to be trained.

        Raises:
            ConfigurationError: ``mode`` is true.
        """
        if mode:
            raise ConfigurationError(
                f"{self.path} is a trained network, which cannot be trained; train the model's class"
            )
        super().train(False)
        return self

    def _get_name(self) -> str:
        return self.path.stem


def graph(module: FileModule, example_nchw: Any, *, name: str | None = None) -> FloatGraph:
    """Return the module's graph; see :meth:`FileModule.graph`."""
    return module.graph(example_nchw, name)
