"""The passes between torch's exporter and the file, as one visible ordered list.

A pass changes the model in place and returns how often it fired. `run_passes` checks after each
one what every pass promises: inputs and outputs keep their names, every value has a producer.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer

from rest_deploy.errors import InvariantError

GraphPass = Callable[[ir.Model], int]

IMAGE_AXES = ("batch", 3, "height", "width")
PIXEL_AXES = ("batch", "height", "width", 3)
SCOPES_KEY = "pkg.torch.onnx.name_scopes"


def release_sizes(model: ir.Model) -> int:
    """Name the dynamic axes; forget the sizes of the traced example, which are not facts."""
    graph = model.graph
    image = graph.inputs[0]
    pixels = image.dtype == ir.DataType.UINT8
    image.shape = ir.Shape(PIXEL_AXES if pixels else IMAGE_AXES)
    for output in graph.outputs:
        if output.shape is not None:
            channels, *sides = tuple(output.shape)[1:]
            grid = (f"{output.name}_height", f"{output.name}_width") if sides else ()
            output.shape = ir.Shape(("batch", channels, *grid))
    released = 0
    for node in graph:
        for value in node.outputs:
            if value not in graph.outputs:
                value.shape = None
                released += 1
    return released


def fold_constants(model: ir.Model) -> int:
    """Evaluate what depends on constants only (zero biases built by Expand, shape vectors)."""
    before = len(model.graph)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    optimizer.fold_constants(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveUnusedNodesPass()(model)
    return before - len(model.graph)


def transpose_weights(model: ir.Model) -> int:
    """MatMul(x, Transpose(W)) -> MatMul(x, W'), W' stored: quantizers look for a constant there.

    Leaves a transposed value that is not a weight, or that something else uses too.
    """
    graph, fired = model.graph, 0
    for node in list(graph):
        source = node.inputs[0] if node.op_type == "Transpose" else None
        if source is None or not source.is_initializer() or source.const_value is None:
            continue
        permutation = node.attributes["perm"].as_ints()
        value = np.ascontiguousarray(source.const_value.numpy().transpose(permutation))
        name = f"{source.name}.T"
        stored = ir.val(name, const_value=ir.tensor(value, name=name))
        graph.register_initializer(stored)
        ir.convenience.replace_all_uses_with(node.outputs[0], stored)
        graph.remove(node, safe=True)
        if not source.uses():
            graph.initializers.pop(source.name or "")
        fired += 1
    return fired


def drop_zero_bias(model: ir.Model) -> int:
    """Conv(x, W, 0) -> Conv(x, W): the exporter spells out a missing bias."""
    fired = 0
    for node in model.graph:
        if node.op_type != "Conv" or len(node.inputs) < 3 or node.inputs[2] is None:
            continue
        bias = node.inputs[2].const_value
        if bias is not None and not bias.numpy().any():
            node.resize_inputs(2)
            fired += 1
    return fired


def share_shapes(model: ir.Model) -> int:
    """One Shape node per feature map instead of one per reshape."""
    before = len(model.graph)
    common.CommonSubexpressionEliminationPass()(model)
    return before - len(model.graph)


def remove_unused(model: ir.Model) -> int:
    """Nodes and weights nothing reads, Identity nodes."""
    before = len(model.graph) + len(model.graph.initializers)
    common.IdentityEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    return before - len(model.graph) - len(model.graph.initializers)


def name_nodes(model: ir.Model) -> int:
    """`stage3.4.attn.q.MatMul`: the module that made it and the operator; values likewise.

    Quantization recipes, precision proofs and profiles find their block by these names.
    """
    outputs = set(model.graph.outputs)
    seen: Counter[str] = Counter()
    for node in model.graph:
        scope = _scope(node)
        stem = f"{scope}.{node.op_type}" if scope else node.op_type
        node.name = stem if seen[stem] == 0 else f"{stem}_{seen[stem]}"
        seen[stem] += 1
        for index, value in enumerate(node.outputs):
            if value not in outputs:
                value.name = f"{node.name}.out" + (f"_{index}" if index else "")
    return len(model.graph)


def strip_exporter_notes(model: ir.Model) -> int:
    """Drop torch's metadata: stack traces with the paths of the exporting machine."""
    graph = model.graph
    noted: list[ir.Node | ir.Value | ir.Graph | ir.Model] = [model, graph, *graph, *graph.inputs]
    noted += [value for node in graph for value in node.outputs]
    noted += list(graph.initializers.values())
    stripped = 0
    for item in noted:
        stripped += bool(item.metadata_props)
        item.metadata_props.clear()
        item.doc_string = None
    return stripped


def infer_shapes(model: ir.Model) -> int:
    """Fill in what ONNX can infer again, now with the named axes."""
    common.ShapeInferencePass(strict_mode=False, data_prop=True)(model)
    return sum(value.shape is not None for node in model.graph for value in node.outputs)


PASSES: tuple[GraphPass, ...] = (
    release_sizes,
    transpose_weights,
    fold_constants,
    drop_zero_bias,
    share_shapes,
    remove_unused,
    name_nodes,
    strip_exporter_notes,
    infer_shapes,
)


def run_passes(model: ir.Model, passes: Sequence[GraphPass] = PASSES) -> dict[str, int]:
    """Apply `passes` in order; returns how often each fired.

    Raises `InvariantError` naming the pass that broke the graph.
    """
    interface = _interface(model)
    fired = {}
    for graph_pass in passes:
        fired[graph_pass.__name__] = graph_pass(model)
        if _interface(model) != interface:
            raise InvariantError(f"pass {graph_pass.__name__} changed the inputs or outputs")
        _check_producers(model, graph_pass.__name__)
    return fired


def _interface(model: ir.Model) -> tuple[tuple[str | None, str], ...]:
    values = [*model.graph.inputs, *model.graph.outputs]
    return tuple((value.name, str(value.dtype)) for value in values)


def _check_producers(model: ir.Model, name: str) -> None:
    known = {id(value) for value in (*model.graph.inputs, *model.graph.initializers.values())}
    for node in model.graph:
        for value in node.inputs:
            if value is not None and id(value) not in known:
                raise InvariantError(
                    f"pass {name}: {node.name} reads {value.name} before it is made"
                )
        known |= {id(value) for value in node.outputs}


def _scope(node: ir.Node) -> str:
    """Deepest module path in the exporter's note, "" for the top module."""
    scopes = ast.literal_eval(node.metadata_props.get(SCOPES_KEY, "['', '']"))
    modules = [scope for scope in scopes[:-1] if not scope.startswith("_")]
    return modules[-1] if modules else ""
