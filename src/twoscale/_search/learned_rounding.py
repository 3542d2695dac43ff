"""Learned rounding: weights, biases and scales chosen for the least error of whole blocks, and of the whole network.

Rounding each weight to the nearest integer minimizes the error of the weight, not that of the network. Here the network
is cut into blocks, where a single tensor connects what comes before with what follows. One block after the other, Adam
minimizes the squared error of the block's output against the float network's, over images without labels: of all layers
of the block at once (Li et al., "BRECQ", 2021), from inputs of which a random half are the float network's, and with a
random half of the activations not rounded (Wei et al., "QDrop", 2022). Then all layers are learned together, for the
least error of the logits. This part learns from more images than the blocks, whose tensors take memory, and sees them
mirrored and shifted where that does not change what the float network sees in them.

It begins where error feedback ends, and gradients pass roundings straight through. Learning for every weight whether it
goes up or down (Nagel et al., "AdaRound", 2020) took three times as many iterations to the same error.

The forward pass is that of the integer network (``TrainableNetwork``), so that clamps, rounding and the grid of
multipliers are part of what is learned, and the integers over held-out images decide what is kept.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from twoscale._calibration.memory import DEFAULT_MEMORY, images_within
from twoscale._calibration.profile import Profile, image_batches
from twoscale._ir import float_graph as g
from twoscale._ir import layers as n
from twoscale._ir.float_module import GraphModule
from twoscale._ir.integer_network import IntegerNetwork
from twoscale._ir.interpreter import interpret
from twoscale._progress import report
from twoscale._quantization.pipeline import quantize_graph
from twoscale._quantization.scheme import Scheme
from twoscale._quantization.straight_through import Masks
from twoscale._quantization.trainable import TrainableNetwork, TrainableWeights
from twoscale._runtimes.torch import TorchExecutor
from twoscale._search.blocks import Block, blocks_of
from twoscale._search.learning import LearnedRounding, Reach
from twoscale.errors import CalibrationError, ConfigurationError

__all__ = ["learn_network", "within"]

_CHUNK = 100
"""Images computed at a time outside of learning."""

_BESIDES = 1.5
"""What a step takes as a multiple of a forward and a backward pass: the float network and Adam are beside."""

_SEEN = 0.9
"""The least share of varied images in which the float network sees what it saw."""

_HELD_OUT = 8
"""One image in so many decides what is kept, and is not learned from."""


def learn_network(
    graph: g.FloatGraph,
    found: Profile,
    images: NDArray[np.float32],
    scheme: Scheme,
    how: LearnedRounding,
    *,
    further: NDArray[np.float32] | None = None,
    memory: int = DEFAULT_MEMORY,
    announce: Callable[[float], None] = lambda seconds: None,
) -> IntegerNetwork:
    """Make the integer network of a graph with learned roundings.

    Args:
        graph: from ``float_graph`` with the same scheme, with one input and one output.
        found: its profile.
        images: as the graph takes them, float32 (N, C, H, W), at least 16. Labels are not needed. The same images and
            number of threads give the same network.
        scheme: bits and ranges.
        how: iterations and rates.
        further: images that only the whole network learns from, besides ``images``.
        memory: bytes for the tensors at a cut; of ``images`` the first that fit are used.
        announce: called before learning begins with the seconds that it takes at most, as estimated from two steps.

    Returns:
        The learned network, or the one of ``quantize_graph`` where learning gains nothing on held-out images.

    Raises:
        ConfigurationError: several inputs or outputs, fewer than 16 images, or a scheme off the grid.
        QuantizationError: integers would not fit.
    """
    if graph.input_layout.several or len(graph.outputs) > 1:
        raise ConfigurationError(f"{graph.name} has several inputs or outputs; learned rounding takes one of each")
    images = images[: images_within(graph, memory, networks=2)]
    if len(images) < 2 * _HELD_OUT:
        raise ConfigurationError(f"learned rounding has {len(images)} images; expected at least {2 * _HELD_OUT}")
    first = quantize_graph(graph, found, scheme, memory=memory)
    trainable = TrainableNetwork(first, graph, scheme)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(how.seed)
        learner = _Learner(trainable, how, images, images[:0] if further is None else further)
        announce(learner.estimate())
        learner.learn()
    learned = trainable.to_network()
    if not learned.on_grid or learner.error_of(first) <= learner.error_of(learned):
        return first
    return dataclasses.replace(learned, metadata={**learned.metadata, "rounding": dataclasses.asdict(how)})


def within(batches: Iterable[Any], memory: int, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
    """Return the images of the first batches that fit into a number of bytes; None where there are none.

    Args:
        batches: as for ``quantize``.
        memory: bytes.
        shape: of an image.

    Raises:
        CalibrationError: images of another shape, or NaN or infinity among the values.
    """
    parts: list[NDArray[np.float32]] = []
    for part in image_batches(batches):
        memory -= part.nbytes
        if memory < 0:
            break
        if part.shape[1:] != shape or not np.isfinite(part).all():
            raise CalibrationError(
                f"further images {part.shape}; expected finite values of the shape {('N', *shape)} of the others"
            )
        parts.append(part)
    return np.concatenate(parts) if parts else None


class _Learner:
    """The tensors at the cut that learning has reached, in both networks."""

    def __init__(
        self,
        trainable: TrainableNetwork,
        how: LearnedRounding,
        images: NDArray[np.float32],
        further: NDArray[np.float32],
    ) -> None:
        self.trainable, self.how = trainable, how
        self.float = GraphModule(trainable.graph)
        self.blocks = blocks_of(trainable.graph)
        everything = torch.from_numpy(np.concatenate([images, further]))
        if everything.ndim == 4:
            everything = everything.contiguous(memory_format=torch.channels_last)
        self.everything, self.images = everything, everything[: len(images)]
        self.rounds = Masks(1 - how.drop) if how.drop else None
        self.mixes = Masks(how.drop) if how.drop else None
        self.steps = len(self.blocks) * how.iterations + how.distillation
        self.done = 0
        self.held_out = torch.arange(0, len(everything), _HELD_OUT)
        learned = torch.ones(len(everything), dtype=torch.bool)
        learned[self.held_out] = False
        self.learned = torch.nonzero(learned).flatten()
        self.seen = self._float_logits(everything[self.held_out])
        """Of the held-out images."""

    def estimate(self) -> float:
        """Return the seconds that learning takes, from two passes over the whole network, which change nothing."""
        x = self.images[: self.how.batch_size]
        parameters = [one for one in self.trainable.parameters() if one.requires_grad]
        clock = time.perf_counter()
        for attempt in range(3):
            if attempt == 1:
                clock = time.perf_counter()
            torch.autograd.grad(self.trainable(x).sum(), parameters, allow_unused=True)
        each = (time.perf_counter() - clock) / 2
        return each * (self.how.iterations + self.how.distillation) * _BESIDES

    def learn(self) -> None:
        """Learn all blocks and then, unless none of them gained anything, the whole network."""
        source = self.trainable.network.input
        self.real = self.images
        with torch.no_grad():
            self.integer = torch.cat(
                [
                    self.trainable.executor.compute(source, [part]).to(torch.uint8)
                    for part in torch.split(self.images, _CHUNK)
                ]
            )
        gains = [self._learn_block(block) for block in self.blocks]
        if not any(gains):
            report("nothing to learn", self.steps, self.steps)
        elif self.how.distillation:
            self._distill()

    def error_of(self, network: IntegerNetwork) -> float:
        """Return the mean squared error of a network's logits over the held-out images."""
        executor = TorchExecutor(network)
        parts = [
            network.logits(executor.run(part.contiguous().numpy(), {network.output})[network.output])
            for part in torch.split(self.everything[self.held_out], _CHUNK)
        ]
        return float((torch.from_numpy(np.concatenate(parts)) - self.seen).square().mean())

    def _step(self, what: str) -> None:
        self.done += 1
        report(what, self.done, self.steps)

    def _batch(self, among: torch.Tensor) -> torch.Tensor:
        """Draw the images of a step."""
        return among[torch.randint(0, len(among), (min(self.how.batch_size, len(among)),))]

    def _learn_block(self, block: Block) -> bool:
        """Learn a block and go on to its output. Returns whether it gained anything."""
        trainable = self.trainable
        layers = [trainable.network[name] for name in block.names]
        weights = [trainable.of(layer.name) for layer in layers if isinstance(layer, n.Accumulating)]
        target, gains = self._float_output(block), False
        if weights:
            before, kept = self._held_out_error(block, layers, target), trainable.state()
            self._optimize(block, layers, weights, target)
            gains = self._held_out_error(block, layers, target) < before
            if not gains:
                trainable.restore(kept)
        self.integer, self.real = self._integer_output(block, layers), target
        return gains

    def _optimize(
        self, block: Block, layers: Sequence[n.Layer], weights: Sequence[TrainableWeights], target: torch.Tensor
    ) -> None:
        trainable, how = self.trainable, self.how
        name, among = block.names[-1], self.learned[self.learned < len(self.images)]

        def loss() -> torch.Tensor:
            chosen = self._batch(among)
            x = self.integer[chosen].float()
            if self.mixes is not None:
                x.lerp_(trainable.steps(block.source, self.real[chosen]), self.mixes.like(x))
            y = trainable.run(layers, {block.source: x}, [name], self.rounds)[name]
            return (trainable.real(name, y) - target[chosen]).square().sum(1).mean()

        optimizer = self._optimizer(weights, block.names, how.iterations, how.block_reach)
        self._minimize(loss, optimizer, how.iterations, "learning blocks")

    def _minimize(
        self, loss: Callable[[], torch.Tensor], optimizer: torch.optim.Adam, iterations: int, what: str
    ) -> None:
        """Take steps with rates that fade by a cosine."""
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        for iteration in range(iterations):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * iteration / iterations))
            optimizer.zero_grad()
            loss().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            self._step(what)

    def _optimizer(
        self, weights: Sequence[TrainableWeights], names: Sequence[str], iterations: int, reach: Reach
    ) -> torch.optim.Adam:
        each = 2 / iterations  # the mean of a rate that fades by a cosine is half of the first
        groups: list[dict[str, Any]] = []
        for one in weights:
            step = float(one.scale.detach().mean())
            products = one.weight[0].numel()
            accumulator = step * float(self.trainable.scale(one.source).detach())
            groups.append({"params": [one.weight], "lr": each * reach.weight * step / one.unit})
            change = reach.bias * accumulator * products**0.5
            groups.append({"params": [one.bias_change], "lr": each * change / one.bias_unit})
            groups.append({"params": [one.log_growth], "lr": each * reach.scale})
        if scales := self.trainable.scales_of(names):
            groups.append({"params": scales, "lr": each * reach.scale})
        return torch.optim.Adam(groups)

    def _distill(self) -> None:
        """Learn everything together for the least error of the logits, and keep it where the integers are better."""
        trainable, how = self.trainable, self.how
        kept, before = trainable.state(), self.error_of(trainable.to_network())
        for one in trainable.all_weights():
            one.recenter()
        power, variations = self.seen.square().mean(), self._variations() if how.vary else []

        def loss() -> torch.Tensor:
            images = self.everything[self._batch(self.learned)]
            for vary in variations:
                images = vary(images)
            with torch.no_grad():
                target = self.float(images)
            error: torch.Tensor = (trainable(images) - target).square().mean() / power
            return error

        names = [layer.name for layer in trainable.network]
        optimizer = self._optimizer(trainable.all_weights(), names, how.distillation, how.network_reach)
        self._minimize(loss, optimizer, how.distillation, "learning the network")
        if self.error_of(trainable.to_network()) >= before:
            trainable.restore(kept)

    def _variations(self) -> list[Callable[[torch.Tensor], torch.Tensor]]:
        """Return the ways to vary images after which the float network sees what it saw, in nearly all held-out ones.

        Mirrored photographs are photographs, but mirrored digits are none: learning them would be at the expense of
        the function that counts.
        """
        if self.images.ndim != 4:
            return []
        seen, images = self.seen.argmax(1), self.everything[self.held_out]

        def share(varied: torch.Tensor) -> float:
            return float((self._float_logits(varied).argmax(1) == seen).float().mean())

        # All are mirrored: where half are, an image in five could change without being noticed.
        shares = {_mirrored: share(_mirrored(images, 1.0)), _shifted: share(_shifted(images))}
        return [vary for vary, same in shares.items() if same >= _SEEN]

    def _float_logits(self, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([self.float(part) for part in torch.split(images, _CHUNK)])

    def _float_output(self, block: Block) -> torch.Tensor:
        nodes = [self.trainable.graph[name] for name in block.names]
        name = block.names[-1]
        with torch.no_grad():
            return torch.cat(
                [
                    interpret(nodes, self.float.compute, [name], {block.source: part})[name]
                    for part in torch.split(self.real, _CHUNK)
                ]
            )

    def _outputs(self, block: Block, layers: Sequence[n.Layer], integers: torch.Tensor) -> Iterator[torch.Tensor]:
        name = block.names[-1]
        with torch.no_grad():
            for part in torch.split(integers, _CHUNK):
                yield self.trainable.run(layers, {block.source: part.float()}, [name])[name]

    def _integer_output(self, block: Block, layers: Sequence[n.Layer]) -> torch.Tensor:
        spec = self.trainable.network.spec(block.names[-1])
        kind = {"uint8": torch.uint8, "int8": torch.int8}.get(spec.dtype, torch.float64)
        return torch.cat([part.to(kind) for part in self._outputs(block, layers, self.integer)])

    def _held_out_error(self, block: Block, layers: Sequence[n.Layer], target: torch.Tensor) -> float:
        """Return the mean squared error of a block's integers over the held-out images."""
        held_out = self.held_out[self.held_out < len(self.images)]
        wanted, total = target[held_out], 0.0
        parts = self._outputs(block, layers, self.integer[held_out])
        for found, part in zip(parts, torch.split(wanted, _CHUNK), strict=True):
            with torch.no_grad():
                real = self.trainable.real(block.names[-1], found.float())
            total += float((real - part).square().sum(dtype=torch.float64))
        return total / wanted.numel()


def _mirrored(images: torch.Tensor, share: float = 0.5) -> torch.Tensor:
    """Mirror a share of the images (N, C, H, W) from left to right, at random."""
    chosen = (torch.rand(len(images)) < share).reshape(-1, 1, 1, 1)
    return torch.where(chosen, images.flip(3), images)


def _shifted(images: torch.Tensor) -> torch.Tensor:
    """Shift each of the images (N, C, H, W) by up to an eighth of its size, at random."""
    height, width = images.shape[2:]
    down, right = height // 8, width // 8
    padded = F.pad(images, (right, right, down, down), mode="reflect")
    shifts = zip(*(torch.randint(0, 2 * most + 1, (len(images),)).tolist() for most in (down, right)), strict=True)
    shifted = [one[:, y : y + height, x : x + width] for one, (y, x) in zip(padded, shifts, strict=True)]
    return torch.stack(shifted).contiguous(memory_format=torch.channels_last)
