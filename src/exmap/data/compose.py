"""A data set with planted shortcuts from your own cut-outs, backgrounds and, if wished, co-occurring objects.

The two layouts are those of the originals, on disk and in making. *Waterbirds* (Sagawa et al., "Distributionally robust
neural networks", 2020; ``dataset_scripts`` of kohpangwei/group_DRO): the background is cropped to the cut-out image's
aspect ratio, resized to its size, and shows where the mask is black. *UrbanCars* (Li et al., "A Whac-A-Mole dilemma",
2023; ``create_datasets/urbancars`` of facebookresearch/Whac-A-Mole): a cut-out and, behind it at one side, a small
object on a square background; how often both go with the class is independent of each other.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from exmap.data.compose_plan import (
    SPLITS,
    Recipe,
    Row,
    Source,
    folder_names,
    group_kinds,
    plan_rows,
    read_sources,
)
from exmap.data.cut_outs import Bytes, blend, paste, read, read_cut_out, scaled
from exmap.errors import DataError
from exmap.records import Listener, Progress, silent
from exmap.runtime import generator

__all__ = ["Manifest", "Recipe", "blend", "compose"]

FORMAT = 1  # of the manifest
QUALITY = 95  # of the JPEG files written
# UrbanCars' arrangement, in shares of the canvas
CUT_OUT = (0.55, 0.65)  # longer side, drawn for each image
OBJECT = 0.25  # longer side
FLOOR = (0.95, 0.9)  # where the cut-out and the object stand, from above
MARGIN = 0.01  # from the object to the edge


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
    sources = read_sources(recipe)
    rows = plan_rows(recipe, sources, seed)
    manifest = _manifest(recipe, sources, rows, seed)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        for folder in folder_names(recipe, sources):
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


def _manifest(recipe: Recipe, sources: Sequence[Source], rows: Sequence[Row], seed: int) -> Manifest:
    names = [tuple(source.kinds) for source in sources]
    made = Counter((row.split, row.label, *row.kinds) for row in rows)
    titles = {group: ", ".join(found[i] for found, i in zip(names, group, strict=True)) for group in group_kinds(names)}
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


def _write_tables(out: Path, recipe: Recipe, sources: Sequence[Source], rows: Sequence[Row]) -> None:
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


def _make(recipe: Recipe, sources: Sequence[Source], row: Row, rng: np.random.Generator) -> Bytes:
    """Compose one image, shape (H, W, 3)."""
    foregrounds, backgrounds, *objects = sources
    path = foregrounds.folder / row.cut_out
    cut_out = read_cut_out(path, foregrounds.mask(row.cut_out))
    background = read(backgrounds.folder / row.shown[0])[0].convert("RGB")
    if recipe.layout == "waterbirds":
        if np.asarray(cut_out)[..., 3].min() == 255:
            raise DataError(f"{path} must let its background show somewhere, but every pixel is kept; cut it out")
        behind = ImageOps.fit(background, cut_out.size, Image.Resampling.LANCZOS)
        return blend(np.asarray(cut_out), np.asarray(behind))
    thing = read_cut_out(objects[0].folder / row.shown[1], objects[0].mask(row.shown[1]))
    side = recipe.side
    canvas = np.array(ImageOps.fit(background, (side, side), Image.Resampling.LANCZOS))
    thing = scaled(thing, OBJECT * side)
    margin = round(MARGIN * side)
    left = margin if rng.random() < 0.5 else side - margin - thing.width
    paste(canvas, thing, left, round(FLOOR[1] * side) - thing.height)
    cut_out = scaled(cut_out, rng.uniform(*CUT_OUT) * side)
    paste(canvas, cut_out, (side - cut_out.width) // 2, round(FLOOR[0] * side) - cut_out.height)
    return canvas
