"""A data set with planted shortcuts from one's own cut-outs, backgrounds and, if wished, co-occurring objects.

The two layouts are those of the originals, on disk and in making. *Waterbirds* (Sagawa et al., "Distributionally robust
neural networks", 2020; ``dataset_scripts`` of kohpangwei/group_DRO): the background is cropped to the cut-out image's
aspect ratio, resized to its size, and shows where the mask is black. *UrbanCars* (Li et al., "A Whac-A-Mole dilemma",
2023; ``create_datasets/urbancars`` of facebookresearch/Whac-A-Mole): a cut-out and, behind it at one side, a small
object on a square background; how often both go with the class is independent of each other.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from exmap.errors import DataError, SettingsError, unknown_name
from exmap.records import Listener, Progress, silent
from exmap.runtime import generator

__all__ = ["Manifest", "Recipe", "blend", "compose"]

FORMAT = 1  # of the manifest
LAYOUTS = {"waterbirds": (0.95, 0.5, 0.5), "urbancars": (0.95, 0.95, 0.5)}  # with their correlations
SPLITS = ("train", "val", "test")
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
QUALITY = 95  # of the JPEG files written
KEPT = 128  # a pixel of at least this alpha belongs to the cut-out; softer ones are blended, but do not count
# UrbanCars' arrangement, in shares of the canvas
CUT_OUT = (0.55, 0.65)  # longer side, drawn for each image
OBJECT = 0.25  # longer side
FLOOR = (0.95, 0.9)  # where the cut-out and the object stand, from above
MARGIN = 0.01  # from the object to the edge

Bytes = NDArray[np.uint8]


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
class Manifest:
    """What was composed: ``manifest.json``.

    Attributes
    ----------
    format : int
    layout : str
    seed : int
    classes, backgrounds, objects : tuple of str
        Folder names in order: class k goes with background k and object k.
    correlation : tuple of 3 float
    counts : dict
        Split to group name (``class, background`` or ``class, background, object``) to number of images.
    cut_outs_reused, backgrounds_reused, objects_reused : dict
        Split to the number of its images whose part had been in another image of that split before.
    sources : dict
        Per given folder the number of files of each kind, the digest of their names, contents and masks, and the
        files left out because another of the same folder is the same byte for byte.
    """

    format: int
    layout: str
    seed: int
    classes: tuple[str, ...]
    backgrounds: tuple[str, ...]
    objects: tuple[str, ...]
    correlation: tuple[float, float, float]
    counts: dict[str, dict[str, int]]
    cut_outs_reused: dict[str, int]
    backgrounds_reused: dict[str, int]
    objects_reused: dict[str, int]
    sources: dict[str, dict[str, object]]


@dataclass(frozen=True)
class _Source:
    """A folder of images by kind; files are named relative to it, their masks relative to the folder of masks."""

    what: str
    folder: Path
    kinds: dict[str, list[str]]
    masks: dict[str, str]
    mask_folder: Path | None
    digest: str
    left_out: list[str]

    def mask(self, name: str) -> Path | None:
        return self.mask_folder / self.masks[name] if self.mask_folder and name in self.masks else None

    def summary(self) -> dict[str, object]:
        files = {kind: len(names) for kind, names in self.kinds.items()}
        return {"files": files, "sha256": self.digest, "left_out_as_duplicates": self.left_out}


@dataclass(frozen=True)
class _Row:
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


def compose(recipe: Recipe, out: Path, *, seed: int = 0, listen: Listener = silent) -> Manifest:
    """Compose a data set with the wished correlations and write it into a new folder.

    The files of every folder are dealt to train, val and test, 60, 20 and 20 %, so that no cut-out, background or
    object is in two splits; inside a split each comes again only after all of its kind have come. The numbers are
    exact, not drawn: of n images of a class ``(1 - correlation) * n``, rounded, have another background, spread evenly
    over the other kinds; with two shortcuts the four products of both shares are rounded so that they sum to n.

    Waterbirds: ``metadata.csv`` (img_id, img_filename, y, split, place, place_filename) and ``CLASS/000001.jpg``.
    UrbanCars: ``bg-C_co_occur_obj-C/SPLIT/obj-CLASS_bg-KIND_co_occur_obj-KIND/000001.jpg`` with C the correlation.
    Both: ``manifest.json``, and ``manifest.csv`` with the files that each image is made of.

    Parameters
    ----------
    recipe : Recipe
    out : Path
        New or empty. Files are written beside it, into ``OUT.part``, which is renamed last; one left by an earlier
        attempt is removed.
    seed : int
        The same files and seed give the same bytes.
    listen : callable
        Told of every image.

    Raises
    ------
    DataError
        For folders, images, masks, sizes or a correlation that do not serve.
    """
    out = out.resolve()
    part = out.with_name(f"{out.name}.part")
    _check_place(recipe, out, part)
    sources = _sources(recipe)
    rows = _plan(recipe, sources, seed)
    manifest = _manifest(recipe, sources, rows, seed)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        for folder in _folders(recipe, sources):
            (part / folder).mkdir(parents=True)
        for done, row in enumerate(rows, start=1):
            picture = _make(recipe, sources, row, generator(seed, "compose", "image", row.id))
            Image.fromarray(picture).save(part / row.image, "JPEG", quality=QUALITY)
            listen(Progress("compose", done, len(rows), note=row.split))
        _write_tables(part, recipe, sources, rows)
        (part / "manifest.json").write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")
        if out.exists():
            out.rmdir()
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return manifest


def blend(cut_out: Bytes, background: Bytes) -> Bytes:
    """Lay a cut-out on a background: ``background * (1 - alpha) + cut_out * alpha``, rounded.

    Parameters
    ----------
    cut_out : ndarray of uint8, shape (H, W, 4)
    background : ndarray of uint8, shape (H, W, 3)

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)

    Examples
    --------
    >>> blend(np.array([[[200, 200, 200, 51]]], dtype=np.uint8), np.array([[[0, 100, 200]]], dtype=np.uint8))
    array([[[ 40, 120, 200]]], dtype=uint8)
    """
    alpha = cut_out[..., 3:] / np.float32(255)
    return np.rint(background * (1 - alpha) + cut_out[..., :3] * alpha).astype(np.uint8)


def _check_place(recipe: Recipe, out: Path, part: Path) -> None:
    """Refuse a place that holds something, or that the sources lie in or around."""
    if out.is_file() or part.is_file() or (out.is_dir() and any(out.iterdir())):
        raise DataError(
            f"{out} must be new or an empty folder, and {part.name} beside it no file, but something is there; choose "
            "another name or remove it"
        )
    given = (recipe.foregrounds, recipe.backgrounds, recipe.objects, recipe.masks, recipe.object_masks)
    for source in (folder.resolve() for folder in given if folder):
        if any(source.is_relative_to(place) or place.is_relative_to(source) for place in (out, part)):
            raise DataError(f"{out} and {source} must lie apart, but one holds the other; choose another place")


def _sources(recipe: Recipe) -> list[_Source]:
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


def _source(what: str, folder: Path, mask_folder: Path | None, kinds: Sequence[str]) -> _Source:
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
    return _Source(what, folder, kept, masks, mask_folder, total.hexdigest(), left_out)


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
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plan(recipe: Recipe, sources: Sequence[_Source], seed: int) -> list[_Row]:
    """Lay down every image: its split, class, kinds and files."""
    names = [list(source.kinds) for source in sources]
    classes = names[0]
    rows: list[_Row] = []
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
                rows.append(_Row(len(rows) + 1, image, split, label, cells[i], cut_out, shown))
    return rows


def _pools(source: _Source, split: int, seed: int) -> list[_Pool]:
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


def _folders(recipe: Recipe, sources: Sequence[_Source]) -> list[str]:
    """Return every folder of the layout, also those of groups without an image, in a fixed order."""
    names = [list(source.kinds) for source in sources]
    places = (_folder(recipe, names, split, group[0], group[1:]) for split in SPLITS for group in _groups(names))
    return list(dict.fromkeys(places))


def _groups(names: Sequence[Sequence[str]]) -> list[tuple[int, ...]]:
    """Return every class with every kind of background and object, as positions."""
    return list(product(*(range(len(found)) for found in names)))


def _manifest(recipe: Recipe, sources: Sequence[_Source], rows: Sequence[_Row], seed: int) -> Manifest:
    names = [tuple(source.kinds) for source in sources]
    made = Counter((row.split, row.label, *row.kinds) for row in rows)
    titles = {group: ", ".join(found[i] for found, i in zip(names, group, strict=True)) for group in _groups(names)}
    counts = {split: {title: made[(split, *group)] for group, title in titles.items()} for split in SPLITS}
    parts = [[(row.split, (row.cut_out, *row.shown)[i]) for row in rows] for i in range(len(sources))]
    reused = [{split: _repeated(file for of, file in used if of == split) for split in SPLITS} for used in parts]
    return Manifest(
        format=FORMAT,
        layout=recipe.layout,
        seed=seed,
        classes=names[0],
        backgrounds=names[1],
        objects=names[2] if len(names) > 2 else (),
        correlation=recipe.shares,
        counts=counts,
        cut_outs_reused=reused[0],
        backgrounds_reused=reused[1],
        objects_reused=reused[2] if len(reused) > 2 else dict.fromkeys(SPLITS, 0),
        sources={source.what: source.summary() for source in sources},
    )


def _repeated(files: Iterable[str]) -> int:
    times = Counter(files)
    return times.total() - len(times)


def _write_tables(out: Path, recipe: Recipe, sources: Sequence[_Source], rows: Sequence[_Row]) -> None:
    """Write ``manifest.csv`` and, for Waterbirds, ``metadata.csv``."""
    names = [list(source.kinds) for source in sources]
    files = ["cut_out_file", "mask_file", "background_file", "object_file"]
    table = []
    for row in rows:
        kinds = [found[kind] for found, kind in zip(names[1:], row.kinds, strict=True)]
        mask = sources[0].masks.get(row.cut_out, "")
        none = [""] * (2 - len(kinds))
        table.append([row.image, row.split, names[0][row.label], *kinds, *none, row.cut_out, mask, *row.shown, *none])
    _write_csv(out / "manifest.csv", ["image", "split", "class", "background", "object", *files], table)
    if recipe.layout == "waterbirds":
        head = ["img_id", "img_filename", "y", "split", "place", "place_filename"]
        numbered = [(r.id, r.image, r.label, SPLITS.index(r.split), r.kinds[0], r.shown[0]) for r in rows]
        _write_csv(out / "metadata.csv", head, numbered)


def _write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([head, *rows])


def _make(recipe: Recipe, sources: Sequence[_Source], row: _Row, rng: np.random.Generator) -> Bytes:
    """Compose one image, shape (H, W, 3)."""
    foregrounds, backgrounds, *objects = sources
    path = foregrounds.folder / row.cut_out
    cut_out = _cut_out(path, foregrounds.mask(row.cut_out))
    background = _read(backgrounds.folder / row.shown[0])[0].convert("RGB")
    if recipe.layout == "waterbirds":
        if np.asarray(cut_out)[..., 3].min() == 255:
            raise DataError(f"{path} must let its background show somewhere, but every pixel is kept; cut it out")
        behind = ImageOps.fit(background, cut_out.size, Image.Resampling.LANCZOS)
        return blend(np.asarray(cut_out), np.asarray(behind))
    thing = _cut_out(objects[0].folder / row.shown[1], objects[0].mask(row.shown[1]))
    side = recipe.side
    canvas = np.array(ImageOps.fit(background, (side, side), Image.Resampling.LANCZOS))
    thing = _scaled(thing, OBJECT * side)
    margin = round(MARGIN * side)
    left = margin if rng.random() < 0.5 else side - margin - thing.width
    _paste(canvas, thing, left, round(FLOOR[1] * side) - thing.height)
    cut_out = _scaled(cut_out, rng.uniform(*CUT_OUT) * side)
    _paste(canvas, cut_out, (side - cut_out.width) // 2, round(FLOOR[0] * side) - cut_out.height)
    return canvas


def _scaled(cut_out: Image.Image, longer: float) -> Image.Image:
    """Crop a cut-out to what it keeps and scale its longer side."""
    kept = cut_out.crop(cut_out.getchannel("A").point(lambda value: 255 * (value >= KEPT)).getbbox())
    width, height = (max(1, round(edge * longer / max(kept.size))) for edge in kept.size)
    return kept.resize((width, height), Image.Resampling.LANCZOS)


def _paste(canvas: Bytes, cut_out: Image.Image, left: int, top: int) -> None:
    """Lay a cut-out on a part of the canvas, in place."""
    place = np.s_[top : top + cut_out.height, left : left + cut_out.width]
    canvas[place] = blend(np.asarray(cut_out), canvas[place])


def _cut_out(path: Path, mask_path: Path | None) -> Image.Image:
    """Read a cut-out with its mask, or with its own transparency, as RGBA."""
    image, transparent = _read(path)
    if mask_path:
        mask = _read(mask_path)[0].convert("L")
        if mask.size != image.size:
            raise DataError(
                f"{mask_path} must have the size of {path}, {image.width} x {image.height} pixels, found "
                f"{mask.width} x {mask.height}; give the mask of this image"
            )
        image.putalpha(mask)
    elif not transparent:
        raise DataError(
            f"{path} must have transparency or a mask of the same stem, but has neither; cut it out, or name the "
            "folder of its masks"
        )
    brightest = np.asarray(image)[..., 3].max()
    if brightest < KEPT:
        raise DataError(
            f"{mask_path or path} must keep something (white, or opaque: {KEPT} to 255), but its highest value is "
            f"{brightest}; give another mask or remove the image"
        )
    return image


def _read(path: Path) -> tuple[Image.Image, bool]:
    """Read an image upright as RGBA, and whether the file has transparency."""
    try:
        with Image.open(path) as image:
            mode, transparent = image.mode, "A" in image.getbands() or "transparency" in image.info
            upright = ImageOps.exif_transpose(image).convert("RGBA")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image ({error}); replace or remove it") from error
    if mode[0] in "IF":
        raise DataError(f"{path} must have 8 bits per channel, found mode {mode}; convert it")
    return upright, transparent
