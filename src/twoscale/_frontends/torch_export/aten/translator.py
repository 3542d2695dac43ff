"""The walk over an exported program, which calls the translation of every operator."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import fx

from twoscale._frontends.torch_export.aten.emitter import Emitter, Translation, remedy
from twoscale._ir.float_graph import FloatGraph
from twoscale.errors import CaptureError, UnsupportedOperatorError

__all__ = ["Translator", "UnknownOperator", "ViewChanged"]

# Operators that return their input itself (in eval mode), although their schema does not declare it.
_RETURN_THEIR_INPUT = ("getitem", "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")

# Operators that only compute or check shapes. Their results are read from the exported metadata.
_SHAPE_ONLY = ("sym_size", "_assert", "sym_constrain", "_check")

# Parts of the program under a context manager, and the position of their graph among the arguments.
_REGIONS = {"wrap_with_autocast": 4, "wrap_with_set_grad_enabled": 1}

# Operators whose result may stand unchanged for a larger one that the next operator broadcasts to.
_BROADCAST_LATER = ("expand", "expand_as", "broadcast_to")

# Operators that make a tensor of a given shape.
_MAKE_TENSORS = ("zeros", "ones", "full")


def _storages(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Return, for every node, the node that allocated its memory."""
    storages: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        first = node.args[0] if node.args else None
        storages[node] = node
        if node.op == "call_function" and isinstance(first, fx.Node):
            schema = getattr(node.target, "_schema", None)
            name = str(getattr(node.target, "_opname", None) or getattr(node.target, "__name__", node.target))
            shares = schema is not None and any(result.alias_info is not None for result in schema.returns)
            if shares or name in _RETURN_THEIR_INPUT:
                storages[node] = storages[first]
    return storages


class ViewChanged(Exception):
    """A tensor is changed in place while another view of it is known under another name."""


class UnknownOperator(UnsupportedOperatorError):
    """An operator without a translation. Its decomposition may have one."""


class Translator(Emitter):
    """Walks an exported program once and collects the nodes."""

    def __init__(
        self,
        exported: torch.export.ExportedProgram,
        name: str,
        translations: Mapping[str, Translation],
        plain_only: Collection[str],
    ) -> None:
        super().__init__(name)
        self.plain_only = plain_only
        self.name = name
        self.translations = translations
        self.exported = exported
        exported.graph.eliminate_dead_code()  # second results of pools, and heads used only in training
        self.storages = _storages(exported.graph)
        self.results: dict[Any, list[Any]] = {}  # of regions
        self.device = "cpu"

    def graph(self) -> FloatGraph:
        """Walk the program and return its graph."""
        signature = self.exported.graph_signature
        state = {**self.exported.state_dict, **self.exported.constants}
        targets = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        for node in self.exported.graph.nodes:
            if node.op == "placeholder":
                if node.name in targets:
                    self.paths[node] = targets[node.name]
                    self.constants[node] = state[targets[node.name]].detach().clone()  # programs may change buffers
                else:
                    self._input(node)
            elif node.op == "get_attr":
                value = getattr(self.exported.graph_module, str(node.target))
                if isinstance(value, torch.Tensor):  # otherwise part of the program is called conditionally
                    self.constants[node] = value.detach().clone()
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                return self.builder.graph(*self._outputs(node))
        raise CaptureError(f"{self.name} returns nothing; expected a tensor, such as logits (N, classes)")

    def _input(self, node: fx.Node) -> None:
        value = node.meta["val"]
        several = len(self.exported.graph_signature.user_inputs) > 1
        if self.tensors and str(value.shape[0]) != str(self.batch):
            raise CaptureError(f"{self.name} takes inputs of different batch sizes; expected one batch size for all")
        self.batch, self.dtype, self.device = value.shape[0], value.dtype, value.device.type
        name = f"input_{node.name}" if several else "input"
        self.tensors[node] = self.builder.input(tuple(int(n) for n in value.shape[1:]), name)

    def _outputs(self, node: fx.Node) -> list[str]:
        (results,) = node.args
        assert isinstance(results, (tuple, list))
        # Without in-place operators, tensors that the model changes are also results. The last results are the user's.
        results = results[len(results) - len(self.exported.graph_signature.user_outputs) :]
        if not results:
            raise CaptureError(f"{self.name} returns nothing; expected a tensor, such as logits (N, classes)")
        if len(results) > 1 and self.left_out is not None:
            function, where = self.left_out
            raise CaptureError(
                f"{self.name} returns {len(results)} tensors, and the {function} at {where} is before the end of one; "
                "return its input, whose largest value is the same"
            )
        names = []
        for result in results:
            if not isinstance(result, fx.Node) or result not in self.tensors:
                raise CaptureError(f"{self.name} returns something that does not depend on the images")
            self._check_batch([result])
            names.append(self.tensors[result])
        return names

    def _call(self, node: fx.Node) -> None:
        if node in self.tensors:  # a part of a split, entered with the split
            return
        target = str(getattr(node.target, "_opname", None) or getattr(node.target, "__name__", node.target))
        if target in _REGIONS:
            self._region(node, target)
            return
        if target == "getitem" and node.args[0] in self.results:
            self._stand_for(node, self.results[node.args[0]][node.args[1]])  # type: ignore[index]
            return
        if target == "getitem":  # the first of several results is the tensor itself
            source, index = node.args[0], node.args[1]
            if isinstance(source, fx.Node) and source in self.tensors and index == 0:
                self.tensors[node] = self.tensors[source]
                return
        if any(mark in target for mark in _SHAPE_ONLY):
            return
        inputs = [argument for argument in node.all_input_nodes if argument in self.tensors]
        if not inputs:
            if self._is_tensor(node) or (node.all_input_nodes and set(node.all_input_nodes) <= self.constants.keys()):
                self._fold_constant(node)
            return
        translation = self.translations.get(target.rstrip("_"))
        if translation is None:
            raise UnknownOperator(
                f"operator {node.target} at {self.source(node)} has no integer form here; " + remedy(target.rstrip("_"))
            )
        if target.rstrip("_") in self.plain_only:
            self._check_batch(inputs)
        try:
            result = translation(self, node, self._arguments(node))
        except (CaptureError, ViewChanged):
            raise
        except Exception as error:  # an unforeseen call of an operator
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise UnsupportedOperatorError(
                f"{node.target} at {self.source(node)} is called in a way that is not known here ({reason}); "
                "write it in another way"
            ) from error
        if result is not None:
            name = target.rstrip("_")
            if name in self.plain_only and not self.is_plain(node):
                raise self.mixed(node)
            if name not in _BROADCAST_LATER and self.builder[result].shape != self.shape(node):
                raise UnsupportedOperatorError(
                    f"{node.target} at {self.source(node)} is called in a way that is not known here (its result has "
                    f"shape {self.shape(node)}, expected {self.builder[result].shape}); write it in another way"
                )
            self.tensors[node] = result
        if target.endswith("_") and node in self.tensors:
            self._changed_in_place(node.args[0], self.tensors[node])

    def _check_batch(self, inputs: list[fx.Node]) -> None:
        """Refuse activations whose first dimension is not the batch alone; the error names what moved or merged it."""
        for argument in inputs:
            if not self.is_plain(argument):
                while (source := argument.all_input_nodes[0]) in self.tensors and not self.is_plain(source):
                    argument = source
                raise self.mixed(argument)

    def _region(self, node: fx.Node, target: str) -> None:
        """Translate a part of the program under a context manager that changes no value."""
        position = _REGIONS[target]
        if target == "wrap_with_autocast":
            device, _, enabled, *_ = node.args
            if enabled and device == self.device:
                raise UnknownOperator(
                    f"operator {node.target} at {self.source(node)} computes in 16 bits; " + remedy(target)
                )
        region: Any = node.args[position]
        inner = getattr(self.exported.graph_module, str(region.target))
        arguments = iter(node.args[position + 1 :])
        for part in inner.graph.nodes:
            if part.op == "placeholder":
                self._stand_for(part, next(arguments))
            elif part.op == "call_function":
                self._call(part)
            elif part.op == "output":
                (results,) = part.args
                self.results[node] = list(results) if isinstance(results, (tuple, list)) else [results]

    def _stand_for(self, node: fx.Node, other: Any) -> None:
        """Enter a node as an alias of another."""
        if other in self.tensors:
            self.tensors[node] = self.tensors[other]
        elif other in self.constants:
            self.constants[node] = self.constants[other]

    def _changed_in_place(self, node: Any, new: str) -> None:
        """Update everything that shares the memory of ``node`` to its new value."""
        if node in self.constants:  # a tensor made from a shape, e.g. zeros to add to
            if any(other is not node and self.storages[other] is self.storages[node] for other in self.constants):
                raise ViewChanged
            del self.constants[node]
            self.tensors[node] = new
        sharing = [other for other in self.tensors if self.storages.get(other) is self.storages.get(node, node)]
        if len({self.tensors[other] for other in sharing} - {new}) > 1:
            raise ViewChanged
        for other in sharing:
            self.tensors[other] = new

    @staticmethod
    def _is_tensor(node: fx.Node) -> bool:
        value = node.meta.get("val")
        if isinstance(value, (tuple, list)):
            value = value[0] if value else None
        return isinstance(value, torch.Tensor)

    def _fold_constant(self, node: fx.Node) -> None:
        """Compute a node that depends only on weights, such as a normalized, masked or transposed weight."""

        tags = getattr(node.target, "tags", ())
        off = "dropout" in str(node.target) and len(node.args) == 3 and node.args[2] is False
        if torch.Tag.nondeterministic_seeded in tags and not off:
            raise CaptureError(
                f"{node.target} at {self.source(node)} is random; expected the same logits for the same images"
            )

        def value(argument: Any) -> Any:
            # A tensor made from the batch size is the same for every image, so one image is enough.
            return 1 if self.is_batch(argument.meta.get("val")) else self.constants[argument]

        try:
            arguments: Any = fx.map_arg(node.args, value)
            if str(getattr(node.target, "_opname", "")) in _MAKE_TENSORS and self.is_batch(*arguments[0][:1]):
                arguments = ([1, *arguments[0][1:]], *arguments[1:])
            with torch.no_grad():
                self.constants[node] = node.target(*arguments, **fx.map_arg(node.kwargs, value))  # type: ignore[operator]
        except KeyError:
            raise CaptureError(
                f"{node.target} at {self.source(node)} makes a tensor from the batch size; "
                "expected every image to be computed alone"
            ) from None

    @staticmethod
    def _arguments(node: fx.Node) -> dict[str, Any]:
        """Name every argument as in the operator's schema, defaults included."""
        values: dict[str, Any] = {}
        for position, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
            if position < len(node.args):
                values[argument.name] = node.args[position]
            elif argument.name in node.kwargs:
                values[argument.name] = node.kwargs[argument.name]
            else:
                values[argument.name] = argument.default_value
        return values
