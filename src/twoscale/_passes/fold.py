"""Passes over a FloatGraph that prepare it for integers without changing its function.

Each pass takes a graph and returns a new one. ``fold`` removes all batch norms: each is merged into the convolution
before it or becomes a 1x1 depthwise convolution. Clamps (ReLU, ReLU6) and zero padding are merged into the nodes that
can take them. Averages over uneven windows are merged into the weights after them or split into even ones. Functions of
one value written as several operations (x · sigmoid(x)) become one node.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from twoscale._ir.float_graph import (
    UNBOUNDED,
    Add,
    AveragePool2d,
    Bounded,
    ChannelAffine,
    Clamp,
    Concat,
    Conv2d,
    Elementwise,
    FloatGraph,
    Linear,
    MatMul,
    MaxPool2d,
    Mul,
    Node,
    Pad,
    Reshape,
    Slice,
    Softmax,
    SoftmaxMatMul,
    WindowAverage2d,
    Windows,
    window_weights,
)
from twoscale._passes.absorb_normalization import into_weights
from twoscale._passes.compose import compose

__all__ = ["fold"]


def fold(graph: FloatGraph, *, join_residuals: bool = True) -> FloatGraph:
    """Apply every pass. The result computes the same function up to float32 rounding.

    Args:
        graph: from ``capture``.
        join_residuals: merge additions into the convolution before them if nothing else reads its output. With integers
        this saves one rounding: equation (7b) instead of (3) and (7).
    """
    graph = _with_reshapes_merged(_with_reshapes_moved(graph))
    graph = _merge(graph, _affine_into_producer)
    graph = _merge(graph, _scale_into_consumer)
    graph = _merge(graph, _padding_into_consumer)
    graph = _merge(graph, _clamp_into_producer)
    graph = _with_functions_recognized(_merge(graph, _hardsigmoid))
    graph = _merge(compose(graph), _clamp_into_producer)  # composing removes readers of some values
    graph = _merge(graph, _average_into_average)
    graph = _with_softmax_in_products(graph)
    graph = _with_window_averages_split(_with_window_averages_in_weights(graph))
    graph = _with_large_averages_split(graph)
    graph = into_weights(graph)
    graph = graph.replaced({node.name: _as_depthwise(node) for node in graph if isinstance(node, ChannelAffine)})
    return _with_residuals_joined(graph) if join_residuals else graph


def _with_reshapes_moved(graph: FloatGraph) -> FloatGraph:
    """Exchange each reshape with a function of one value after it, so that the function comes next to what it follows.

    A 1-D convolution is a 2-D one between two reshapes; the ReLU after it can then become part of it.
    """
    nodes: dict[str, Node] = {}
    renamed: dict[str, str] = {}
    for node in graph:
        alone = len(node.inputs) == 1 and len(graph.users[node.inputs[0]]) == 1 and node.inputs[0] not in graph.outputs
        node = _reading(node, renamed)
        if alone and isinstance(node, Clamp | Elementwise) and isinstance(moved := nodes[node.inputs[0]], Reshape):
            del nodes[moved.name]
            nodes[node.name] = dataclasses.replace(node, inputs=moved.inputs, shape=nodes[moved.inputs[0]].shape)
            nodes[moved.name] = dataclasses.replace(moved, inputs=(node.name,))
            renamed[node.name] = moved.name
        else:
            nodes[node.name] = node
    return dataclasses.replace(graph, nodes=tuple(nodes.values()), outputs=_outputs(graph, renamed))


def _with_reshapes_merged(graph: FloatGraph) -> FloatGraph:
    """Replace reshapes of reshapes by one, and leave out those that change nothing."""
    nodes: dict[str, Node] = {}
    same: dict[str, str] = {}
    for node in graph:
        node = _reading(node, same)
        if isinstance(node, Reshape):
            source = nodes[node.inputs[0]]
            while isinstance(source, Reshape) and source.shape != node.shape:
                source = nodes[source.inputs[0]]
            if source.shape == node.shape:
                same[node.name] = source.name
                continue
            node = _reading(node, {node.inputs[0]: source.name})
        nodes[node.name] = node
    outputs = _outputs(graph, same)
    needed = {*outputs, *(node.name for node in graph.inputs)}
    for node in reversed(nodes.values()):
        if node.name in needed:
            needed.update(node.inputs)
    return dataclasses.replace(graph, nodes=tuple(n for n in nodes.values() if n.name in needed), outputs=outputs)


def _with_residuals_joined(graph: FloatGraph) -> FloatGraph:
    """Turn a convolution and an addition into a convolution with a second input. It keeps the convolution's name."""
    nodes = list(graph.nodes)
    renamed: dict[str, str] = {}
    for node in graph:
        if not isinstance(node, Add) or node.inputs[0] == node.inputs[1]:
            continue
        for name, other in (node.inputs, node.inputs[::-1]):
            conv = next(made for made in nodes if made.name == renamed.get(name, name))
            alone = len(graph.users[name]) == 1 and name not in graph.outputs
            if isinstance(conv, Conv2d) and len(conv.inputs) == 1 and conv.bounds == UNBOUNDED and alone:
                joint = dataclasses.replace(conv, inputs=(*conv.inputs, renamed.get(other, other)), bounds=node.bounds)
                # At the position of the addition, where both of its inputs are computed.
                nodes[next(i for i, made in enumerate(nodes) if made.name == node.name)] = joint
                nodes.remove(conv)
                renamed[node.name] = conv.name
                nodes = [_reading(made, {node.name: conv.name}) for made in nodes]
                break
    return dataclasses.replace(graph, nodes=tuple(nodes), outputs=_outputs(graph, renamed))


def _merge(graph: FloatGraph, rule: Callable[[Node, Node], Node | None]) -> FloatGraph:
    """Join neighbours by ``rule(producer, node)`` until nothing changes.

    The rule returns the joint node or None. A producer is joined only if nothing else reads it. The joint node keeps
    the producer's name if the producer has the weights, so that reports show "conv1", not "relu".
    """
    nodes = list(graph.nodes)
    outputs = graph.outputs
    position = 0
    while position < len(nodes):
        node = nodes[position]
        position += 1
        if len(node.inputs) != 1:
            continue
        producer = next(other for other in nodes if other.name == node.inputs[0])
        readers = sum(other.inputs.count(producer.name) for other in nodes)
        if readers != 1 or producer.name in outputs:
            continue
        joint = rule(producer, node)
        if joint is None:
            continue
        nodes[nodes.index(producer)] = joint
        nodes.remove(node)
        position = max(0, position - 2)
        if joint.name != node.name:
            nodes = [_reading(other, {node.name: joint.name}) for other in nodes]
            outputs = tuple(joint.name if name == node.name else name for name in outputs)
        if joint.name != producer.name:
            nodes = [_reading(other, {producer.name: joint.name}) for other in nodes]
    return dataclasses.replace(graph, nodes=tuple(nodes), outputs=outputs)


def _outputs(graph: FloatGraph, renamed: Mapping[str, str]) -> tuple[str, ...]:
    """Return the outputs of a graph after some of its nodes were renamed."""
    return tuple(renamed.get(name, name) for name in graph.outputs)


def _reading(node: Node, renamed: Mapping[str, str]) -> Node:
    """Return the node with its inputs renamed, itself if it reads none of them."""
    inputs = tuple(renamed.get(name, name) for name in node.inputs)
    return node if inputs == node.inputs else dataclasses.replace(node, inputs=inputs)


def _affine_into_producer(producer: Node, node: Node) -> Node | None:
    if not isinstance(node, ChannelAffine):
        return None
    scale = node.scale_c.astype(np.float64)
    if isinstance(producer, Conv2d) and producer.bounds == UNBOUNDED:
        return dataclasses.replace(
            producer,
            weight_oihw=(producer.weight_oihw * scale[:, None, None, None]).astype(np.float32),
            bias_o=(producer.bias_o * scale + node.shift_c).astype(np.float32),
        )
    if isinstance(producer, Linear) and producer.bounds == UNBOUNDED:
        return dataclasses.replace(
            producer,
            weight_oi=(producer.weight_oi * scale[:, None]).astype(np.float32),
            bias_o=(producer.bias_o * scale + node.shift_c).astype(np.float32),
        )
    uniform = not node.shift_c.any() and (node.scale_c == node.scale_c[0]).all() and node.scale_c[0] > 0
    if isinstance(producer, MatMul) and producer.bounds == UNBOUNDED and uniform:
        return dataclasses.replace(producer, factor=producer.factor * float(node.scale_c[0]))
    if isinstance(producer, ChannelAffine) and producer.bounds == UNBOUNDED:
        return dataclasses.replace(
            producer,
            scale_c=(producer.scale_c * scale).astype(np.float32),
            shift_c=(producer.shift_c * scale + node.shift_c).astype(np.float32),
        )
    return None


def _scale_into_consumer(producer: Node, node: Node) -> Node | None:
    """Move a scale that is the same for all channels into the weights that read it, which saves one rounding."""
    if not isinstance(producer, ChannelAffine) or producer.bounds != UNBOUNDED or producer.shift_c.any():
        return None
    scale = float(producer.scale_c[0])
    if (producer.scale_c != scale).any() or len(node.inputs) != 1:
        return None
    if isinstance(node, Conv2d):
        return dataclasses.replace(node, inputs=producer.inputs, weight_oihw=node.weight_oihw * np.float32(scale))
    if isinstance(node, Linear):
        return dataclasses.replace(node, inputs=producer.inputs, weight_oi=node.weight_oi * np.float32(scale))
    return None


def _padding_into_consumer(producer: Node, node: Node) -> Node | None:
    """Move a padding of height and width into the convolution or pool that reads it."""
    if not isinstance(producer, Pad) or not isinstance(node, Conv2d | AveragePool2d | MaxPool2d):
        return None
    if isinstance(node, MaxPool2d) != (producer.value != 0.0):
        return None
    if len(producer.widths) != 3 or producer.widths[0] != (0, 0):
        return None
    (top, bottom), (left, right) = producer.widths[1:]
    p = node.padding
    return dataclasses.replace(
        node,
        inputs=producer.inputs,
        padding=(p[0] + top, p[1] + left, p[2] + bottom, p[3] + right),
    )


def _clamp_into_producer(producer: Node, node: Node) -> Node | None:
    if not isinstance(node, Clamp):
        return None
    lo, hi = node.bounds
    if isinstance(producer, Bounded | Clamp):
        before = producer.bounds
        return dataclasses.replace(producer, bounds=(min(max(before[0], lo), hi), max(min(before[1], hi), lo)))
    return None


def _hardsigmoid(producer: Node, node: Node) -> Node | None:
    """Recognize relu6(x + 3) / 6."""
    if not (isinstance(producer, ChannelAffine) and isinstance(node, ChannelAffine)):
        return None
    inner = producer.bounds == (0.0, 6.0) and (producer.scale_c == 1).all() and (producer.shift_c == 3).all()
    outer = np.allclose(node.scale_c, 1 / 6, rtol=1e-6) and not node.shift_c.any() and node.bounds == UNBOUNDED
    if not (inner and outer):
        return None
    return Elementwise(
        name=node.name, inputs=producer.inputs, shape=node.shape, source=node.source, function="hardsigmoid"
    )


_GATED = {"hardsigmoid": "hardswish", "sigmoid": "silu"}
"""From f to the name of x · f(x)."""


def _with_functions_recognized(graph: FloatGraph) -> FloatGraph:
    """Replace x · f(x) by one function with one rounding, if nothing else reads f(x)."""
    changes: dict[str, Node] = {}
    dead: set[str] = set()
    for node in graph:
        if not isinstance(node, Mul):
            continue
        for name, x in (node.inputs, node.inputs[::-1]):
            gate = graph[name]
            alone = len(graph.users[name]) == 1 and name not in graph.outputs
            if isinstance(gate, Elementwise) and gate.inputs == (x,) and gate.function in _GATED and alone:
                function = Elementwise(
                    name=node.name, inputs=(x,), shape=node.shape, source=node.source, function=_GATED[gate.function]
                )
                if node.bounds == UNBOUNDED:
                    changes[node.name] = function
                    dead.add(name)
                break
    graph = graph.replaced(changes)
    return dataclasses.replace(graph, nodes=tuple(node for node in graph if node.name not in dead))


def _with_softmax_in_products(graph: FloatGraph) -> FloatGraph:
    """Join a softmax with the product that alone reads it, so that its weights are never rounded to 8 bits."""
    changes: dict[str, Node] = {}
    dead: set[str] = set()
    for node in graph:
        if not isinstance(node, MatMul) or node.factor != 1.0:
            continue
        weights = graph[node.inputs[0]]
        alone = len(graph.users[weights.name]) == 1 and weights.name != graph.output
        if isinstance(weights, Softmax) and weights.axis == 2 and alone and node.inputs[1] != weights.name:
            changes[node.name] = SoftmaxMatMul(
                name=node.name, inputs=(*weights.inputs, node.inputs[1]), shape=node.shape, source=node.source,
                bounds=node.bounds,
            )  # fmt: skip
            dead.add(weights.name)
    graph = graph.replaced(changes)
    return dataclasses.replace(graph, nodes=tuple(node for node in graph if node.name not in dead))


def _average_into_average(producer: Node, node: Node) -> Node | None:
    """Replace the mean over rows of the mean over columns by one mean."""
    if not (isinstance(producer, AveragePool2d) and isinstance(node, AveragePool2d)):
        return None
    if producer.bounds != UNBOUNDED or any(
        pool.padding != (0, 0, 0, 0) or pool.stride != pool.kernel for pool in (producer, node)
    ):
        return None
    kernel = (producer.kernel[0] * node.kernel[0], producer.kernel[1] * node.kernel[1])
    return dataclasses.replace(node, inputs=producer.inputs, kernel=kernel, stride=kernel)


def _with_window_averages_in_weights(graph: FloatGraph) -> FloatGraph:
    """Merge an average that enlarges an image into the layer that reads all of it. Both maps are linear.

    VGG's pool to 7x7 makes more pixels than a small image has, and the next layer reads all of them.
    """
    changes: dict[str, Node] = {}
    dead: set[str] = set()
    for node in graph:
        if not isinstance(node, WindowAverage2d) or len(graph.users[node.name]) != 1:
            continue
        source = graph[node.inputs[0]]
        height, width = source.shape[1:]
        rows, columns = window_weights(node.rows, height), window_weights(node.columns, width)
        if height * width > rows.shape[0] * columns.shape[0]:
            continue
        (reader,) = graph.users[node.name]
        if isinstance(reader, Conv2d) and len(reader.inputs) == 1 and reader.shape[1:] == (1, 1):
            if reader.weight_oihw.shape[2:] == node.shape[1:] and not any(reader.padding):
                weight = np.einsum("oiab,ah,bw->oihw", reader.weight_oihw, rows, columns, optimize=True)
                changes[reader.name] = dataclasses.replace(
                    reader, inputs=node.inputs, weight_oihw=weight.astype(np.float32), dilation=(1, 1), stride=(1, 1)
                )
                dead.add(node.name)
        elif isinstance(reader, Reshape) and len(reader.shape) == 1 and len(graph.users[reader.name]) == 1:
            (layer,) = graph.users[reader.name]
            if isinstance(layer, Linear):
                image = layer.weight_oi.reshape(-1, *node.shape)
                weight = np.einsum("ocab,ah,bw->ochw", image, rows, columns, optimize=True)
                weight = weight.reshape(len(image), -1).astype(np.float32)
                changes[reader.name] = dataclasses.replace(reader, inputs=node.inputs, shape=weight.shape[1:])
                changes[layer.name] = dataclasses.replace(layer, weight_oi=weight)
                dead.add(node.name)
    graph = graph.replaced(changes)
    return dataclasses.replace(graph, nodes=tuple(node for node in graph if node.name not in dead))


def _with_window_averages_split(graph: FloatGraph) -> FloatGraph:
    """Split averages over uneven windows into bands of even ones, and concatenate them. No value is rounded twice."""
    nodes: list[Node] = []
    for node in graph:
        if isinstance(node, WindowAverage2d):
            nodes.extend(_bands(node, graph[node.inputs[0]].shape))
        else:
            nodes.append(node)
    return dataclasses.replace(graph, nodes=tuple(nodes))


_LARGEST_AVERAGE = 1 << 14
"""Largest number of values in a window. The multiplier 2**16 · s_x / (n · s_y) must not become a small integer."""


def _with_large_averages_split(graph: FloatGraph) -> FloatGraph:
    """Compute the mean over a large window as the mean over its rows of the means over its columns."""
    nodes: list[Node] = []
    for node in graph:
        if not isinstance(node, AveragePool2d) or node.kernel[0] * node.kernel[1] <= _LARGEST_AVERAGE:
            nodes.append(node)
            continue
        channels, _, width = graph[node.inputs[0]].shape
        top, left, bottom, right = node.padding
        down = AveragePool2d(
            name=f"{node.name}.columns", inputs=node.inputs, shape=(channels, node.shape[1], width),
            source=node.source, kernel=(node.kernel[0], 1), stride=(node.stride[0], 1), padding=(top, 0, bottom, 0),
        )  # fmt: skip
        across = dataclasses.replace(
            node, inputs=(down.name,), kernel=(1, node.kernel[1]), stride=(1, node.stride[1]),
            padding=(0, left, 0, right),
        )  # fmt: skip
        nodes.extend((down, across))
    return dataclasses.replace(graph, nodes=tuple(nodes))


def _bands(node: WindowAverage2d, shape: tuple[int, ...]) -> list[Node]:
    made: list[Node] = []
    channels = shape[0]

    def add(kind: type[Node], inputs: tuple[str, ...], shape: tuple[int, ...], name: str = "", **fields: object) -> str:
        name = name or f"{node.name}.part{len(made) + 1}"
        made.append(kind(name=name, inputs=inputs, shape=shape, source=node.source, **fields))
        return name

    def cut(name: str, shape: tuple[int, ...], axis: int, start: int, stop: int) -> str:
        if (start, stop) == (0, shape[axis]):
            return name
        size = (*shape[:axis], stop - start, *shape[axis + 1 :])
        return add(Slice, (name,), size, axis=axis, start=start, stop=stop, step=1)

    bands = []
    across = _runs(node.columns)
    down = _runs(node.rows)
    for top, bottom, kernel_h, stride_h, more_h, out_h in down:
        band = cut(node.inputs[0], shape, 1, top, bottom)
        band_shape = (channels, bottom - top, shape[2])
        cells = []
        for left, right, kernel_w, stride_w, more_w, out_w in across:
            cell = cut(band, band_shape, 2, left, right)
            last = len(down) == len(across) == 1
            cells.append(
                add(
                    AveragePool2d,
                    (cell,),
                    (channels, out_h, out_w),
                    node.name if last else "",
                    kernel=(kernel_h, kernel_w),
                    stride=(stride_h, stride_w),
                    padding=(0, 0, more_h, more_w),
                )
            )
        whole = (channels, out_h, node.shape[2])
        name = node.name if len(down) == 1 else ""
        bands.append(cells[0] if len(cells) == 1 else add(Concat, tuple(cells), whole, name, axis=2))
    if len(bands) > 1:
        add(Concat, tuple(bands), node.shape, node.name, axis=1)
    return made


def _runs(windows: Windows) -> list[tuple[int, int, int, int, int, int]]:
    """Group windows into regular pools: (start, stop, kernel, stride, zeros after it, outputs)."""
    runs = []
    position = 0
    while position < len(windows):
        start, stop, divisor = windows[position]
        count, stride = 1, divisor
        while position + count < len(windows) and stop - start == divisor:
            following = windows[position + count]
            step = following[0] - windows[position + count - 1][0]
            if following[1] - following[0] != divisor or following[2] != divisor or step < 1:
                break
            if count > 1 and step != stride:
                break
            stride, count = step, count + 1
        end = windows[position + count - 1][1]
        runs.append((start, end, divisor, stride, divisor - (stop - start), count))
        position += count
    return runs


def _as_depthwise(node: ChannelAffine) -> Node:
    """Return the same map as a convolution, which has an integer form with weights per channel."""
    channels = node.scale_c.shape[0]
    if len(node.shape) == 1:
        return Linear(
            name=node.name, inputs=node.inputs, shape=node.shape, source=node.source, bounds=node.bounds,
            weight_oi=np.diag(node.scale_c), bias_o=node.shift_c,
        )  # fmt: skip
    return Conv2d(
        name=node.name, inputs=node.inputs, shape=node.shape, source=node.source, bounds=node.bounds,
        weight_oihw=node.scale_c.reshape(channels, 1, 1, 1), bias_o=node.shift_c, groups=channels,
    )  # fmt: skip
