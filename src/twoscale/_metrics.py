"""Metrics of networks, and the labelled batches over which they are computed.

Top-1 and agreement need an output that is a vector of classes, (N, classes). A single value, (N, 1), separates two
classes by its sign: class 1 if it is positive. Other outputs (pictures, heat maps, scores per frame, or vectors whose
batches have real targets) have only SQNR and error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from twoscale._ir.input_layout import InputLayout, parts_of
from twoscale.errors import ConfigurationError

__all__ = [
    "Batch",
    "CountedBatches",
    "NetworkMetrics",
    "OutputMetrics",
    "SignalToNoise",
    "in_batches",
    "labelled",
    "number_of_images",
    "predicted_classes",
]

_BATCH = 100
"""Number of images taken at a time from a plain tensor or array."""


class Batch(NamedTuple):
    """Images with labels or targets, if given."""

    images: NDArray[Any]
    labels: NDArray[np.int64] | None
    """Class of each image, 0 to classes − 1."""
    targets: bool = False
    """Whether the batch has real targets. The outputs are then not classes."""

    def parts(self, size: int) -> Iterator[Batch]:
        """Yield the batch in parts of at most ``size`` images."""
        for start in range(0, len(self.images), size):
            part = slice(start, start + size)
            yield Batch(self.images[part], None if self.labels is None else self.labels[part], self.targets)


class SignalToNoise:
    """Streaming SQNR: 10·log10(Σ reference² / Σ (reference − value)²), in dB."""

    def __init__(self) -> None:
        self.signal = 0.0
        self.noise = 0.0
        self.values = 0

    def update(self, reference: NDArray[Any], value: NDArray[Any]) -> None:
        """Add values, two arrays of the same shape."""
        reference = reference.astype(np.float64, copy=False).ravel()
        error = reference - value.ravel()
        # einsum, since a BLAS dot product starts threads, which costs more than it saves here
        self.signal += float(np.einsum("i,i->", reference, reference))
        self.noise += float(np.einsum("i,i->", error, error))
        self.values += reference.size

    @property
    def db(self) -> float | None:
        """The ratio in dB; None without noise or without signal."""
        if self.noise == 0.0 or self.signal == 0.0:
            return None
        return 10.0 * float(np.log10(self.signal / self.noise))

    @property
    def rms_error(self) -> float | None:
        """Root of the mean squared error, in the unit of the values; None without values."""
        return float(np.sqrt(self.noise / self.values)) if self.values else None


class OutputMetrics:
    """Streaming metrics of one output of a network: top-1, and noise and agreement against another network."""

    def __init__(self) -> None:
        self.noise = SignalToNoise()
        self._samples = self._labels = self._correct = self._compared = self._agreeing = 0
        self._targets = False
        self._signs: set[int] = set()

    def update(self, outputs: NDArray[Any], batch: Batch, reference: NDArray[Any] | None = None) -> None:
        """Add the values of a batch.

        Args:
            outputs: real values, (N, classes), or (N, ...) of any other shape, which have no classes.
            batch: of the outputs.
            reference: outputs of the network to compare with, of the same shape.
        """
        self._samples += len(outputs)
        if outputs.ndim != 2:
            if reference is not None:
                self.noise.update(reference, outputs)
            return
        self._targets |= batch.targets
        predicted = predicted_classes(outputs)
        if batch.labels is not None:
            self._labels += len(batch.labels)
            self._correct += int(np.count_nonzero(predicted == batch.labels))
        if reference is not None:
            expected = predicted_classes(reference)
            self.noise.update(reference, outputs)
            self._compared += len(outputs)
            self._agreeing += int(np.count_nonzero(expected == predicted))
            if outputs.shape[1] == 1:
                self._signs.update(np.unique(expected).tolist())

    @property
    def top1(self) -> float | None:
        """Fraction of the labelled images whose class is right; None without labels, or if outputs are not classes."""
        return self._correct / self._labels if self._labels and not self._targets else None

    @property
    def agreement(self) -> float | None:
        """Fraction of images with the reference's class.

        None without a reference, if outputs are not classes, or if the reference has one output that is never (or
        always) positive. It then separates nothing, and agreement would mean nothing.
        """
        if not self._compared or self._targets or len(self._signs) == 1:
            return None
        return self._agreeing / self._compared


class NetworkMetrics:
    """Streaming metrics of all outputs of a network.

    Args:
        outputs: their names.
        class_output: the output that labels belong to; None if no output is a vector.
    """

    def __init__(self, outputs: Sequence[str], class_output: str | None) -> None:
        self.of = {name: OutputMetrics() for name in outputs}
        """By the name of the output."""
        self._class_output = class_output

    def update(
        self, outputs: Mapping[str, NDArray[Any]], batch: Batch, reference: Mapping[str, NDArray[Any]] | None = None
    ) -> None:
        """Add a batch.

        Args:
            outputs: real values of each output, (N, ...).
            batch: of the outputs. Labels belong to the output of classes.
            reference: values of the network to compare with, of the same names and shapes.
        """
        for name, metrics in self.of.items():
            own = batch if name == self._class_output else Batch(batch.images, None, batch.targets)
            metrics.update(outputs[name], own, None if reference is None else reference[name])

    @property
    def top1(self) -> float | None:
        """Top-1 of the output of classes; None without one."""
        return None if self._class_output is None else self.of[self._class_output].top1

    @property
    def agreement(self) -> float | None:
        """Agreement of the output of classes; None without one."""
        return None if self._class_output is None else self.of[self._class_output].agreement

    @property
    def power(self) -> tuple[float, float]:
        """Mean power of the reference and of the error, per value.

        Several outputs may have different units, so each is divided by the power of its reference first: the result is
        (1, mean over the outputs of noise / signal).
        """
        noises = [metrics.noise for metrics in self.of.values()]
        if len(noises) == 1:
            values = max(noises[0].values, 1)
            return noises[0].signal / values, noises[0].noise / values
        shares = [noise.noise / noise.signal for noise in noises if noise.signal]
        return (1.0, sum(shares) / len(shares)) if shares else (0.0, 0.0)

    @property
    def sqnr_db(self) -> float | None:
        """SQNR of the output, or of all outputs together by ``power``, in dB; None without noise or without signal."""
        if len(self.of) == 1:
            return next(iter(self.of.values())).noise.db
        signal, noise = self.power
        return 10.0 * float(np.log10(signal / noise)) if signal and noise else None

    @property
    def rms_error(self) -> float | None:
        """Root of the mean squared error, in the unit of the output; None for several outputs or without values."""
        noises = [metrics.noise for metrics in self.of.values()]
        return noises[0].rms_error if len(noises) == 1 else None


def predicted_classes(outputs: NDArray[Any]) -> NDArray[np.int64]:
    """Return the class of each image, (N,): that of the largest output, or for one output, 1 if it is positive, else
    0."""
    if outputs.shape[1] == 1:
        return (outputs[:, 0] > 0).astype(np.int64)
    largest: NDArray[np.int64] = outputs.argmax(1)
    return largest


def labelled(batches: Iterable[Any], outputs: int | None, layout: InputLayout | None = None) -> Iterator[Batch]:
    """Yield batches from tensors, arrays, or tuples (images, labels, …); empty batches are left out.

    Args:
        batches: as above; or one tensor or array of images (N, C, H, W). For several inputs tuples (a, b),
            (a, b, labels, …) or ((a, b), labels, …).
        outputs: number of classes of the network. With one, labels are 0 and 1, of any type and also of shape (N, 1).
            None if no output is a vector of classes: labels and targets are then ignored.
        layout: of the network's inputs; by default there is one.

    Raises:
        ConfigurationError: fewer arrays than inputs, inputs of another shape, images of uint8 pixels, or labels that
            are neither one class index per image nor real targets (N, outputs).
    """
    for index, batch in enumerate(in_batches(batches)):
        inputs, rest = _inputs_of(batch, index, layout)
        arrays = [_array(part) for part in inputs]
        if any(array.dtype == np.uint8 for array in arrays):
            raise ConfigurationError(
                f"batch {index} holds uint8 pixels; expected the normalized float images the network takes"
            )
        images = _joined(arrays, index, layout)
        labels = None if not rest or rest[0] is None else _array(rest[0])
        if labels is None or outputs is None:
            found = Batch(images, None)
        elif outputs == 1:
            found = _binary(images, labels, index)
        else:
            found = _several(images, labels, index, outputs)
        if images.shape[:1] != (0,):
            yield found


def _inputs_of(batch: Any, index: int, layout: InputLayout | None) -> tuple[list[Any], list[Any]]:
    """Return the inputs in a batch, and what comes after them."""
    found = parts_of(batch, 1 if layout is None else len(layout.shapes))
    if found is None:
        assert layout is not None
        raise ConfigurationError(
            f"batch {index} is a tuple of {len(batch)}; expected the inputs {layout.text()}, and labels after them"
        )
    return found


def _joined(arrays: list[NDArray[Any]], index: int, layout: InputLayout | None) -> NDArray[Any]:
    """Return the inputs of a batch as one array."""
    if layout is None or len(arrays) == 1:
        return arrays[0]
    fits = all(array.shape[1:] == shape for array, shape in zip(arrays, layout.shapes, strict=True))
    if not fits or len({len(array) for array in arrays}) > 1:
        raise ConfigurationError(
            f"batch {index} has inputs {' and '.join(str(array.shape) for array in arrays)}; expected {layout.text()}"
        )
    return layout.joined(arrays)


def _binary(images: NDArray[Any], labels: NDArray[Any], index: int) -> Batch:
    if labels.shape == (*images.shape[:1], 1):
        labels = labels[:, 0]
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "biuf":
        raise ConfigurationError(
            f"batch {index} has images {images.shape} with labels {labels.dtype}{labels.shape}; "
            "expected 0 or 1 for each image, or real targets"
        )
    if np.isin(labels, (0, 1)).all():
        return Batch(images, labels.astype(np.int64))
    if labels.dtype.kind == "f":
        return Batch(images, None, targets=True)
    wrong = labels[~np.isin(labels, (0, 1))][0]
    raise ConfigurationError(f"batch {index} has the label {wrong}; a network with one output has the classes 0 and 1")


def _several(images: NDArray[Any], labels: NDArray[Any], index: int, outputs: int) -> Batch:
    if labels.dtype.kind == "f" and labels.shape == (*images.shape[:1], outputs) and not _is_one_hot(labels):
        return Batch(images, None, targets=True)
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise ConfigurationError(
            f"batch {index} has images {images.shape} with labels {labels.dtype}{labels.shape}; "
            "expected one class index for each image"
        )
    outside = labels[(labels < 0) | (labels >= outputs)]
    if outside.size:
        raise ConfigurationError(
            f"batch {index} has the label {outside[0]}; the network has {outputs} classes, 0 to {outputs - 1}"
        )
    return Batch(images, labels.astype(np.int64))


def _is_one_hot(labels: NDArray[Any]) -> bool:
    return bool(np.isin(labels, (0, 1)).all() and (labels.sum(1) == 1).all())


def in_batches(batches: Iterable[Any]) -> Iterable[Any]:
    """Return a plain tensor or array, (N, C, H, W), (N, C, L) or (N, F), in batches, anything else as it is."""
    if getattr(batches, "ndim", 0) in (2, 3, 4):
        whole: Any = batches
        return (whole[start : start + _BATCH] for start in range(0, len(whole), _BATCH))
    return batches


@dataclass(frozen=True)
class CountedBatches:
    """Batches whose number of images is known, so that progress can show the time left."""

    batches: Iterable[Any]
    images: int

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def number_of_images(batches: Iterable[Any]) -> int | None:
    """Return the number of images in a tensor or array, or in a list of batches; None if it is not known."""
    if isinstance(batches, CountedBatches):
        return batches.images
    if getattr(batches, "ndim", 0) in (2, 3, 4):
        return len(batches)  # type: ignore[arg-type]
    if not isinstance(batches, list | tuple):
        return None
    images = [_first(_first(batch)) for batch in batches]
    shapes = [tuple(getattr(part, "shape", ())) for part in images]
    return sum(shape[0] for shape in shapes) if all(shapes) else None


def _first(batch: Any) -> Any:
    return batch[0] if isinstance(batch, tuple | list) and len(batch) else batch


def _array(value: Any) -> NDArray[Any]:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value  # NumPy has no bfloat16
    return np.asarray(value)
