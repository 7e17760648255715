"""A file of weights as people have them: which of its tensors are the model's, and how it is written again.

Nothing in a file is executed: safetensors holds numbers alone, and of what ``torch.save`` wrote only tensors, numbers,
texts and containers of them are made; objects of other classes become empty shells.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from exmap.errors import CheckpointError
from exmap.model.pickled import Shell, read_torch, state_of
from exmap.model.rows import expanded, rows_for
from exmap.model.safe import load_tensors

__all__ = ["WeightsFile"]

DEEPEST = 3  # containers inside containers
COMPILED = "_orig_mod."
COUNTERS = ("num_batches_tracked", "total_ops", "total_params", "position_ids", "relative_position_index")
NAMED = 3  # so many of each kind are named in a sentence


@dataclass(frozen=True, eq=False)
class WeightsFile:
    """A file of weights, read for a model.

    Attributes
    ----------
    path : Path
    kind : "safetensors" or "torch"
    container : tuple of str
        The keys on the way to the weights, such as ``("state_dict",)`` of Lightning; empty where they lie at the top.
    prefix : str
        What most of the model's names have before them in the file, such as ``module.``.
    names : mapping of str to str
        The file's name of a tensor by the model's name.
    tensors : mapping of str to Tensor
        By the model's name.
    extra : mapping of str to Tensor
        What else has that prefix, by the file's name.
    beside : tuple of str
        Other containers of the file that also hold weights of the model, such as an average of them.
    content : object
        All that the file holds, where it is torch's.
    metadata : mapping of str to str
        Of a safetensors file.
    """

    path: Path
    kind: str
    container: tuple[str, ...]
    prefix: str
    names: Mapping[str, str]
    tensors: Mapping[str, torch.Tensor]
    extra: Mapping[str, torch.Tensor]
    beside: tuple[str, ...]
    content: Any
    metadata: Mapping[str, str]

    @classmethod
    def read(cls, path: Path, model: nn.Module) -> WeightsFile:
        """Read a file, and find the tensors in it whose names match the model's best.

        Parameters
        ----------
        path : Path
            Safetensors, or what ``torch.save`` wrote: of a state dict, a checkpoint that holds one, or a whole module.
        model : torch.nn.Module

        Raises
        ------
        CheckpointError
            If the file cannot be read, or holds no weights of the model.
        """
        expected = model.state_dict()
        kind, content, metadata = _content(path)
        found = [(where, _matched(state, expected)) for where, state in _states(content)]
        if not found:
            raise CheckpointError(
                f"{path} must hold the weights of a model by name, but holds {_held(content)}; save model.state_dict()"
            )
        ranked = sorted(found, key=lambda pair: _rank(pair[0], pair[1], expected))
        where, best = ranked[0]
        if not best.names and expected:
            raise CheckpointError(
                f"{path} must hold weights of the model, but no name in it is one of the model's: it has "
                f"{_few(best.state)}, the model {_few(expected)}; it belongs to another architecture, or its names "
                "were changed: build the model it was saved from"
            )
        full = len(best.names)
        beside = tuple(".".join(other) for other, one in ranked[1:] if len(one.names) == full and other)
        tensors = {name: best.state[key] for name, key in best.names.items()}
        return cls(path, kind, where, best.prefix, best.names, tensors, best.extra, beside, content, metadata)

    def state_for(
        self, model: nn.Module, outputs: Sequence[int] = (), *, halved: bool = False
    ) -> dict[str, torch.Tensor]:
        """Return the model's state with the weights of the file.

        Parameters
        ----------
        model : torch.nn.Module
        outputs : sequence of int
            Which rows of the file's last layer are those of the model; all if not given.
        halved : bool
            Whether the one output of a classifier of two classes may become the two of the model.

        Raises
        ------
        CheckpointError
            If tensors are missing, too many, or of other shapes: a few of each are named.
        """
        expected = model.state_dict()
        state: dict[str, torch.Tensor] = {}
        wrong = {}
        for name, tensor in expected.items():
            found = self.tensors.get(name)
            fitting = None if found is None else rows_for(found, tuple(tensor.shape), outputs, halved=halved)
            if fitting is not None:
                state[name] = fitting
            elif found is not None:
                wrong[name] = (tuple(tensor.shape), tuple(found.shape))
        self._check(expected, wrong, outputs)
        self._check_kinds(expected)
        ready = getattr(model, "unneeded_weights", ())
        missing = [name for name in expected if name not in self.tensors and not name.endswith(COUNTERS)]
        extra = [n for n in self.extra if not n.endswith(COUNTERS) and not n[len(self.prefix) :].startswith(ready)]
        if missing:
            name = missing[0]
            raise CheckpointError(
                f"{self.path} has no layer {name!r}, which the model has with shape {tuple(expected[name].shape)}"
                f"{_others(missing, 'are missing')}; it belongs to another architecture: build the model it was saved "
                "from"
            )
        if extra:
            shape = tuple(self.extra[extra[0]].shape)
            raise CheckpointError(
                f"{self.path} has a layer {extra[0]!r} of shape {shape} that the model lacks"
                f"{_others(extra, 'are too much')}; it belongs to another architecture: build the model it was saved "
                "from"
            )
        return {name: state.get(name, tensor) for name, tensor in expected.items()}

    def _check(
        self,
        expected: Mapping[str, torch.Tensor],
        wrong: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]],
        outputs: Sequence[int],
    ) -> None:
        """Refuse other shapes, and say where it is the number of classes alone."""
        if not wrong:
            return
        sizes = {(had[:1], has[:1]) for had, has in wrong.values() if had[1:] == has[1:] and had and has}
        name, (has, had) = next(iter(wrong.items()))
        few = len(wrong) <= max(2, len(expected) // 4)
        if len(sizes) == 1 and all(a[1:] == b[1:] for a, b in wrong.values()) and few and len(wrong) < len(expected):
            (model_has,), (file_has,) = next(iter(sizes))
            if outputs:
                remedy = f"the outputs must be 0 to {file_has - 1}, got {', '.join(map(str, outputs))}; correct them"
            else:
                remedy = (
                    "give the classes that it was trained on, or name the outputs that are the classes, in their "
                    "order, by model.outputs (--outputs)"
                )
            raise CheckpointError(
                f"the weights in {self.path} are of a classifier with another number of classes, {file_has} where the "
                f"model has {model_has} (layer {name!r} has shape {had} there and {has} in the model); {remedy}"
            )
        more = [n for n in wrong if n != name]
        also = (
            f" (nor do the shapes of {len(more)} more fit, such as {', '.join(map(repr, more[:NAMED]))})"
            if more
            else ""
        )
        raise CheckpointError(
            f"layer {name!r} has shape {has} in the model and {had} in {self.path}{also}; the weights belong to "
            "another architecture: build the model they were saved from"
        )

    def _check_kinds(self, expected: Mapping[str, torch.Tensor]) -> None:
        """Refuse weights of another kind of numbers, which would be cast without a word."""
        for name, tensor in expected.items():
            found = self.tensors.get(name)
            if found is not None and tensor.is_floating_point() and not found.is_floating_point():
                raise CheckpointError(
                    f"layer {name!r} must hold floating-point numbers, but holds {_kind(found)} in {self.path}; give "
                    "the weights as they were trained, not counted in whole numbers"
                )

    def changed(self, changes: Mapping[str, torch.Tensor], outputs: Sequence[int] = ()) -> tuple[Any, tuple[str, ...]]:
        """Return what to write so that the file is the same but for some tensors, and what had to be left out.

        Parameters
        ----------
        changes : mapping of str to Tensor
            By the model's name; a name that the file lacks is added with the file's prefix.
        outputs : sequence of int
            As they were read; the file's other rows stay.

        Returns
        -------
        object
            A state dict, or the whole content with it at its place.
        tuple of str
            Entries of the file whose content was not read, and which are therefore not in it.
        """
        inner: Any = self.content
        for key in self.container:
            inner = inner[key]
        state = dict(state_of(inner)) if isinstance(inner, Shell) else dict(inner)
        for name, tensor in changes.items():
            key = self.names.get(name, self.prefix + name)
            old = state.get(key)
            state[key] = tensor.detach().cpu().clone() if old is None else expanded(old, tensor, outputs)
        if not self.container or isinstance(self.content, Shell):
            return state, ()
        return _replaced(self.content, self.container, state)


@dataclass(frozen=True, eq=False)
class _Matched:
    """The tensors of one container beside the names of a model."""

    state: Mapping[str, torch.Tensor]
    prefix: str
    names: Mapping[str, str]
    extra: Mapping[str, torch.Tensor]


def _content(path: Path) -> tuple[str, Any, Mapping[str, str]]:
    """Return the kind of a file, what it holds, and its metadata."""
    if path.is_dir():
        raise CheckpointError(f"weights are given as a file, but {path} is a folder; name the file in it")
    if not path.is_file():
        raise CheckpointError(f"weights file {path} does not exist; give an existing safetensors file")
    with path.open("rb") as file:
        start = file.read(2)
    if start in {b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"}:
        return "torch", read_torch(path), {}
    tensors, metadata = load_tensors(path)
    return "safetensors", tensors, metadata


def _states(content: Any, where: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Mapping[str, torch.Tensor]]]:
    """Yield all containers of tensors in a file, with the way to them."""
    if isinstance(content, Shell):
        state = state_of(content)
        if state:
            yield where, state
        content = content.items
    if not isinstance(content, Mapping):
        return
    state = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}
    if state:
        yield where, state
    if len(where) < DEEPEST:
        for key, value in content.items():
            if isinstance(key, str) and isinstance(value, (Mapping, Shell)):
                yield from _states(value, (*where, key))


def _matched(state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> _Matched:
    """Return which tensors are the model's: by the prefix, of the file's names or of the model's, that most have."""
    plain = {name.replace(COMPILED, ""): name for name in expected}
    keys: dict[str, str] = {}
    for key in state:
        keys.setdefault(key.replace(COMPILED, ""), key)
    votes: Counter[tuple[str, str]] = Counter()
    for key in keys:
        votes.update((before, "") for before, after in _endings(key) if after in plain)
    for name in plain:
        votes.update(("", before) for before, after in _endings(name) if before and after in keys)

    def rank(pair: tuple[str, str]) -> tuple[int, bool, int]:
        return -votes[pair], "ema" in pair[0].lower(), len(pair[0]) + len(pair[1])

    removed, added = min(votes, key=rank) if votes else ("", "")
    names = {}
    for short, name in plain.items():
        key = removed + short if not added else short.removeprefix(added)
        if key in keys and (not added or short.startswith(added)):
            names[name] = keys[key]
    used = set(names.values())
    extra = {key: state[key] for short, key in keys.items() if short.startswith(removed) and key not in used}
    first = next(iter(names.items()), None)
    prefix = removed if first is None or added else first[1][: len(first[1]) - len(first[0])] or removed
    if first is not None and not added and not first[1].endswith(first[0]):
        prefix = removed
    return _Matched(state, prefix, names, extra)


def _endings(name: str) -> Iterator[tuple[str, str]]:
    """Yield a dotted name cut before each of its parts."""
    place = 0
    while True:
        yield name[:place], name[place:]
        dot = name.find(".", place)
        if dot < 0:
            return
        place = dot + 1


def _rank(where: tuple[str, ...], one: _Matched, expected: Mapping[str, torch.Tensor]) -> tuple[int, bool, int]:
    """Return what orders containers: most matches first, then weights before their average, then the outer one."""
    same = sum(one.state[key].shape[1:] == expected[name].shape[1:] for name, key in one.names.items())
    average = any("ema" in part.lower() or "swa" in part.lower() for part in (*where, one.prefix))
    return -same, average, len(where)


def _replaced(content: Any, way: Sequence[str], state: Mapping[str, torch.Tensor]) -> tuple[Any, tuple[str, ...]]:
    """Return a copy of what a file holds with another state at its place, without what is an empty shell."""
    made: dict[Any, Any] = {}
    left = []
    for key, value in content.items():
        if key == way[0]:
            inner, more = (dict(state), ()) if len(way) == 1 else _replaced(value, way[1:], state)
            made[key] = inner
            left += [f"{key}.{name}" for name in more]
        elif _holds_shell(value):
            left.append(str(key))
        else:
            made[key] = value
    return made, tuple(left)


def _holds_shell(value: Any) -> bool:
    if isinstance(value, Shell):
        return True
    if isinstance(value, Mapping):
        return any(_holds_shell(one) for pair in value.items() for one in pair)
    return isinstance(value, (list, tuple, set)) and any(_holds_shell(one) for one in value)


def _kind(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _held(content: Any) -> str:
    if isinstance(content, Mapping) and content:
        return f"a {type(content).__name__} of {_few(content)}"
    return f"a {content.name}" if isinstance(content, Shell) else f"a {type(content).__name__}"


def _few(names: Mapping[Any, Any]) -> str:
    keys = list(map(repr, names))
    return ", ".join(keys[:NAMED]) + (f" and {len(keys) - NAMED} more" if len(keys) > NAMED else "")


def _others(names: Sequence[str], what: str) -> str:
    """Return the rest of a sentence that names the first of several."""
    if len(names) == 1:
        return ""
    return f" ({len(names)} {what}, among them {', '.join(map(repr, names[1 : 1 + NAMED]))})"
