"""Quantization-aware training: the model that is trained is the integer network itself.

Its forward pass gives the integers of every executor, and gradients pass straight through roundings
(``TrainableNetwork``). So the accuracy in training is that of the integer network, and nothing is left to choose after
the last step.
"""

from __future__ import annotations

import dataclasses
import re
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from twoscale._calibration.profile import profile
from twoscale._formats import FORMS, load
from twoscale._ir.float_graph import FloatGraph
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._quantization import Scheme, float_graph, quantize_graph, taking_pixels
from twoscale._quantization.trainable import TrainableNetwork
from twoscale._runtimes.torch import exact_convolutions
from twoscale._search import LearnedRounding
from twoscale._search.learned_rounding import learn_network
from twoscale.data import Dataset, batches
from twoscale.errors import ConfigurationError
from twoscale.training._config import TrainConfig
from twoscale.training._ranks import Ranks

__all__ = ["QuantizedModel", "quantized", "scheme_of"]

_CALIBRATION_IMAGES = 512
_LEARNED_IMAGES = 10_000
"""The most that roundings are learned from."""


def scheme_of(config: TrainConfig) -> Scheme:
    """Return the scheme of a configuration's ``quantize``, such as W4A4.

    Raises:
        ConfigurationError: it is not of that form, or bits are outside 2 to 8.
    """
    match = re.fullmatch(r"[wW](\d+)[aA](\d+)", config.quantize or "")
    if match is None:
        raise ConfigurationError(f"quantize is {config.quantize}; expected bits of weights and activations, e.g. W4A4")
    return Scheme(weight_bits=int(match[1]), activation_bits=int(match[2]), edge_bits=config.edge_bits)


class QuantizedModel(nn.Module):
    """An integer network that takes normalized images, as models in training do.

    Args:
        start: the network that training begins with, as a file.
        graph: the float network that it was made from; its images are pixels 0..255.
        scheme: its bits.
        dataset: gives the normalization.
    """

    def __init__(self, start: bytes, graph: FloatGraph, scheme: Scheme, dataset: Dataset) -> None:
        super().__init__()
        self._graph, self._scheme, self._dataset = graph, scheme, dataset
        self._start = _padded(start, graph)
        self.network = TrainableNetwork(_read(start), graph, scheme)
        shape = (1, -1, 1, 1)
        self._mean, self._std = (torch.tensor(values).reshape(shape) for values in (dataset.mean, dataset.std))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits, float64 (N, classes), of normalized images (N, C, H, W)."""
        # Neither bfloat16 nor TF32 holds the sums of integers.
        with exact_convolutions(images.device):
            found: torch.Tensor = self.network(self._pixels(images))
        return found

    def teacher(self, images: torch.Tensor) -> torch.Tensor:
        """Return the float network's logits of normalized images."""
        found: torch.Tensor = self.network.module(self._pixels(images))
        return found

    def _pixels(self, images: torch.Tensor) -> torch.Tensor:
        mean, std = self._mean.to(images.device), self._std.to(images.device)
        return ((images.float() * std + mean) * 255).round().clamp(0, 255)

    def get_extra_state(self) -> torch.Tensor:
        """Return the network that training began with, for checkpoints."""
        return self._start

    def set_extra_state(self, state: torch.Tensor) -> None:
        """Take up the network that training began with, from a checkpoint."""
        self._start = state
        content = state.numpy().tobytes()
        self.network.rebase(_read(content[8 : 8 + int.from_bytes(content[:8], "little")]))

    def to_network(self) -> IntegerNetwork:
        """Return the integer network of the parameters as they are, which takes pixels."""
        dataset, channels = self._dataset, len(self._dataset.mean)
        origin: dict[str, Any] = {
            "data": dataset.name,
            "mean": [0.0] * channels,
            "std": [1 / 255] * channels,
            "classes": list(dataset.classes),
        }
        if dataset.preprocessing is not None:
            origin["preprocessing"] = msgspec.to_builtins(dataset.preprocessing)
        network = taking_pixels(self.network.to_network(), (dataset.mean, dataset.std))
        return dataclasses.replace(network, metadata={**network.metadata, **origin})


def quantized(model: nn.Module, dataset: Dataset, config: TrainConfig, ranks: Ranks) -> QuantizedModel:
    """Return the integer network of a model, to be trained. All processes begin with that of the first.

    Args:
        model: a float network.
        dataset: its first training images calibrate.
        config: with ``quantize``.
        ranks: this process.

    Raises:
        CaptureError: the model is not a fixed sequence of supported operators.
        ConfigurationError: ``quantize`` is not of the form W4A4.
    """
    scheme = scheme_of(config)
    first = dataset.train.head(_CALIBRATION_IMAGES if config.rounding == "feedback" else _LEARNED_IMAGES)
    images = [part.astype(np.float32) for part, _ in batches(first.images, first.labels, 64)]
    normalization = (dataset.mean, dataset.std)
    graph = float_graph(model.eval(), images[0], scheme, normalization=normalization)

    def start() -> bytes:
        some = images[: _CALIBRATION_IMAGES // 64]
        found = profile(graph, some)
        if config.rounding == "feedback":
            return FORMS["integer"].to_bytes(quantize_graph(graph, found, scheme))
        how = LearnedRounding(seed=config.seed)
        with torch.enable_grad():
            network = learn_network(graph, found, np.concatenate(some), scheme, how, further=_rest(images[len(some) :]))
        return FORMS["integer"].to_bytes(network)

    with torch.no_grad():
        return QuantizedModel(ranks.from_leader(start, bytes), graph, scheme, dataset)


def _rest(images: list[NDArray[np.float32]]) -> NDArray[np.float32] | None:
    return np.concatenate(images) if images else None


def _padded(content: bytes, graph: FloatGraph) -> torch.Tensor:
    """Return a network's file with its length before it, in a size that depends on nothing but the graph.

    A checkpoint is copied into tensors of the same size, and calibration elsewhere may give a file of another length.
    """
    weights = sum(value.size for node in graph for value in vars(node).values() if isinstance(value, np.ndarray))
    size = 2 * weights + 4096 * (len(graph.nodes) + 16)
    assert len(content) + 8 <= size
    return torch.frombuffer(
        bytearray(len(content).to_bytes(8, "little") + content).ljust(size, b"\0"), dtype=torch.uint8
    )


def _read(content: bytes) -> IntegerNetwork:
    with tempfile.TemporaryDirectory(prefix="twoscale-") as folder:
        path = Path(folder, "start.onnx")
        path.write_bytes(content)
        return load(path)
