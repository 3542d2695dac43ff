"""The memory plan: nothing overlaps, nothing is read after it was overwritten, and little is wasted."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, event, given, reject
from hypothesis import strategies as st

from tests.codegen.compiling import every_kernel
from tests.integer_networks import random_network
from twoscale._codegen.c.common.memory import Buffer, plan_memory
from twoscale._codegen.c.portable.lowering import Program, lower
from twoscale._ir import layers as n
from twoscale._ir.integer_network import IntegerNetwork
from twoscale.errors import QuantizationError

buffers = st.lists(
    st.builds(lambda size, first, length: Buffer(size, first, first + length),
              st.integers(1, 50), st.integers(0, 12), st.integers(0, 6)),
    max_size=14,
)  # fmt: skip


@given(buffers)
def test_buffers_that_meet_do_not_overlap(found: list[Buffer]) -> None:
    plan = plan_memory(found)
    placed = list(zip(found, plan.offsets, strict=True))
    for i, (a, start_a) in enumerate(placed):
        assert 0 <= start_a <= plan.size - a.size
        for b, start_b in placed[:i]:
            if a.meets(b):
                assert start_a + a.size <= start_b or start_b + b.size <= start_a
    assert plan.size >= plan.bound
    assert plan.size <= sum(b.size for b in found)


def test_a_gap_between_others_is_used() -> None:
    plan = plan_memory([Buffer(10, 0, 9), Buffer(6, 0, 1), Buffer(8, 0, 9), Buffer(6, 2, 3), Buffer(5, 4, 9)])
    assert plan.size == plan.bound == 24


def test_no_buffers_need_no_memory() -> None:
    assert plan_memory([]).size == 0


def assert_safe(program: Program) -> None:
    """Track the last writer of each byte: a tensor that is read must be complete, in place or not.

    This is independent of lifetimes and only goes through the calls in order.
    """
    most = max(place.offset + program.tensors[name].size for name, place in program.places.items())
    owner = {where: np.full(most, -1) for where in ("arena", "output", "image")}
    numbers = {name: number for number, name in enumerate(program.tensors)}

    def span(name: str) -> tuple[str, slice]:
        place = program.places[name]
        return place.where, slice(place.offset, place.offset + program.tensors[name].size)

    for step in program.steps:
        name = step.layer.name
        for call in step.calls:
            *sources, target = call.operands
            if call.kernel.name in ("memcpy", "memset"):
                target, sources = sources[0] if sources else target, [target] if sources else []
            for source in sources:
                where, bytes_ = span(source.tensor)
                assert (owner[where][bytes_] == numbers[source.tensor]).all(), (name, source.tensor)
            where, bytes_ = span(target.tensor)
            assert where != "image" or step.index == 0
            owner[where][bytes_] = numbers[target.tensor]
        where, bytes_ = span(name)
        if step.view_of is not None:
            assert span(step.view_of) == (where, bytes_)
            assert (owner[where][bytes_] == numbers[step.view_of]).all()
            # From here on the bytes have both names.
            numbers[name] = numbers[step.view_of]
        elif step.index == 0 and not step.calls:
            owner[where][bytes_] = numbers[name]
        assert where != "arena" or bytes_.stop <= program.arena_bytes
    where, bytes_ = span(program.network.output)
    assert where == "output"
    assert (owner[where][bytes_] == numbers[program.network.output]).all()


@pytest.mark.parametrize("seed", range(60))
def test_random_networks_never_read_what_was_written_over(seed: int) -> None:
    network = random_network(np.random.default_rng(seed), length=20, dtype=None if seed % 3 else "mixed")
    program = lower(network)
    assert_safe(program)
    assert program.plan.size == program.plan.bound  # true for these networks; the bound cannot always be reached


def image(shape: tuple[int, int, int]) -> n.QuantizeInput:
    return n.QuantizeInput(name="image", inputs=(), output=n.TensorSpec(shape, "uint8", 0.1, 0, 0, 255))


def conv(name: str, inputs: tuple[str, ...], shape: tuple[int, int, int], channels: int, kernel: int = 3) -> n.Conv2d:
    joins = len(inputs) == 2
    shift = 14 if joins else 16
    return n.Conv2d(
        name=name, inputs=inputs, output=n.TensorSpec(shape, "uint8", 0.1, 0, 0, 255),
        multiplier=n.Multiplier.on_grid(np.array([100]), shift),
        weight=np.ones((shape[0], channels, kernel, kernel), np.int8), bias_o=np.zeros(shape[0], np.int32),
        padding=(kernel // 2,) * 4, residual_multiplier=n.Multiplier.on_grid(np.array([200]), 14) if joins else None,
    )  # fmt: skip


def finished(*layers: n.Layer) -> IntegerNetwork:
    """Return a network of these layers, a flatten and a linear layer."""
    shape = layers[-1].output.shape
    size = int(np.prod(shape))
    flat = n.Reshape(name="flat", inputs=(layers[-1].name,), output=n.TensorSpec((size,), "uint8", 0.1, 0, 0, 255))
    head = n.Linear(
        name="head", inputs=("flat",), output=n.TensorSpec((2,), "int32", 0.1), multiplier=None,
        weight=np.ones((2, size), np.int8), bias_o=np.zeros(2, np.int32),
    )  # fmt: skip
    return IntegerNetwork("made", (*layers, flat, head), ("head",))


def test_a_residual_takes_the_place_of_the_tensor_that_joins() -> None:
    shape = (4, 5, 5)
    program = lower(
        finished(image((3, 5, 5)), conv("a", ("image",), shape, 3), conv("b", ("a",), shape, 4),
                 conv("c", ("b", "a"), shape, 4))
    )  # fmt: skip
    assert program.places["c"] == program.places["a"]
    assert program.arena_bytes == 200


def test_a_convolution_never_writes_over_what_it_reads() -> None:
    shape = (4, 5, 5)
    program = lower(finished(image((3, 5, 5)), conv("a", ("image",), shape, 3), conv("b", ("a", "a"), shape, 4)))
    assert program.places["a"] != program.places["b"]
    assert program.arena_bytes == 200


@pytest.mark.parametrize(
    ("operands", "in_place"), [(("a", "b"), True), (("a", "a"), True), (("image", "image"), False)]
)
def test_an_addition_takes_the_place_of_a_dying_operand(operands: tuple[str, str], in_place: bool) -> None:
    shape = (4, 5, 5)
    one = n.Multiplier.on_grid(np.array([2**14]), 14)
    add = n.Add(
        name="add", inputs=operands, output=n.TensorSpec(shape, "uint8", 0.1, 0, 0, 255), multipliers=(one, one)
    )
    program = lower(finished(image(shape), conv("a", ("image",), shape, 4), conv("b", ("image",), shape, 4), add))
    assert program.places["add"].where == "arena"
    assert (program.places["add"] == program.places[operands[0]]) == in_place


def test_an_operand_that_is_read_again_keeps_its_place() -> None:
    shape = (4, 5, 5)
    program = lower(
        finished(image((3, 5, 5)), conv("a", ("image",), shape, 3), conv("b", ("a",), shape, 4),
                 conv("c", ("b", "a"), shape, 4), conv("d", ("c", "a"), shape, 4))
    )  # fmt: skip
    assert program.places["c"] != program.places["a"] == program.places["d"]
    assert_safe(program)


def overtakes(pool: n.MaxPool2d, height: int, width: int) -> bool:
    """Whether a window reads a pixel that an earlier result has overwritten, found by trying all windows."""
    written = set()
    _, out_h, out_w = pool.output.shape
    for out_row, out_column in product(range(out_h), range(out_w)):
        for ky, kx in product(range(pool.kernel[0]), range(pool.kernel[1])):
            row = out_row * pool.stride[0] - pool.padding[0] + ky * pool.dilation[0]
            column = out_column * pool.stride[1] - pool.padding[1] + kx * pool.dilation[1]
            if 0 <= row < height and 0 <= column < width and row * width + column in written:
                return True
        written.add(out_row * out_w + out_column)
    return False


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@given(pairs, pairs, pairs, st.tuples(*[st.integers(0, 2)] * 4), st.integers(4, 9), st.integers(4, 9))
def test_a_pool_is_in_place_where_windows_run_ahead_of_writing(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    padding: n.Padding,
    height: int,
    width: int,
) -> None:
    size = [
        (length + padding[i] + padding[i + 2] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i, length in enumerate((height, width))
    ]
    assume(min(size) > 0 and size[0] * size[1] <= height * width)
    pool = n.MaxPool2d(
        name="pool", inputs=("a",), output=n.TensorSpec((4, size[0], size[1]), "uint8", 0.1, 0, 0, 255), kernel=kernel,
        stride=stride, padding=padding, dilation=dilation,
    )  # fmt: skip
    try:
        network = finished(image((3, height, width)), conv("a", ("image",), (4, height, width), 3), pool)
    except QuantizationError:  # windows of padding only
        reject()
    program = lower(network)
    assert (program.places["pool"] == program.places["a"]) == (not overtakes(pool, height, width))
    event(f"in place: {program.places['pool'] == program.places['a']}")


def test_flattening_moves_nothing_when_a_linear_layer_follows() -> None:
    program = lower(finished(image((3, 5, 5)), conv("a", ("image",), (4, 5, 5), 3)))
    assert program.steps[2].view_of == "a"
    assert not program.steps[2].calls


def test_the_checker_sees_a_tensor_that_was_written_over() -> None:
    shape = (4, 5, 5)
    network = finished(image((3, 5, 5)), conv("a", ("image",), shape, 3), conv("b", ("a",), shape, 4),
                       conv("c", ("b", "a"), shape, 4))  # fmt: skip
    good = lower(network)
    bad = Program(network, good.tensors, good.steps, {**good.places, "b": good.places["a"]}, good.plan, good.live_bytes)
    with pytest.raises(AssertionError, match="a"):
        assert_safe(bad)


def test_every_process_plans_the_same_memory(tmp_path: Path) -> None:
    """The c executor runs libraries that other processes compiled, in an arena that it sizes itself."""
    every_kernel("uint8").save(tmp_path / "net.onnx")
    program = (
        "import sys; from twoscale._codegen.c import export_c; from twoscale._formats import load\n"
        "net = load(sys.argv[1])\n"
        "for target in ('native', 'small-ram'): export_c(net, sys.argv[2] + target, target=target)"
    )
    for seed in ("1", "2"):  # of string hashes, which determine the order of sets
        command = [sys.executable, "-c", program, str(tmp_path / "net.onnx"), f"{tmp_path}/{seed}-"]
        subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": seed}, check=True)
    for target in ("native", "small-ram"):
        first, second = ({file.name: file.read_text() for file in (tmp_path / f"{s}-{target}").iterdir()} for s in "12")
        assert first == second
