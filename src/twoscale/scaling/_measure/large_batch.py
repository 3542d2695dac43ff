"""How large a batch may be: gradient noise, losses at equal epochs and at equal steps, and remedies.

Short runs of SGD with momentum on one device. A remedy is compared with nothing changed at the same seeds: the interval
of the mean difference is Student's, at a confidence that leaves 5% for all remedies together (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from twoscale import data
from twoscale.errors import ConfigurationError
from twoscale.scaling._measure.records import BatchRun, GradientNoise, Interval, LargeBatchRecord, Remedied, Workload
from twoscale.scaling._measure.statistics import summarize
from twoscale.scaling._measure.trials import Images, ImageSet, accuracy, image_sets, mean_loss
from twoscale.scaling._measure.workload import create_model

__all__ = ["REMEDIES", "Remedy", "compare_remedies", "gradient_noise", "measure_large_batch"]

_SEARCH_SEED = 1000
_PARTS = 16
"""Small batches in a large one, where noise is estimated."""
_DRAWS = 24
"""Large batches that are drawn."""
_RESAMPLED = 2000
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Remedy:
    """What is changed at a larger batch."""

    name: str
    factor: Callable[[float], float] = lambda growth: 1.0
    """From the batch's growth to that of the learning rate."""
    warmup: float = 0.0
    """Share of the steps over which the learning rate rises from 0."""
    weight_decay: float = 0.0
    shift: int = 0
    """Added to the seed."""


REMEDIES: tuple[Remedy, ...] = (
    Remedy("rate times the square root of the growth", math.sqrt),
    Remedy("rate times the growth", lambda growth: growth),
    Remedy("rate times the growth with warm-up", lambda growth: growth, warmup=0.3),
    Remedy("weight decay of 0.01", weight_decay=0.01),
    Remedy("other seeds", shift=500),
)
"""Those that are compared; "other seeds" changes nothing that could help, and must not be shown to."""


# ---------------------------------------------------------------- gradient noise


def gradient_noise(
    gradient: Callable[[torch.Tensor], torch.Tensor],
    images: int,
    *,
    small: int,
    parts: int = _PARTS,
    draws: int = _DRAWS,
    epoch: int = 0,
    seed: int = 0,
) -> GradientNoise:
    """Estimate the gradient noise scale.

    Each draw is a large batch of ``parts`` small ones, drawn with replacement. The mean squared norm of the small
    gradients and that of the large one, their mean, give unbiased estimates of ‖G‖² and tr(Σ).

    Args:
        gradient: of the mean loss of the images with these numbers, (B,) int64, as one vector.
        images: how many there are.
        small: images of a small batch.
        parts: at least 2.
        draws: at least 2.
        epoch: is written down.
        seed: of the drawing.

    Raises:
        ConfigurationError: a number outside its range.
    """
    if min(small, images) < 1 or min(parts, draws) < 2:
        raise ConfigurationError(
            f"{images} images, batches of {small}, {parts} parts, {draws} draws: expected at least 1, 1, 2 and 2"
        )
    generator = np.random.default_rng(seed)
    norms = []
    for _ in range(draws):
        chosen = torch.from_numpy(generator.integers(0, images, (parts, small)))
        together: torch.Tensor | None = None
        squares = 0.0
        for part in chosen:
            one = gradient(part).double()
            squares += float(one @ one) / parts
            together = one if together is None else together + one
        assert together is not None
        whole = together / parts
        norms.append((squares, float(whole @ whole)))
    pairs = np.asarray(norms)
    squared, trace = _split(pairs.mean(0), small, parts * small)
    means = pairs[generator.integers(0, draws, (_RESAMPLED, draws))].mean(1)
    resampled = np.asarray([_ratio(*_split(mean, small, parts * small)) for mean in means])
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail], method="nearest")
    scale = _ratio(squared, trace)
    known = math.isfinite(scale)
    return GradientNoise(
        epoch=epoch,
        small=small,
        large=parts * small,
        draws=draws,
        squared_norm=squared,
        trace=trace,
        scale=scale if known else None,
        interval=Interval(float(low), float(high), _CONFIDENCE) if known and math.isfinite(high) else None,
    )


def _split(norms: NDArray[np.float64], small: int, large: int) -> tuple[float, float]:
    """Return ‖G‖² and tr(Σ) from the mean squared norms at two batch sizes."""
    at_small, at_large = (float(value) for value in norms)
    return (large * at_large - small * at_small) / (large - small), (at_small - at_large) / (1 / small - 1 / large)


def _ratio(squared: float, trace: float) -> float:
    return trace / squared if squared > 0 else math.inf


def _gradient(model: nn.Module, images: Images) -> Callable[[torch.Tensor], torch.Tensor]:
    pictures, labels = images
    parameters = [one for one in model.parameters() if one.requires_grad]

    def of(chosen: torch.Tensor) -> torch.Tensor:
        chosen = chosen.to(labels.device)
        loss = F.cross_entropy(model(pictures[chosen]), labels[chosen])
        return torch.cat([one.reshape(-1) for one in torch.autograd.grad(loss, parameters)])

    return of


# ---------------------------------------------------------------- training


@dataclass(frozen=True)
class _End:
    """How a run ended."""

    loss: float | None
    accuracy: float | None


def _batches(count: int, batch_size: int, seed: int, steps: int) -> Iterator[torch.Tensor]:
    """Give the images of each step, epoch by epoch; the last batch of an epoch has what is left."""
    done = epoch = 0
    while True:
        order = torch.from_numpy(data.epoch_order(count, seed=seed, epoch=epoch))
        for chosen in torch.split(order, batch_size):
            if done == steps:
                return
            yield chosen
            done += 1
        epoch += 1


def _steps(count: int, batch_size: int, epochs: int) -> int:
    return epochs * math.ceil(count / batch_size)


def _train(model: nn.Module, images: Images, workload: Workload, rate: float, remedy: Remedy, steps: int) -> None:
    pictures, labels = images
    optimizer = torch.optim.SGD(
        model.parameters(), lr=rate, momentum=workload.momentum, weight_decay=remedy.weight_decay
    )
    rising = max(1, round(remedy.warmup * steps)) if remedy.warmup else 0
    for number, chosen in enumerate(_batches(len(labels), workload.batch_size, workload.seed, steps), 1):
        chosen = chosen.to(labels.device)
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, number / rising) if rising else rate
        F.cross_entropy(model(pictures[chosen]), labels[chosen]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def _run(
    workload: Workload,
    images: ImageSet,
    rate: float,
    steps: int,
    seed: int,
    remedy: Remedy = Remedy(""),
) -> _End:
    seeded = replace(workload, seed=workload.seed + seed + remedy.shift)
    model = create_model(seeded)
    _train(model, images.train, seeded, rate, remedy, steps)
    loss = mean_loss(model, images.train)
    return _End(loss, accuracy(model, images.looked_at)) if math.isfinite(loss) else _End(None, None)


def compare_remedies(
    workload: Workload, images: ImageSet, rate: float, *, epochs: int, seeds: int, growth: float,
    remedies: Sequence[Remedy] = REMEDIES, batches: int = 1, watch: Callable[[str], None] | None = None,
) -> tuple[Remedied, ...]:  # fmt: skip
    """Compare remedies with nothing changed, which comes first.

    Args:
        workload: at the large batch.
        images: to train with, and to test with.
        rate: learning rate of the small batch.
        epochs: of every run.
        seeds: runs of each remedy.
        growth: of the batch, from the small one.
        remedies: that are compared.
        batches: numbers of batches whose comparisons share the 5%.
        watch: is called with what is done now.
    """
    steps = _steps(len(images.train[1]), workload.batch_size, epochs)
    confidence = 1 - (1 - _CONFIDENCE) / max(1, batches * len(remedies))
    found: list[Remedied] = []
    for remedy in (Remedy("nothing changed"), *remedies):
        if watch is not None:
            watch(f"batch {workload.batch_size}, {remedy.name}")
        highest = rate * remedy.factor(growth)
        ends = [_run(workload, images, highest, steps, seed, remedy) for seed in range(seeds)]
        difference = None
        if found and None not in (losses := [end.loss for end in ends]) and None not in found[0].losses:
            pairs = zip(losses, found[0].losses, strict=True)
            difference = summarize([a - b for a, b in pairs if a is not None and b is not None], confidence)
        found.append(
            Remedied(
                workload.batch_size,
                remedy.name,
                highest,
                tuple(end.loss for end in ends),
                tuple(end.accuracy for end in ends),
                difference,
            )
        )
    return tuple(found)


def measure_large_batch(
    workload: Workload,
    batch_sizes: Sequence[int],
    *,
    epochs: int = 3,
    seeds: int = 5,
    draws: int = _DRAWS,
    remedies: Sequence[Remedy] = REMEDIES,
    watch: Callable[[str], None] | None = None,
) -> LargeBatchRecord:
    """Train at several batch sizes, estimate the noise of gradients, and compare remedies at all but the smallest.

    Args:
        workload: model and data.
        batch_sizes: ascending, at least two; the smallest is what others are compared with.
        epochs: of the smallest batch's run.
        seeds: runs of each batch size and remedy, at least 2.
        draws: see :func:`gradient_noise`.
        remedies: that are compared.
        watch: is called with what is done now.

    Raises:
        ConfigurationError: a number outside its range, or images that have nothing to learn.
    """
    sizes = list(batch_sizes)
    if len(sizes) < 2 or sizes != sorted(set(sizes)) or sizes[0] < 1 or epochs < 1 or seeds < 2:
        raise ConfigurationError(
            f"batch sizes {', '.join(map(str, sizes))}, {epochs} epochs, {seeds} seeds: expected at least two "
            "ascending sizes, 1 epoch and 2 seeds"
        )

    def report(what: str) -> None:
        if watch is not None:
            watch(what)

    workload = replace(workload, batch_size=sizes[0], precision="fp32", channels_last=False)
    search, final = image_sets(workload)
    report(f"learning rate at batch {sizes[0]}")
    tried = tuple((rate, _held_out_loss(workload, search, rate, epochs)) for rate in _rates(workload.lr))
    known = [(loss, rate) for rate, loss in tried if math.isfinite(loss)]
    rate = min(known)[1] if known else workload.lr
    noise = _noise(workload, final.train, rate, epochs, draws, report)
    count = len(final.train[1])
    runs = []
    for size in sizes:
        for equal in ("epochs", "steps")[: 1 if size == sizes[0] else 2]:
            report(f"batch {size}, equal {equal}")
            steps = _steps(count, size if equal == "epochs" else sizes[0], epochs)
            ends = [_run(replace(workload, batch_size=size), final, rate, steps, seed) for seed in range(seeds)]
            runs.append(
                BatchRun(size, equal, steps, tuple(end.loss for end in ends), tuple(end.accuracy for end in ends))
            )
    remedied: list[Remedied] = []
    for size in sizes[1:]:
        remedied += compare_remedies(
            replace(workload, batch_size=size), final, rate, epochs=epochs, seeds=seeds, growth=size / sizes[0],
            remedies=remedies, batches=len(sizes) - 1, watch=watch,
        )  # fmt: skip
    return LargeBatchRecord(count, epochs, rate, tried, noise, tuple(runs), tuple(remedied))


def _rates(lr: float) -> tuple[float, ...]:
    return (lr / 2, lr, 2 * lr, 4 * lr)


def _held_out_loss(workload: Workload, search: ImageSet, rate: float, epochs: int) -> float:
    seeded = replace(workload, seed=workload.seed + _SEARCH_SEED)
    model = create_model(seeded)
    steps = _steps(len(search.train[1]), workload.batch_size, epochs)
    _train(model, search.train, seeded, rate, Remedy(""), steps)
    loss = mean_loss(model, search.looked_at)
    return loss if math.isfinite(loss) else math.inf


def _noise(
    workload: Workload, images: Images, rate: float, epochs: int, draws: int, report: Callable[[str], None]
) -> tuple[GradientNoise, ...]:
    """Estimate the noise scale at the initial weights and after each epoch of the small batch's run."""
    model = create_model(workload)
    found = []
    for epoch in range(epochs + 1):
        report(f"gradient noise after {epoch} of {epochs} epochs")
        found.append(
            gradient_noise(
                _gradient(model, images), len(images[1]), small=workload.batch_size, draws=draws, epoch=epoch,
                seed=workload.seed + epoch,
            )
        )  # fmt: skip
        if epoch < epochs:
            seeded = replace(workload, seed=workload.seed + epoch)
            _train(model, images, seeded, rate, Remedy(""), _steps(len(images[1]), workload.batch_size, 1))
    return tuple(found)
