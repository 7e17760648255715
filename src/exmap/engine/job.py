"""What is computed of a split, and the shards that it is computed in: each is a split of its own."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from exmap.data.dataset import Split
from exmap.data.images import taken_alone
from exmap.explain import explain_split
from exmap.model import collect_outputs
from exmap.model.running import explained_at_once, images_at_once, model_device
from exmap.records import Explained
from exmap.settings import ExplainSettings

__all__ = ["Job", "Shard", "alone", "shards_of"]

PIXELS = 2**26  # of a shard: 1,337 images of 224 pixels a side
LEAST, MOST = 256, 8192  # images of a shard
NOT_AGAIN = 1e6  # of explain.tolerance


@dataclass(frozen=True)
class Shard:
    """Consecutive images of a split.

    Attributes
    ----------
    number, of : int
        Position among all shards, from 0, and how many there are.
    start, stop : int
        Images from `start` up to but not including `stop`.
    """

    number: int
    of: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def shards_of(split: Split, at_once: int, size: int | None = None) -> list[Shard]:
    """Divide a split into shards of whole batches, so that every batch is one that a single process would make.

    Parameters
    ----------
    split : Split
    at_once : int
        Images in a batch.
    size : int, optional
        Images in a shard; by default as many as make 2**26 pixels, from 256 to 8,192. It is rounded up to whole
        batches, which are then divided evenly, so that no shard is much smaller than the others.
    """
    _, height, width = split.images.shape
    wanted = size or min(max(PIXELS // (height * width), LEAST), MOST)
    batches = -(-len(split) // at_once)
    count = -(-batches // -(-wanted // at_once))
    ends = [min(at_once * (batches * n // count), len(split)) for n in range(count + 1)] if count else []
    return [Shard(n, count, start, stop) for n, (start, stop) in enumerate(itertools.pairwise(ends))]


def alone(split: Split, shard: Shard) -> Split:
    """Return the images of a shard as a split that holds nothing of the others, and no true groups."""
    rows = np.arange(shard.start, shard.stop, dtype=np.int64)
    return Split(
        split.name,
        taken_alone(split.images, rows),
        split.labels[rows],
        split.ids[shard.start : shard.stop],
        split.class_names,
    )


@dataclass(frozen=True, eq=False)
class Job:
    """What is computed of every image of a split.

    Attributes
    ----------
    model : torch.nn.Module
    settings : ExplainSettings or None
        How images are explained; None for features and logits alone.
    at_once : int
        Images in a batch.
    explainer : object, optional
        In the place of the one that the settings name.
    """

    model: nn.Module
    settings: ExplainSettings | None
    at_once: int
    explainer: Any = None

    @classmethod
    def of(cls, model: nn.Module, split: Split, settings: ExplainSettings | None, explainer: Any = None) -> Job:
        """Return the job of a split, with the batches that this process would make."""
        device = model_device(model)
        if settings is None:
            return cls(model, None, images_at_once(split, device), explainer)
        _, height, width = split.images.shape
        return cls(model, settings, explained_at_once(height, width, settings.batch_size, device), explainer)

    @property
    def key(self) -> str:
        """What tells its results from those of other weights and settings."""
        settings = None if self.settings is None else self.settings.model_dump(mode="json")
        digest = hashlib.sha256(json.dumps([settings, type(self.model).__qualname__], sort_keys=True).encode())
        for name, tensor in self.model.state_dict().items():
            digest.update(name.encode())
            if isinstance(tensor, torch.Tensor):
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def __call__(self, piece: Split, *, first: bool) -> Explained:
        """Return what is computed of the images of a shard.

        Parameters
        ----------
        piece : Split
            As :func:`alone` returns it.
        first : bool
            Whether it is the first shard, whose first images prove that relevance adds up for all shards.

        Raises
        ------
        ExMapError
            What :func:`exmap.explain.explain_split` and :func:`exmap.model.collect_outputs` raise.
        """
        if self.settings is None:
            outputs = collect_outputs(self.model, piece, batch_size=self.at_once)
            return Explained(piece.name, piece.ids, piece.labels, piece.class_names, outputs)
        changes: dict[str, Any] = {"batch_size": self.at_once}
        if not first:
            changes["tolerance"] = NOT_AGAIN
        maps, outputs = explain_split(
            self.model, piece, self.settings.model_copy(update=changes), explainer=self.explainer
        )
        return Explained(piece.name, piece.ids, piece.labels, piece.class_names, outputs, maps)
