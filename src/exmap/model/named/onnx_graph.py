"""How an ONNX file ends: its logits, and the linear map that makes them; and the file with another such map."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exmap.errors import DataError
from exmap.importing import first_line, package

__all__ = ["OnnxEnding", "OnnxInput", "cut_at", "input_of", "read_ending", "read_file", "with_head"]

PASSED = {"Identity", "Dropout", "Flatten", "Reshape", "Squeeze", "Cast"}
SOFT = {"Softmax", "LogSoftmax", "Sigmoid"}
LARGEST = 2**31 - 1
KINDS = {1: np.float32, 10: np.float16, 11: np.float64, 2: np.uint8}


@dataclass(frozen=True)
class OnnxInput:
    """The images that a file takes.

    Attributes
    ----------
    name : str
    kind : dtype
    batch : int or None
        How many at once, where that is fixed.
    shape : tuple of (int or None)
        Channels, height and width; None where they are free.
    last : bool
        Whether the channels come last.
    """

    name: str
    kind: Any
    batch: int | None
    shape: tuple[int | None, int | None, int | None]
    last: bool


@dataclass(frozen=True)
class OnnxEnding:
    """How a file ends.

    Attributes
    ----------
    logits : str
        The tensor of the logits, before softmax or sigmoid.
    features : str
        What the last linear map is given; empty where there is none.
    weight : ndarray, shape (K, D), or None
    bias : ndarray, shape (K,), or None
        None also where the map has none.
    nodes : tuple of int
        The numbers of the nodes that make the map: a Gemm, a MatMul, or a MatMul and an Add.
    """

    logits: str
    features: str = ""
    weight: NDArray[np.float32] | None = None
    bias: NDArray[np.float32] | None = None
    nodes: tuple[int, ...] = ()


def read_file(path: Path) -> Any:
    """Return a file as ONNX's record of it, with all its numbers.

    Raises
    ------
    DataError
        If it cannot be read.
    """
    onnx = package("onnx", extra="onnx")
    if not path.is_file():
        raise DataError(f"the ONNX file {path} does not exist; give an existing file")
    try:
        made = onnx.load(str(path))
        onnx.checker.check_model(made)
    except Exception as error:  # whatever the library says of a damaged file
        raise DataError(
            f"{path} must be a whole ONNX file, but cannot be read ({first_line(error)}); export it again"
        ) from error
    if made.ByteSize() > LARGEST:
        raise DataError(
            f"{path} must have at most 2 GiB, found {made.ByteSize() / 2**30:.1f}; give the model it was exported from"
        )
    return made


def input_of(proto: Any, path: Path) -> OnnxInput:
    """Return what a file takes.

    Raises
    ------
    DataError
        If that is not one batch of images.
    """
    fixed = {one.name for one in proto.graph.initializer}
    given = [one for one in proto.graph.input if one.name not in fixed]
    found = [(one.name, one.type.tensor_type, one.type.tensor_type.shape.dim) for one in given]
    if len(found) != 1 or len(found[0][2]) != 4 or found[0][1].elem_type not in KINDS:
        said = ", ".join(f"{name} of {len(dims)} dimensions" for name, _, dims in found) or "nothing"
        raise DataError(
            f"{path} must take one batch of images, four dimensions of floating-point numbers, but takes {said}; "
            "export the image classifier alone"
        )
    name, kind, dims = found[0]
    sizes = [int(dim.dim_value) or None for dim in dims]
    last = sizes[3] in (1, 3, 4) and sizes[1] not in (1, 3, 4)
    shape = (sizes[3], sizes[1], sizes[2]) if last else (sizes[1], sizes[2], sizes[3])
    return OnnxInput(name, KINDS[kind.elem_type], sizes[0], shape, last)


class _Graph:
    """Look-ups in the graph of a file."""

    def __init__(self, proto: Any) -> None:
        self.nodes = list(proto.graph.node)
        self.maker = {name: number for number, node in enumerate(self.nodes) for name in node.output}
        self.fixed = {one.name: one for one in proto.graph.initializer}
        self.arrays = package("onnx.numpy_helper", extra="onnx")

    def made_by(self, name: str) -> Any:
        return self.nodes[self.maker[name]] if name in self.maker else None

    def attribute(self, node: Any, name: str, default: Any) -> Any:
        found = [one for one in node.attribute if one.name == name]
        return package("onnx", extra="onnx").helper.get_attribute_value(found[0]) if found else default

    def constant(self, name: str) -> NDArray[Any] | None:
        """Return the numbers of a tensor that does not depend on the images, or None."""
        if name in self.fixed:
            return np.asarray(self.arrays.to_array(self.fixed[name]))
        node = self.made_by(name)
        if node is None:
            return None
        if node.op_type == "Constant":
            value = self.attribute(node, "value", None)
            return None if value is None else np.asarray(self.arrays.to_array(value))
        inner = self.constant(node.input[0]) if node.input else None
        if inner is None or len(node.input) > 1:
            return None
        if node.op_type == "Identity":
            return inner
        if node.op_type == "Transpose":
            return np.transpose(inner, self.attribute(node, "perm", None))
        return None


def read_ending(proto: Any, path: Path) -> OnnxEnding:
    """Return how a file ends.

    Raises
    ------
    DataError
        If no output can be the logits, or several can.
    """
    graph, output = _Graph(proto), _output(proto, path)
    name = output
    logits = output
    while (node := graph.made_by(name)) is not None:
        if node.op_type in SOFT:
            logits = name = node.input[0]
        elif node.op_type in PASSED and not (node.op_type == "Cast" and name == node.input[0]):
            name = node.input[0]
        else:
            break
    ending = _linear(graph, name)
    return OnnxEnding(logits) if ending is None else ending


def _output(proto: Any, path: Path) -> str:
    """Return the name of the output that holds the logits."""
    outputs = list(proto.graph.output)
    found = [one.name for one in outputs if one.type.tensor_type.elem_type in (1, 10, 11)]
    named = [name for name in found if "logit" in name.lower()]
    flat = [one.name for one in outputs if one.name in found and len(one.type.tensor_type.shape.dim) in (0, 2)]
    for names in (found, named, flat):
        if len(names) == 1:
            return str(names[0])
    said = ", ".join(one.name for one in outputs)
    raise DataError(
        f"{path} must have one output with the logits, floating-point numbers of shape (n, n_classes), but has {said}; "
        "export the classifier with its logits alone (a detection model has none)"
    )


def _linear(graph: _Graph, name: str) -> OnnxEnding | None:
    """Return the linear map that makes a tensor, or None if something else does."""
    if name not in graph.maker:
        return None
    number = graph.maker[name]
    node = graph.nodes[number]
    if node.op_type == "Gemm":
        return _gemm(graph, name, number, node)
    if node.op_type == "Add":
        for inner, constant in ((0, 1), (1, 0)):
            bias = graph.constant(node.input[constant])
            made = graph.maker.get(node.input[inner])
            if bias is None or made is None or graph.nodes[made].op_type != "MatMul":
                continue
            matmul = graph.nodes[made]
            weight = graph.constant(matmul.input[1])
            if weight is not None and weight.ndim == 2 and bias.size == weight.shape[1]:
                flat = bias.reshape(-1).astype(np.float32)
                return OnnxEnding(name, matmul.input[0], _float(weight.T), flat, (made, number))
        return None
    if node.op_type == "MatMul":
        weight = graph.constant(node.input[1])
        if weight is not None and weight.ndim == 2:
            return OnnxEnding(name, node.input[0], _float(weight.T), None, (number,))
    return None


def _gemm(graph: _Graph, name: str, number: int, node: Any) -> OnnxEnding | None:
    weight = graph.constant(node.input[1])
    plain = all(graph.attribute(node, key, 1.0) == 1.0 for key in ("alpha", "beta"))
    if weight is None or weight.ndim != 2 or not plain or graph.attribute(node, "transA", 0):
        return None
    weight = weight if graph.attribute(node, "transB", 0) else weight.T
    if len(node.input) < 3 or not node.input[2]:
        return OnnxEnding(name, node.input[0], _float(weight), None, (number,))
    bias = graph.constant(node.input[2])
    if bias is None or bias.size not in (1, len(weight)):
        return None
    flat = np.broadcast_to(bias.reshape(-1), len(weight)).astype(np.float32)
    return OnnxEnding(name, node.input[0], _float(weight), flat, (number,))


def _float(array: NDArray[Any]) -> NDArray[np.float32]:
    return np.ascontiguousarray(array, dtype=np.float32)


def cut_at(proto: Any, name: str) -> bytes:
    """Return a file whose only output is one of its tensors, as bytes; what does not lead there is left out."""
    onnx = package("onnx", extra="onnx")
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    graph, needed, wanted = made.graph, set(), {name}
    for number in range(len(graph.node) - 1, -1, -1):
        node = graph.node[number]
        if wanted & set(node.output):
            needed.add(number)
            wanted |= set(node.input) | _inside(node)
    nodes = [node for number, node in enumerate(graph.node) if number in needed]
    fixed = [one for one in graph.initializer if one.name in wanted]
    del graph.node[:], graph.initializer[:], graph.output[:]
    graph.node.extend(nodes)
    graph.initializer.extend(fixed)
    graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    return bytes(made.SerializeToString())


def _inside(node: Any) -> set[str]:
    """Return the names that the graphs inside a node use of those around it."""
    found: set[str] = set()
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                found |= set(inner.input) | _inside(inner)
    return found


def with_head(proto: Any, ending: OnnxEnding, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> Any:
    """Return a file with another last layer, in the numbers that the old one has."""
    onnx = package("onnx", extra="onnx")
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    graph, look = made.graph, _Graph(proto)
    old = look.constant(look.nodes[ending.nodes[0]].input[1])
    assert old is not None
    names = {one.name for one in graph.initializer} | set(look.maker)
    new = [_free(f"exmap_head_{what}", names) for what in ("weight", "bias")]
    first, last = graph.node[ending.nodes[0]], graph.node[ending.nodes[-1]]
    output = last.output[0]
    kept = onnx.helper.make_node("Gemm", [first.input[0], *new], [output], name=_free("exmap_head", names), transB=1)
    for array, name in zip((weight, bias), new, strict=True):
        graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array, dtype=old.dtype), name))
    for number in sorted(ending.nodes, reverse=True):
        del graph.node[number]
    graph.node.insert(min(ending.nodes[-1] - len(ending.nodes) + 1, len(graph.node)), kept)
    used = {name for node in graph.node for name in (*node.input, *_inside(node))} | {o.name for o in graph.output}
    fixed = [one for one in graph.initializer if one.name in used]
    del graph.initializer[:]
    graph.initializer.extend(fixed)
    onnx.checker.check_model(made)
    return made


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name
