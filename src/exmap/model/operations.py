"""Operations by what they are to a linear map: what it may be exchanged with, and what is one itself.

Names are those of :func:`exmap.model.trace.operation_name`. What they do is looked at when they run; the names only say
what is worth looking at.
"""

from __future__ import annotations

import torch

from exmap.model.trace import Call, Trace

__all__ = ["AROUND", "FACTORS", "JOINS", "LINEAR", "POOLS", "PROBABILITIES", "SHAPES", "matrix_of", "owner_of"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


SHAPES = _words(
    """
    view reshape flatten unflatten squeeze unsqueeze permute transpose swapaxes swapdims movedim moveaxis t T mT
    contiguous clone detach alias to to_copy type type_as float double half bfloat16 cpu cuda __getitem__ select narrow
    index_select slice flip chunk split unbind tensor_split view_as reshape_as ravel expand identity
    dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout
    """
)
POOLS = _words("mean sum avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d")
FACTORS = _words(
    """
    mul multiply div divide true_divide add sub subtract rsub neg negative positive batch_norm
    __mul__ __rmul__ __truediv__ __add__ __radd__ __sub__ __rsub__ __neg__ __pos__
    __imul__ __iadd__ __isub__ __itruediv__
    """
)
PROBABILITIES = _words("softmax log_softmax sigmoid expit log_sigmoid logsigmoid")
AROUND = _words("log exp clamp clip clamp_min nan_to_num add __add__ __radd__")  # of probabilities: monotone
JOINS = _words("cat concat concatenate stack hstack column_stack")
LINEAR = _words("linear matmul mm __matmul__ addmm einsum conv1d conv2d conv3d convolution")


def matrix_of(call: Call) -> tuple[torch.Tensor, torch.Tensor | None] | None:
    """Return weight (K, D) and bias (K,) of a linear operation, or None if it is no map of one position's features."""
    tensors = [tensor for tensor, _ in call.operands]
    others = [tensor for number, tensor in enumerate(tensors) if number not in call.data]
    if not others or not all(tensor.is_floating_point() for tensor in tensors):
        return None
    if call.name == "addmm" and len(tensors) == 3 and call.data == [1]:
        return tensors[2].T, tensors[0]
    if call.name == "einsum":
        return _einsum_matrix(call, others)
    if call.data != [0]:
        return None
    weight, bias = others[0], others[1] if len(others) > 1 else None
    if call.name.startswith("conv"):
        one = weight.ndim > 2 and weight[0, 0].numel() == 1 and weight.shape[1] == tensors[0].shape[1]
        return (weight.flatten(1), bias) if one else None
    if call.name == "linear":
        return weight, bias
    return (weight.T, None) if weight.ndim == 2 else None


def _einsum_matrix(call: Call, others: list[torch.Tensor]) -> tuple[torch.Tensor, None] | None:
    """Return the matrix of an einsum over the last dimension of its data."""
    if len(others) != 1 or others[0].ndim != 2 or not isinstance(call.args[0], str):
        return None
    inputs, _, result = call.args[0].replace(" ", "").partition("->")
    terms = inputs.split(",")
    if len(terms) != 2 or not result:
        return None
    data, matrix = terms[call.data[0]], terms[1 - call.data[0]]
    if data[-1:] == matrix[1:] and result[-1:] == matrix[:1]:
        return others[0], None
    if data[-1:] == matrix[:1] and result[-1:] == matrix[1:]:
        return others[0].T, None
    return None


def owner_of(trace: Trace, site: Call) -> tuple[str, tuple[str, bool, str] | None]:
    """Return the module that owns the parameter of an operation, and its parameters where they are used whole."""
    names = {id(p): name for name, p in trace.model.named_parameters()}
    used = [operand for number, operand in enumerate(site.operands) if number not in site.data]
    if site.name == "addmm":
        used.reverse()
    weight, transposed = _leaf(*used[0])
    name = names.get(id(weight))
    if name is None:
        return site.module, None
    matrix = matrix_of(site)
    assert matrix is not None
    whole = weight is not None and weight.numel() == matrix[0].numel() and all(id(t) in names for t, _ in used[1:])
    is_transposed = transposed != (site.name not in {"linear", "einsum"} and not site.name.startswith("conv"))
    bias = names[id(used[1][0])] if whole and len(used) > 1 else ""
    simple = whole and bool(bias) and site.name != "einsum"
    return name.rpartition(".")[0], (name, is_transposed, bias) if simple else None


def _leaf(tensor: torch.Tensor, call: Call | None) -> tuple[torch.Tensor | None, bool]:
    """Return the parameter that a tensor is a view of, if it is one, and whether it is transposed."""
    transposed = False
    while call is not None and call.name in {"t", "T", "mT", "transpose", "permute", "detach", "to"}:
        transposed ^= call.name not in {"detach", "to"}
        tensor, call = call.operands[0]
    return (tensor if call is None else None), transposed
