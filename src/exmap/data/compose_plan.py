"""Which cut-outs go onto which backgrounds: sources, their splits, and a row per image to be made."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from pathlib import Path

import numpy as np

from exmap.data.regular import open_regular
from exmap.errors import DataError, SettingsError, unknown_name
from exmap.runtime import generator

__all__ = ["LAYOUTS", "Recipe", "SPLITS", "Row", "Source", "folder_names", "group_kinds", "plan_rows", "read_sources"]

LAYOUTS = {"waterbirds": (0.95, 0.5, 0.5), "urbancars": (0.95, 0.95, 0.5)}  # with their correlations
SPLITS = ("train", "val", "test")
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class Recipe:
    """What to compose from what.

    Attributes
    ----------
    layout : str
        ``waterbirds`` or ``urbancars``.
    foregrounds : Path
        A folder per class with images that have transparency, or that have a mask in `masks`.
    backgrounds : Path
        A folder per kind. In the order of their names, class k goes with kind k.
    objects : Path or None
        A folder per kind of co-occurring object, cut out like the foregrounds; for ``urbancars`` only.
    masks, object_masks : Path or None
        The tree of `foregrounds` or `objects` again, with masks of the same stems: white is kept, grey is blended. A
        mask replaces the image's own transparency.
    sizes : tuple of 3 int, or None
        Images for train, val and test, spread evenly over the classes. None uses every cut-out once.
    correlation : tuple of 3 float in [1 / classes, 1], or None
        Per split, the share of a class that goes with its own background, and with its own object. None takes the
        layout's: 0.95, 0.5, 0.5 for ``waterbirds`` and 0.95, 0.95, 0.5 for ``urbancars``.
    side : int, at least 32
        Height and width in pixels for ``urbancars``; in ``waterbirds`` an image has its cut-out's size.

    Raises
    ------
    SettingsError
        For an unknown layout.
    DataError
        For parts that do not fit the layout.
    """

    layout: str
    foregrounds: Path
    backgrounds: Path
    objects: Path | None = None
    masks: Path | None = None
    object_masks: Path | None = None
    sizes: tuple[int, int, int] | None = None
    correlation: tuple[float, float, float] | None = None
    side: int = 256

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise SettingsError(unknown_name("layout", self.layout, LAYOUTS))
        if self.layout == "waterbirds" and (self.objects or self.object_masks):
            raise DataError(
                "the layout waterbirds must have no co-occurring objects, but a folder of them was given; leave it "
                "out, or choose the layout urbancars"
            )
        if self.layout == "urbancars" and not self.objects:
            raise DataError(
                "the layout urbancars must have a folder of co-occurring objects, but none was given; name one, or "
                "choose the layout waterbirds"
            )
        for what, values in (("sizes", self.sizes), ("correlation", self.correlation)):
            if values is not None and len(values) != len(SPLITS):
                raise DataError(f"{what} must have one value each for train, val and test, got {len(values)}")
        train, val, _ = self.shares
        if self.layout == "urbancars" and train != val:
            raise DataError(
                "in the layout urbancars train and val share a folder that is named after their correlation, which "
                f"must be one, got {train} and {val}; give both the same"
            )
        if self.side < 32:
            raise DataError(f"side must be at least 32 pixels, got {self.side}; choose a larger one")

    @property
    def shares(self) -> tuple[float, float, float]:
        """The correlation of each split: the given one or the layout's own."""
        return self.correlation or LAYOUTS[self.layout]


@dataclass(frozen=True)
class Source:
    """A folder of images by kind; files are named relative to it, their masks relative to the folder of masks."""

    what: str
    folder: Path
    kinds: dict[str, list[str]]
    masks: dict[str, str]
    mask_folder: Path | None
    digest: str
    left_out: list[str]

    def mask(self, name: str) -> Path | None:
        """Return where the mask of a picture lies, if it has one."""
        return self.mask_folder / self.masks[name] if self.mask_folder and name in self.masks else None

    def summary(self) -> dict[str, object]:
        """Return what the manifest says of the source."""
        files = {kind: len(names) for kind, names in self.kinds.items()}
        return {"files": files, "sha256": self.digest, "left_out_as_duplicates": self.left_out}


@dataclass(frozen=True)
class Row:
    """One image to make. `kinds` holds the positions of its background and, if there is one, its object."""

    id: int
    image: str
    split: str
    label: int
    kinds: tuple[int, ...]
    cut_out: str
    shown: tuple[str, ...]  # the files of its background and object


class _Pool:
    """Files to draw from; none comes again before all have come."""

    def __init__(self, files: Sequence[str], rng: np.random.Generator) -> None:
        self.files, self.rng = files, rng
        self.left: list[str] = []

    def draw(self, avoid: Collection[str] = ()) -> str:
        """Return the next file, if possible none of those to avoid."""
        if not self.left:
            self.left = [self.files[i] for i in self.rng.permutation(len(self.files))]
        position = next((i for i, file in enumerate(self.left) if file not in avoid), 0)
        return self.left.pop(position)


def read_sources(recipe: Recipe) -> list[Source]:
    """Return what the foregrounds, backgrounds and, if there are any, objects hold."""
    given = [("foregrounds", recipe.foregrounds, recipe.masks), ("backgrounds", recipe.backgrounds, None)]
    if recipe.objects:
        given.append(("objects", recipe.objects, recipe.object_masks))
    classes, *others = kinds = [_kinds(what, folder) for what, folder, _ in given]
    if len(classes) < 2:
        raise DataError(f"foregrounds {recipe.foregrounds} must hold a folder for each of 2 or more classes, found 1")
    for (what, folder, _), found in zip(given[1:], others, strict=True):
        if len(found) != len(classes):
            raise DataError(
                f"{what} {folder} must hold as many folders as there are classes, {len(classes)} "
                f"({', '.join(classes)}), found {len(found)} ({', '.join(found)}); merge, add or remove some"
            )
    if recipe.layout == "urbancars":
        for name in (name for found in kinds for name in found):
            if "_bg-" in name or "_co_occur_obj-" in name:
                raise DataError(
                    "in the layout urbancars folder names must not contain '_bg-' or '_co_occur_obj-', which part its "
                    f"own names, found {name!r}; rename it"
                )
    _check_numbers(recipe, len(classes))
    return [_source(*place, names) for place, names in zip(given, kinds, strict=True)]


def _check_numbers(recipe: Recipe, n_classes: int) -> None:
    """Refuse a correlation or a size that the number of classes does not allow."""
    for split, share in zip(SPLITS, recipe.shares, strict=True):
        if not 1 / n_classes <= share <= 1:
            raise DataError(
                f"correlation must lie in [{1 / n_classes:.3g}, 1] for {n_classes} classes, got {share} for {split}; "
                "choose one in between"
            )
    for split, size in zip(SPLITS, recipe.sizes or (), strict=False):
        if size < n_classes:
            raise DataError(
                f"sizes must leave an image for each of {n_classes} classes in every split, got {size} for {split}; "
                f"choose at least {n_classes}"
            )


def _kinds(what: str, folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DataError(f"{what} must be a folder, but {folder} is none; check its name")
    kinds = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not kinds:
        raise DataError(f"{what} {folder} must hold a folder per class or kind, found none; sort the images into some")
    return kinds


def _images(folder: Path) -> list[str]:
    """Return the images at any depth of a folder, relative to it, in the order of their names."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    visible = (path for path in paths if not any(name.startswith(".") for name in path.parts))
    return sorted(path.as_posix() for path in visible if (folder / path).is_file())


def _source(what: str, folder: Path, mask_folder: Path | None, kinds: Sequence[str]) -> Source:
    """Read the names of a folder of images by kind, without those that are the same byte for byte."""
    names = {kind: [f"{kind}/{name}" for name in _images(folder / kind)] for kind in kinds}
    masks = _masks(mask_folder, names) if mask_folder else {}
    total, seen = hashlib.sha256(), dict[tuple[str, str], tuple[str, str]]()
    kept: dict[str, list[str]] = {kind: [] for kind in kinds}
    left_out = []
    for kind, name in [(kind, name) for kind, found in names.items() for name in found]:
        digests = (_digest(folder / name), _digest(mask_folder / masks[name]) if mask_folder and name in masks else "")
        total.update(repr((name, *digests)).encode())
        first_kind, first = seen.setdefault(digests, (kind, name))
        if first == name:
            kept[kind].append(name)
        elif first_kind == kind:
            left_out.append(name)
        else:
            raise DataError(
                f"an image of {what} {folder} must be of one kind, but {first} and {name} are the same; remove one"
            )
    for kind, files in kept.items():
        if len(files) < len(SPLITS):
            raise DataError(
                f"{folder / kind} must hold at least {len(SPLITS)} different images ({', '.join(sorted(SUFFIXES))}), "
                f"one each for train, val and test, found {len(files)}; add some"
            )
    return Source(what, folder, kept, masks, mask_folder, total.hexdigest(), left_out)


def _masks(folder: Path, names: dict[str, list[str]]) -> dict[str, str]:
    """Return each image's mask: the one file in `folder` with its path up to the suffix."""
    if not folder.is_dir():
        raise DataError(f"masks must be a folder, but {folder} is none; check its name")
    by_stem: dict[str, str] = {}
    for mask in _images(folder):
        stem = mask.rpartition(".")[0]
        if stem in by_stem:
            raise DataError(
                f"{folder} must hold one mask for each stem, found {by_stem[stem]} and {mask}; remove one, and keep "
                "masks apart from the images"
            )
        by_stem[stem] = mask
    images = (name for found in names.values() for name in found)
    return {name: by_stem[stem] for name in images if (stem := name.rpartition(".")[0]) in by_stem}


def _digest(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def plan_rows(recipe: Recipe, sources: Sequence[Source], seed: int) -> list[Row]:
    """Lay down every image: its split, class, kinds and files."""
    names = [list(source.kinds) for source in sources]
    classes = names[0]
    rows: list[Row] = []
    for number, split in enumerate(SPLITS):
        share = Fraction(str(recipe.shares[number]))
        pools = [_pools(source, number, seed) for source in sources]
        for label, pool in enumerate(pools[0]):
            n = _portion(recipe.sizes[number], label, len(classes)) if recipe.sizes else len(pool.files)
            cells = _cells(n, label, len(classes), len(sources) - 1, share)
            met: dict[str, set[str]] = {}
            for i in generator(seed, "compose", "order", split, label).permutation(n):
                cut_out = pool.draw()
                before = met.setdefault(cut_out, set())  # the same again on the same background would be no news
                shown = tuple(of[kind].draw(before) for of, kind in zip(pools[1:], cells[i], strict=True))
                before.add(shown[0])
                image = f"{_folder(recipe, names, split, label, cells[i])}/{len(rows) + 1:06d}.jpg"
                rows.append(Row(len(rows) + 1, image, split, label, cells[i], cut_out, shown))
    return rows


def _pools(source: Source, split: int, seed: int) -> list[_Pool]:
    """Return the pool of each kind for one split: 60, 20 and 20 % of its files, dealt by the seed."""
    pools = []
    for kind, files in source.kinds.items():
        order = generator(seed, "compose", "deal", source.what, kind).permutation(len(files))
        held = max(1, round(len(files) / 5))
        dealt = np.split(order, [len(files) - 2 * held, len(files) - held])[split]
        rng = generator(seed, "compose", "draw", source.what, kind, split)
        pools.append(_Pool([files[i] for i in dealt], rng))
    return pools


def _portion(size: int, label: int, n_classes: int) -> int:
    """Return how many of `size` images a class gets: as many as every other, the first classes one more."""
    return size // n_classes + (label < size % n_classes)


def _cells(n: int, label: int, n_kinds: int, n_shortcuts: int, own: Fraction) -> list[tuple[int, ...]]:
    """Return the kinds of each shortcut for n images of a class, in exact numbers.

    First the blocks of own and other kinds get their numbers, in proportion to the product of their shares and rounded
    by the largest remainder (of equal ones, those with one other kind first); then each block is dealt to its kinds.

    Examples
    --------
    >>> [_cells(10, 1, 2, 1, Fraction("0.8")).count(cell) for cell in [(0,), (1,)]]
    [2, 8]
    """
    shares = {block: math.prod(1 - own if other else own for other in block) * n for block in _blocks(n_shortcuts)}
    counts = {block: math.floor(share) for block, share in shares.items()}
    by_remainder = sorted(shares, key=lambda block: counts[block] - shares[block])  # stable: ties stay in their order
    for block in by_remainder[: n - sum(counts.values())]:
        counts[block] += 1
    cells = []
    for block, count in counts.items():
        steps = list(product(*(range(1, n_kinds) if other else (0,) for other in block)))
        steps.sort(key=lambda step: (step[-1] - step[0]) % n_kinds)  # along diagonals, to be even in both shortcuts
        cells += [tuple((label + step) % n_kinds for step in steps[i % len(steps)]) for i in range(count)]
    return cells


def _blocks(n_shortcuts: int) -> list[tuple[int, ...]]:
    """Return every combination of own (0) and other (1) kinds: first those with one other, last the one without."""
    return sorted(product((0, 1), repeat=n_shortcuts), key=lambda block: sum(block) or len(block) + 1)


def _folder(recipe: Recipe, names: Sequence[Sequence[str]], split: str, label: int, kinds: tuple[int, ...]) -> str:
    """Return the folder of an image inside the data set."""
    if recipe.layout == "waterbirds":
        return names[0][label]
    share = float(recipe.shares[SPLITS.index(split)])
    background, thing = (found[kind] for found, kind in zip(names[1:], kinds, strict=True))
    group = f"obj-{names[0][label]}_bg-{background}_co_occur_obj-{thing}"
    return f"bg-{share}_co_occur_obj-{share}/{split}/{group}"


def folder_names(recipe: Recipe, sources: Sequence[Source]) -> list[str]:
    """Return every folder of the layout, also those of groups without an image, in a fixed order."""
    names = [list(source.kinds) for source in sources]
    places = (_folder(recipe, names, split, group[0], group[1:]) for split in SPLITS for group in group_kinds(names))
    return list(dict.fromkeys(places))


def group_kinds(names: Sequence[Sequence[str]]) -> list[tuple[int, ...]]:
    """Return every class with every kind of background and object, as positions."""
    return list(product(*(range(len(found)) for found in names)))
