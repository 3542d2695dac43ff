"""A float ONNX file as a module of torch, for whatever takes a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import numpy_helper
from torch import nn

from twoscale._frontends.onnx_float import graph_of, opened
from twoscale._ir.float_graph import FloatGraph
from twoscale._ir.float_module import GraphModule
from twoscale.errors import ConfigurationError

__all__ = ["OnnxModule", "graph"]


class OnnxModule(nn.Module):
    """A trained network in a float ONNX file: images (N, C, H, W), or several inputs, to its first output, on the CPU.

    Its constants are buffers, so that :func:`twoscale._ir.weights_hash.weights_hash` covers them.

    Args:
        path: the file. It is read once.

    Raises:
        NetworkFileError: it is missing, damaged, ambiguous or not a float network.
    """

    weights_form = "onnx"
    """Their names are not those of the model that was exported."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._model = opened(path)
        constants = [*self._model.graph.initializer]
        constants += [
            attribute.t for node in self._model.graph.node for attribute in node.attribute if attribute.HasField("t")
        ]
        for index, constant in enumerate(constants):
            self.register_buffer(f"constant_{index}", torch.from_numpy(np.array(numpy_helper.to_array(constant))))
        initialized = {constant.name for constant in self._model.graph.initializer}
        self.input_count = sum(value.name not in initialized for value in self._model.graph.input)
        """Number of inputs."""
        self._runners: dict[tuple[tuple[int, ...], ...], GraphModule] = {}
        self.eval()

    def graph(self, example_nchw: Any, name: str | None = None) -> FloatGraph:
        """Return the graph for images of the example's shape; errors as of ``onnx_float.graph_of``."""
        return graph_of(self.path, self._model, example_nchw, name=name)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Compute the first output; of a classifier the logits."""
        shapes = tuple(tuple(part.shape[1:]) for part in inputs)
        if shapes not in self._runners:
            self._runners[shapes] = GraphModule(self.graph(inputs if len(inputs) > 1 else inputs[0]))
        runner = self._runners[shapes]
        return runner(torch.cat([part.flatten(1) for part in inputs], 1) if len(inputs) > 1 else inputs[0])

    def train(self, mode: bool = True) -> OnnxModule:
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


def graph(module: OnnxModule, example_nchw: Any, *, name: str | None = None) -> FloatGraph:
    """Return the module's graph; see :meth:`OnnxModule.graph`."""
    return module.graph(example_nchw, name)
