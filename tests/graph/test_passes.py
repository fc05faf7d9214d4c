from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from rest_deploy.errors import InvariantError
from rest_deploy.graph import passes
from rest_deploy.graph.passes import PASSES, run_passes


def node(op: str, inputs: list[ir.Value], **attributes: int | list[int]) -> ir.Node:
    made = ir.node(op, inputs=inputs, attributes=attributes or None)
    made.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    return made


def weight(name: str, value: np.ndarray) -> ir.Value:
    return ir.val(name, const_value=ir.tensor(value, name=name))


def model_of(nodes: list[ir.Node], inputs: list[ir.Value], weights: list[ir.Value]) -> ir.Model:
    outputs = [nodes[-1].outputs[0]]
    outputs[0].name = "y"
    for index, made in enumerate(nodes[:-1]):
        made.outputs[0].name = f"t{index}"
    graph = ir.Graph(inputs, outputs, nodes=nodes, initializers=weights, opset_imports={"": 20})
    return ir.Model(graph, ir_version=10)


def image() -> ir.Value:
    return ir.val("image", ir.DataType.FLOAT, [2, 3, 96, 160])


def test_release_sizes_names_the_axes_and_forgets_the_rest() -> None:
    x = image()
    relu = node("Relu", [x])
    relu.outputs[0].shape = ir.Shape([2, 3, 96, 160])
    last = node("Relu", [relu.outputs[0]])
    last.outputs[0].shape = ir.Shape([2, 3, 96, 160])
    model = model_of([relu, last], [x], [])
    assert passes.release_sizes(model) == 1
    assert [str(d) for d in model.graph.inputs[0].shape or ()] == ["batch", "3", "height", "width"]
    assert [value.shape for value in relu.outputs] == [None]
    assert str((last.outputs[0].shape or ir.Shape([0]))[0]) == "batch"


def test_transpose_weights_stores_the_transposed_weight() -> None:
    x, w = image(), weight("fc.weight", np.arange(6, dtype=np.float32).reshape(2, 3))
    transpose = node("Transpose", [w], perm=[1, 0])
    product = node("MatMul", [x, transpose.outputs[0]])
    model = model_of([transpose, product], [x], [w])
    assert passes.transpose_weights(model) == 1
    stored = product.inputs[1]
    assert stored is not None
    assert stored.name == "fc.weight.T"
    assert stored.const_value is not None
    np.testing.assert_array_equal(stored.const_value.numpy(), np.arange(6).reshape(2, 3).T)
    assert "fc.weight" not in model.graph.initializers


def test_transpose_weights_leaves_activations_and_shared_weights() -> None:
    x, w = image(), weight("w", np.ones((3, 3), np.float32))
    activation = node("Transpose", [x], perm=[0, 1, 3, 2])
    transpose = node("Transpose", [w], perm=[1, 0])
    both = node("MatMul", [transpose.outputs[0], w])
    last = node("MatMul", [activation.outputs[0], both.outputs[0]])
    model = model_of([activation, transpose, both, last], [x], [w])
    assert passes.transpose_weights(model) == 1
    assert activation in model.graph  # an activation is not a weight
    assert "w" in model.graph.initializers  # somebody else still reads it


def test_drop_zero_bias_only_when_zero() -> None:
    x = image()
    kernel = weight("k", np.ones((3, 3, 1, 1), np.float32))
    zero, one = weight("zero", np.zeros(3, np.float32)), weight("one", np.ones(3, np.float32))
    first = node("Conv", [x, kernel, zero])
    second = node("Conv", [first.outputs[0], kernel, one])
    model = model_of([first, second], [x], [kernel, zero, one])
    assert passes.drop_zero_bias(model) == 1
    assert len(first.inputs) == 2
    assert len(second.inputs) == 3


def test_share_shapes_merges_equal_shape_nodes() -> None:
    x = image()
    shapes = [node("Shape", [x]), node("Shape", [x])]
    last = node("Concat", [shape.outputs[0] for shape in shapes], axis=0)
    model = model_of([*shapes, last], [x], [])
    assert passes.share_shapes(model) == 1


def test_name_nodes_uses_the_module_path_and_counts_repeats() -> None:
    x = image()
    scopes = "['', 'stage3', 'stage3.4', 'stage3.4.attn', 'stage3.4.attn.q', 'linear']"
    nodes = [node("Relu", [x])]
    nodes += [node("Relu", [nodes[0].outputs[0]]), node("Relu", [nodes[0].outputs[0]])]
    for made in nodes[:2]:
        made.metadata_props[passes.SCOPES_KEY] = scopes
    nodes[2].metadata_props[passes.SCOPES_KEY] = "['', 'relu_3']"
    nodes.append(node("Add", [nodes[1].outputs[0], nodes[2].outputs[0]]))
    model = model_of(nodes, [x], [])
    passes.name_nodes(model)
    assert [n.name for n in model.graph] == [
        "stage3.4.attn.q.Relu",
        "stage3.4.attn.q.Relu_1",
        "Relu",
        "Add",
    ]
    assert nodes[0].outputs[0].name == "stage3.4.attn.q.Relu.out"
    assert nodes[3].outputs[0].name == "y"  # the interface keeps its names


def test_strip_exporter_notes() -> None:
    x = image()
    relu = node("Relu", [x])
    relu.metadata_props["pkg.torch.onnx.stack_trace"] = "File somewhere"
    model = model_of([relu], [x], [])
    assert passes.strip_exporter_notes(model) == 1
    assert not relu.metadata_props


def test_a_pass_that_renames_an_output_is_named() -> None:
    x = image()
    model = model_of([node("Relu", [x])], [x], [])

    def vandal(broken: ir.Model) -> int:
        broken.graph.outputs[0].name = "other"
        return 1

    with pytest.raises(InvariantError, match="pass vandal changed the inputs or outputs"):
        run_passes(model, [vandal])


def test_a_pass_that_leaves_a_dangling_input_is_named() -> None:
    x = image()
    first = node("Relu", [x])
    last = node("Relu", [first.outputs[0]])
    model = model_of([first, last], [x], [])

    def vandal(broken: ir.Model) -> int:
        last.replace_input_with(0, ir.val("nowhere", ir.DataType.FLOAT))
        return len(broken.graph)

    with pytest.raises(InvariantError, match=r"pass vandal: .* reads nowhere"):
        run_passes(model, [vandal])


def test_the_list_is_the_documented_one() -> None:
    assert [graph_pass.__name__ for graph_pass in PASSES] == [
        "release_sizes",
        "transpose_weights",
        "fold_constants",
        "drop_zero_bias",
        "share_shapes",
        "remove_unused",
        "name_nodes",
        "strip_exporter_notes",
        "infer_shapes",
    ]
    assert all(graph_pass.__doc__ for graph_pass in PASSES)
