"""Images that a user holds in Python: arrays, torch data sets and loaders, Hugging Face data sets, as a split.

They are read when they are asked for, and never changed or shuffled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, Subset

from exmap.data.arrays import as_array, label_index
from exmap.data.catalog import build_task
from exmap.data.dataset import Split, array_split
from exmap.data.items import Item, ItemImages, image_array, item_of
from exmap.data.named_items import (
    class_names_of,
    column_labels,
    known_labels,
    own_transform,
    paths_of,
    plain_columns,
    short_paths,
)
from exmap.data.preprocess import Preprocess
from exmap.data.words import data_settings_of
from exmap.errors import DataError, shown
from exmap.records import IntArray, Listener, Progress, silent
from exmap.settings import ImageSettings

__all__ = ["as_split"]

FORMS = (
    "a Split, arrays (images, labels), a torch Dataset or DataLoader of images and labels, a Hugging Face data set, or "
    "the path of images"
)
IN_MEMORY = 20_000  # images of a stream that are read without a limit of the user's


def as_split(
    images: Any,
    *,
    name: str = "val",
    class_names: Sequence[str] | None = None,
    transform: Any = None,
    limit: int | None = None,
    listen: Listener = silent,
) -> Split:
    """Return what a user holds as a split.

    Parameters
    ----------
    images : object
        A :class:`Split`; arrays ``(images, labels)``; torchvision's ``ImageFolder`` or any torch ``Dataset`` of
        (image, label), or of dicts, or a ``Subset`` of one; a ``DataLoader``, whose data set is read in its own order;
        a Hugging Face ``Dataset``; or a path, as the command line takes it. Arrays have shape (N, C, H, W), or
        (N, H, W, C) where only that has 1 to 4 channels; bytes are read as [0, 1], other numbers as they are.
    name : str
        ``train``, ``val`` or ``test``.
    class_names : sequence of str, optional
        In the order of the classifier's outputs; by default what the data set calls them, or numbers.
    transform : callable, optional
        What makes a model's input of an image, where the data set does not; see
        :class:`exmap.data.preprocess.Preprocess`.
    limit : int, optional
        Most images to take: of a data set some at random, of a stream the first. A stream without an end, or of more
        than 20,000 images, needs it.
    listen : Listener

    Returns
    -------
    Split

    Raises
    ------
    DataError
        If the images or labels cannot be read as such.
    """
    preprocess = None if transform is None else Preprocess.of(transform)
    if limit is not None and limit < 1:
        raise DataError(f"limit must be at least 1, got {limit}")
    if isinstance(images, Split):
        split = replace(images, name=name)
    elif isinstance(images, (str, Path)):
        split = _of_path(images, name, class_names, preprocess, listen)
    elif _are_arrays(images):
        split = _of_arrays(images[0], images[1], name, class_names, preprocess)
    elif isinstance(images, Mapping):
        kinds = ", ".join(map(str, images))
        raise DataError(
            f"one set of images is needed, but here are several ({kinds}); give one of them, as images[...]"
        )
    elif isinstance(images, DataLoader):
        split = _of_loader(images, name, class_names, preprocess, limit, listen)
    elif isinstance(images, IterableDataset) or not hasattr(images, "__getitem__"):
        if not hasattr(images, "__iter__"):
            raise DataError(f"images are given as {FORMS}, got {type(images).__name__}")
        split = _of_stream(images, name, class_names, preprocess, limit, listen)
    else:
        split = _of_dataset(images, None, name, class_names, preprocess, limit, 0, listen)
    if not len(split):
        raise DataError("one image or more is needed, found none; give a data set that holds some")
    if limit is not None and len(split) > limit:
        split = split.rows(_some(len(split), limit))
    return _named(split, class_names)


def _are_arrays(images: Any) -> bool:
    """Return whether these are (images, labels), and not two items that are each an image and its label."""
    if not isinstance(images, (tuple, list)) or len(images) != 2:
        return False
    return isinstance(images, tuple) or not isinstance(images[0], (tuple, list, Mapping))


def _some(total: int, limit: int | None) -> IntArray:
    if limit is None or total <= limit:
        return np.arange(total, dtype=np.int64)
    return np.sort(np.random.default_rng(0).choice(total, limit, replace=False)).astype(np.int64)


def _named(split: Split, class_names: Sequence[str] | None) -> Split:
    if class_names is None or split.class_names == tuple(class_names):
        return split
    return replace(split, class_names=tuple(class_names), truth=None)


def _of_path(
    path: str | Path, name: str, class_names: Sequence[str] | None, preprocess: Preprocess | None, listen: Listener
) -> Split:
    settings = data_settings_of(path).model_copy(update={"one_set": True, "classes": tuple(class_names or ())})
    task = build_task(settings, ImageSettings(), preprocess=preprocess, listen=listen)
    return replace(task.val, name=name, notes=task.notes)


def _of_arrays(
    images: Any, labels: Any, name: str, class_names: Sequence[str] | None, preprocess: Preprocess | None
) -> Split:
    pixels = as_array(images, "images")
    names, index, notes = label_index(labels, class_names)
    if pixels.ndim == 0 or len(index) != len(pixels):
        count = f"{len(pixels)} images" if pixels.ndim else shown(images)
        raise DataError(f"there must be one label per image, got {len(index)} for {count}")
    if preprocess is not None or (pixels.dtype == object and len(pixels) and hasattr(pixels[0], "convert")):
        items = [(pixels[i], int(index[i])) for i in range(len(pixels))]
        return replace(_of_dataset(items, None, name, names, preprocess, None, 0, silent), notes=notes)
    split = array_split(pixels, index, name=name, class_names=names)
    return replace(split, notes=(*notes, *split.notes))


def _of_loader(
    loader: DataLoader[Any],
    name: str,
    class_names: Sequence[str] | None,
    preprocess: Preprocess | None,
    limit: int | None,
    listen: Listener,
) -> Split:
    """Read the data set of a loader, in its own order."""
    dataset: Any = loader.dataset
    if isinstance(dataset, IterableDataset):
        return _of_stream(loader, name, class_names, preprocess, limit, listen)
    chosen = getattr(loader.sampler, "indices", None)  # of a SubsetRandomSampler
    if chosen is not None:
        dataset = Subset(dataset, sorted(set(np.asarray(chosen).tolist())))
    return _of_dataset(dataset, loader.collate_fn, name, class_names, preprocess, limit, loader.num_workers, listen)


def _of_stream(
    stream: Iterable[Any],
    name: str,
    class_names: Sequence[str] | None,
    preprocess: Preprocess | None,
    limit: int | None,
    listen: Listener,
) -> Split:
    """Read images that come one after the other, or in batches, once, and keep them."""
    arrays: list[NDArray[np.float32]] = []
    labels: list[Any] = []
    most = IN_MEMORY if limit is None else limit
    for item in _singles(stream):
        if len(arrays) == most:
            if limit is None:
                raise DataError(
                    f"the stream of images has more than {IN_MEMORY:,}, and each is kept in memory; say how many to "
                    "take by limit=, or give a data set that can be indexed"
                )
            break
        arrays.append(image_array(item.image, preprocess, f"image {len(arrays)}"))
        if arrays[-1].shape != arrays[0].shape:
            raise DataError(
                f"all images must have one shape, but image {len(arrays) - 1} of the stream has {arrays[-1].shape} and "
                f"the first {arrays[0].shape}; give a transform that resizes and crops"
            )
        labels.append(item.label)
        listen(Progress("reading images", len(arrays), most))
    if not arrays:
        raise DataError("the stream of images is empty, or was read before; give one that can be read again")
    names, index, notes = label_index(labels, class_names or class_names_of(getattr(stream, "dataset", stream)))
    split = array_split(np.stack(arrays), index, name=name, class_names=names)
    return replace(split, notes=(*notes, *split.notes))


def _singles(stream: Iterable[Any]) -> Iterator[Item]:
    """Yield the items of a stream, those of batches one by one."""
    for given in stream:
        item = item_of(given)
        image, label = item
        batched = getattr(image, "ndim", 0) == 4
        if not batched:
            yield item
            continue
        for place in range(len(image)):
            yield Item(image[place], label[place])


def _of_dataset(
    dataset: Any,
    collate: Any,
    name: str,
    class_names: Sequence[str] | None,
    preprocess: Preprocess | None,
    limit: int | None,
    workers: int,
    listen: Listener,
) -> Split:
    """Read a data set that can be indexed, when images are asked for."""
    try:
        total = len(dataset)
    except TypeError as error:
        raise DataError(f"a data set must have a length, but {type(dataset).__name__} has none; give limit=") from error
    if not total:
        raise DataError("the data set of images is empty; give one that holds some")
    rows = _some(total, limit)
    hugging = hasattr(dataset, "features") and hasattr(dataset, "with_format")
    looked_at = preprocess or own_transform(dataset)
    images = ItemImages.of(dataset, rows, preprocess, looked_at, collate=collate, workers=workers)
    known = column_labels(dataset, rows) if hugging else known_labels(dataset, rows)
    if known is None or not _agree(images, known):
        known = _read_labels(images, listen)
    names, index, notes = label_index(known, class_names or class_names_of(dataset))
    paths = paths_of(dataset)
    ids = tuple(f"{name}/{row:06d}" for row in rows.tolist())
    if paths is not None:
        images = replace(images, paths=tuple(paths[row] for row in rows.tolist()))
        if len(set(images.paths)) == len(images.paths):
            ids = short_paths(images.paths)
    metadata = plain_columns(dataset, rows) if hugging else {}
    return Split(name, images, index, ids, names, metadata=metadata, notes=notes)


def _agree(images: ItemImages, labels: Sequence[Any]) -> bool:
    """Return whether some of the items have those labels: the data set may change them."""
    places = np.unique(np.linspace(0, len(labels) - 1, 4).astype(np.int64)).tolist()
    return all(images.item(place).label == labels[place] for place in places)


def _read_labels(images: ItemImages, listen: Listener) -> list[Any]:
    labels = []
    for place in range(len(images)):
        labels.append(images.item(place).label)
        listen(Progress("reading labels", place + 1, len(images)))
    return labels
