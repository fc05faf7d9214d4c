"""Move range from activations into weights, exactly, before anything is quantized.

One scale per tensor must serve all channels of an activation; weights have a scale per output
channel. Dividing channel c of an activation by s_c and multiplying the matching weights by s_c
changes nothing in float, and s_c = (max|x_c|)^a / (max|w_c|)^(1-a) evens the ranges out (Xiao et
al., "SmoothQuant", arXiv 2211.10438). It costs nothing at run time wherever the division folds into
what made the activation:

- LayerNorm's gain and bias (before q, k, v, fc1, the head); the reduction `sr` that reads the
  same tokens is depthwise and takes its s_c too;
- v's columns, before proj: everything between them (map, InstanceNorm's scalar, transposes) is
  linear in v and keeps heads and channels in place. A branch beside the attention (ResT v2) reads v
  too: its convolution is depthwise and takes its s_c, so that what its LayerNorm sees stays, and
  that one's gain and bias are divided, since proj reads the sum of both;
- a convolution's output channels through ReLU (within the stem).

fc2 (behind GELU) and the patch embeddings (the residual stream) have no such partner.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rest_deploy.graph.roles import place

Array = npt.NDArray[np.floating]

LAYOUT = frozenset({"Transpose", "Reshape", "Squeeze", "Unsqueeze"})
"""Operators that keep the values."""


@dataclass(frozen=True)
class Site:
    """`activation` (value name) made by `sources` (initializer name, axis; divided by s) and read
    by `readers` (initializer name, axis of the input channels; multiplied by s). `followers` are
    depthwise readers of one or more outputs a channel: multiplied too, but their range does not
    count; they read `maps`, the same channels in another layout."""

    activation: str
    sources: tuple[tuple[str, int], ...]
    readers: tuple[tuple[str, int], ...]
    followers: tuple[tuple[str, int], ...] = ()
    maps: tuple[str, ...] = ()


def equalize(model: ir.Model, largest: Mapping[str, Array], alpha: float) -> dict[str, Array]:
    """Rescale every site in place; returns what each activation's channels were divided by.

    largest: per activation, the largest magnitude of each channel. alpha 0 moves nothing.
    """
    factors: dict[str, Array] = {}
    if alpha == 0.0:
        return factors
    for site in sites(model):
        if site.activation not in largest:
            continue
        activation = largest[site.activation].astype(np.float64)
        weights = [_largest(_constant(model, name), axis) for name, axis in site.readers]
        factor = _factors(activation, np.max(weights, axis=0), alpha)
        for name, axis in site.sources:
            _scale(model, name, axis, 1.0 / factor)
        for name, axis in (*site.readers, *site.followers):
            _scale(model, name, axis, factor)
        factors |= dict.fromkeys((site.activation, *site.maps), factor)
    return factors


def sites(model: ir.Model) -> Iterator[Site]:
    """Where a rescaling folds away, with every reader of the activation accounted for."""
    outputs = set(model.graph.outputs)
    for node in model.graph:
        site = None
        if node.op_type == "LayerNormalization":
            site = _norm_site(node, outputs)
        elif node.op_type == "MatMul" and node.name and node.name.endswith(".attn.v.MatMul"):
            site = _value_site(node)
        elif node.op_type == "Relu":
            site = _relu_site(node)
        if site is not None and site.readers:
            yield site


def _norm_site(node: ir.Node, outputs: set[ir.Value]) -> Site | None:
    readers: list[tuple[str, int]] = []
    followers: list[tuple[str, int]] = []
    maps: list[str] = []
    activation = node.outputs[0]
    stack = [use.node for use in activation.uses()]
    while stack:
        reader = stack.pop()
        here = place(reader.name or "")
        if any(value in outputs for value in reader.inputs):
            return None  # an embedding goes out as it is
        if reader.op_type in {"Transpose", "Reshape", "ReduceMean"}:
            stack += [use.node for use in reader.outputs[0].uses()]
        elif here is not None and here.role in {"qkv", "offset", "mlp", "head"}:
            readers.append((_name(reader.inputs[1]), _input_axis(reader)))
            activation = reader.inputs[0] or activation  # the head reads the mean of the tokens
        elif here is not None and here.role == "sr":
            followers.append((_name(reader.inputs[1]), 0))  # depthwise: its own channel
            maps.append(_name(reader.inputs[0]))
        else:
            return None
    sources = tuple((_name(value), 0) for value in node.inputs[1:3] if value is not None)
    return Site(_name(activation), sources, tuple(readers), tuple(followers), tuple(maps))


def _value_site(node: ir.Node) -> Site | None:
    """v -> ... -> proj, with the branch that reads v where there is one. Refused when proj reads
    neither the context alone nor its sum with that branch."""
    attention = (node.name or "").removesuffix(".v.MatMul")
    if node.graph is None:
        return None
    found = {n.name.removeprefix(f"{attention}."): n for n in node.graph
             if n.name and n.name.startswith(f"{attention}.")}  # fmt: skip
    proj, context = found.get("proj.MatMul"), found.get("context.MatMul")
    if proj is None or context is None:
        return None
    sources = [(_name(node.inputs[1]), 1)]
    if "v.Add" in found:
        sources += [(_name(bias), 0) for bias in found["v.Add"].inputs if _is_constant(bias)]
    activation, reader = _name(proj.inputs[0]), (_name(proj.inputs[1]), 0)
    if _moved_from(proj.inputs[0]) is context:
        return Site(activation, tuple(sources), (reader,))
    up, up_norm = found.get("up.Conv"), found.get("up_norm.LayerNormalization")
    total = proj.inputs[0].producer() if proj.inputs[0] is not None else None
    if up is None or up_norm is None or total is None or total.op_type != "Add":
        return None
    if {_moved_from(value) for value in total.inputs} != {context, up_norm}:
        return None
    sources += [(_name(value), 0) for value in up_norm.inputs[1:3] if value is not None]
    follower = (_name(up.inputs[1]), 0)
    return Site(activation, tuple(sources), (reader,), (follower,), (_name(up.inputs[0]),))


def _moved_from(value: ir.Value | None) -> ir.Node | None:
    """The node that made `value`, behind changes of its layout."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in LAYOUT:
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node


def _is_constant(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer()


def _relu_site(node: ir.Node) -> Site | None:
    conv = node.inputs[0].producer() if node.inputs[0] is not None else None
    users = [use.node for use in node.outputs[0].uses()]
    if conv is None or conv.op_type != "Conv" or any(user.op_type != "Conv" for user in users):
        return None
    sources = tuple((_name(value), 0) for value in conv.inputs[1:] if value is not None)
    return Site(_name(node.outputs[0]), sources, tuple((_name(u.inputs[1]), 1) for u in users))


def _factors(
    activation: npt.NDArray[np.float64],
    weights: npt.NDArray[np.float64],
    alpha: float,
) -> npt.NDArray[np.float64]:
    """s_c with geometric mean 1; a channel that is always zero, or unread, keeps 1."""
    used = (activation > 0) & (weights > 0)
    factor = np.ones_like(activation)
    factor[used] = activation[used] ** alpha / weights[used] ** (1.0 - alpha)
    if used.any():
        factor[used] /= np.exp(np.log(factor[used]).mean())
    return factor


def _largest(weight: npt.NDArray[np.float64], axis: int) -> npt.NDArray[np.float64]:
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    largest: npt.NDArray[np.float64] = np.abs(rows).max(axis=1)
    return largest


def _input_axis(node: ir.Node) -> int:
    """Axis of a weight that meets the activation's channels: 0 for MatMul, 1 for Gemm's B^T."""
    transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
    return 1 if transposed else 0


def _constant(model: ir.Model, name: str) -> npt.NDArray[np.float64]:
    value = model.graph.initializers[name].const_value
    assert value is not None
    return value.numpy().astype(np.float64)


def _scale(model: ir.Model, name: str, axis: int, factor: npt.NDArray[np.float64]) -> None:
    """factor: (C,), of an axis of C channels or of a whole number of outputs a channel."""
    array = _constant(model, name)
    shape = [1] * array.ndim
    shape[axis] = -1
    each = np.repeat(factor, array.shape[axis] // len(factor))
    scaled = (array * each.reshape(shape)).astype(np.float32)
    model.graph.initializers[name].const_value = ir.tensor(scaled, name=name)


def _name(value: ir.Value | None) -> str:
    assert value is not None
    assert value.name is not None
    return value.name
