"""Data sets by name: what each is, what the paper counts in it, where it comes from, and how it is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from exmap.config import DataSettings, ImageSettings
from exmap.data.celeba import celeba
from exmap.data.coloured import cmnist, cmnist_10, embedded_digits
from exmap.data.dataset import Task
from exmap.data.fashion import dominoes, two_shortcuts
from exmap.data.fetch import Remote
from exmap.data.graded import graded
from exmap.data.idx import download_set, find_set
from exmap.data.own import image_folder, image_table, saved_dataset
from exmap.data.table import ImageTable, task_from_table
from exmap.data.urbancars import BACKGROUND, OBJECT, urbancars
from exmap.data.waterbirds import waterbirds
from exmap.errors import DataError, SettingsError, unknown_name
from exmap.records import Listener, silent

__all__ = ["CATALOG", "Entry", "build_task", "dataset_names", "entry", "read_images"]

Counts = dict[str, tuple[int, ...]]

WATERBIRDS_ARCHIVE = Remote(
    "https://nlp.stanford.edu/data/dro/waterbird_complete95_forest2water2.tar.gz",
    "waterbird_complete95_forest2water2.tar.gz",
)
CUB_MASKS = Remote(
    "https://data.caltech.edu/records/w9d68-gec53/files/segmentations.tgz?download=1",
    "segmentations.tgz",
    md5="4d47ba1228eae64f2fa547c47bc65255",
    size=39_272_883,
)
# Group counts of ExMap's supplement, Table 1 and section 1; group = class * attributes + attribute.
WATERBIRDS_COUNTS: Counts = {
    "train": (3498, 184, 56, 1057),
    "val": (467, 466, 133, 133),
    "test": (2255, 2255, 642, 642),
}
CELEBA_COUNTS: Counts = {
    "train": (71629, 66874, 22880, 1387),
    "val": (8535, 8276, 2874, 182),
    "test": (9767, 7535, 2480, 180),
}
CMNIST_COUNTS: Counts = {
    "train": (254, 25284, 24231, 231),
    "val": (45, 5013, 4893, 49),
    "test": (48, 5091, 4815, 46),
}
# 4,000 training images a class, each shortcut right in 95 %; validation as stated; the test split is balanced.
URBANCARS_COUNTS: Counts = {
    "train": (3610, 190, 190, 10, 10, 190, 190, 3610),
    "val": (451, 23, 23, 1, 1, 23, 23, 451),
}


def _merged(counts: Counts, keep: int) -> Counts:
    """Return the counts of a single-shortcut variant: groups merged over the other shortcut."""
    pairs = {0: ((0, 1), (2, 3), (4, 5), (6, 7)), 1: ((0, 2), (1, 3), (4, 6), (5, 7))}[keep]
    return {split: tuple(row[a] + row[b] for a, b in pairs) for split, row in counts.items()}


@dataclass(frozen=True)
class Entry:
    """One data set of the catalogue.

    Attributes
    ----------
    about : str
        In one line.
    arrays : callable or None
        Builds the task of a data set that is held in memory.
    images : callable or None
        Reads the table of one that lies in image files.
    counts : dict of str to tuple of int
        What the paper counts in each group, per split; a split that it does not count is left out.
    remotes : tuple of Remote
        Public archives it can be downloaded from.
    idx : tuple of str
        IDX sets it is made of.
    instead : str
        What to get and where to put it, where there is no public archive.
    """

    about: str
    arrays: Callable[[DataSettings], Task] | None = None
    images: Callable[[DataSettings], ImageTable] | None = None
    counts: Counts | None = None
    remotes: tuple[Remote, ...] = ()
    idx: tuple[str, ...] = ()
    instead: str = ""


def _folder(settings: DataSettings) -> Path:
    if settings.dir is None:
        raise DataError(f"{settings.name} needs the folder of its files, and none was given; name it with --data-dir")
    return settings.dir


def _idx(settings: DataSettings, *names: str) -> Path:
    """Return the folder of IDX sets, after downloading those that it lacks where that is wished."""
    folder = _folder(settings)
    for name in names if settings.download else ():
        try:
            find_set(folder, name)
        except DataError:
            download_set(folder / name, name)
    return folder


URBANCARS_INSTEAD = (
    'UrbanCars is not public: ask its authors (Li et al., "A Whac-A-Mole dilemma", CVPR 2023) or make it again with '
    "their generator, and give the folder that holds bg-0.95_co_occur_obj-0.95 and bg-0.5_co_occur_obj-0.5; exmap data "
    "compose --layout urbancars makes a set of the same kind from your own cut-outs"
)
CELEBA_INSTEAD = (
    "CelebA's download is limited by a quota: get img_align_celeba.zip, list_attr_celeba.txt and "
    "list_eval_partition.txt from the project's page (mmlab.ie.cuhk.edu.hk/projects/CelebA.html), put all three into "
    "one folder, and give that folder with --source"
)

CATALOG: dict[str, Entry] = {
    "celeba": Entry(
        "blond hair or not; shortcut: gender (4 groups)",
        images=lambda s: celeba(_folder(s)),
        counts=CELEBA_COUNTS,
        instead=CELEBA_INSTEAD,
    ),
    "cmnist": Entry(
        "digit above 4 or not, in two colours, 99 % (4 groups)",
        arrays=lambda s: cmnist(find_set(_idx(s, "mnist"), "mnist"), s.correlation),
        counts=CMNIST_COUNTS,
        idx=("mnist",),
    ),
    "cmnist-10": Entry(
        "ten digits in ten colours, 99 % (100 groups)",
        arrays=lambda s: cmnist_10(find_set(_idx(s, "mnist"), "mnist"), s.correlation),
        idx=("mnist",),
    ),
    "digits": Entry(
        "coloured 8 x 8 digits, no files needed (4 groups)", arrays=lambda s: embedded_digits(s.correlation)
    ),
    "dominoes": Entry(
        "dress or coat below a digit 0 or 1, 95 % (4 groups)",
        arrays=lambda s: dominoes(_idx(s, "mnist", "fashion-mnist"), s.correlation),
        idx=("mnist", "fashion-mnist"),
    ),
    "folder": Entry("your own images: a folder per class, or per split and class", images=image_folder),
    "graded": Entry(
        "digits or garments with one shortcut of any strength, or none: for tests of what finds shortcuts",
        arrays=lambda s: graded(_idx(s, s.graded.base), s.graded, s.correlation, seed=s.split_seed),
        idx=("mnist", "fashion-mnist"),
    ),
    "huggingface": Entry("your own images: a Hugging Face data set saved to disk", images=saved_dataset),
    "table": Entry("your own images: a CSV or Parquet table of paths and labels", images=image_table),
    "two-shortcuts": Entry(
        "sneaker or boot; shortcuts: coloured texture and digit, 95 % each (8 groups)",
        arrays=lambda s: two_shortcuts(_idx(s, "mnist", "fashion-mnist"), s.correlation),
        idx=("mnist", "fashion-mnist"),
    ),
    "urbancars": Entry(
        "urban or country car; shortcuts: background and co-occurring object (8 groups)",
        images=lambda s: urbancars(_folder(s)),
        counts=URBANCARS_COUNTS,
        instead=URBANCARS_INSTEAD,
    ),
    "urbancars-bg": Entry(
        "UrbanCars with the background as the only shortcut (4 groups)",
        images=lambda s: urbancars(_folder(s), (BACKGROUND,)),
        counts=_merged(URBANCARS_COUNTS, 0),
        instead=URBANCARS_INSTEAD,
    ),
    "urbancars-coobj": Entry(
        "UrbanCars with the co-occurring object as the only shortcut (4 groups)",
        images=lambda s: urbancars(_folder(s), (OBJECT,)),
        counts=_merged(URBANCARS_COUNTS, 1),
        instead=URBANCARS_INSTEAD,
    ),
    "waterbirds": Entry(
        "landbird or waterbird; shortcut: background (4 groups)",
        images=lambda s: waterbirds(_folder(s)),
        counts=WATERBIRDS_COUNTS,
        remotes=(WATERBIRDS_ARCHIVE,),
    ),
    "waterbirds-fg": Entry(
        "Waterbirds whose test images have lost their background (4 groups)",
        images=lambda s: waterbirds(_folder(s), foreground_only=True),
        counts=WATERBIRDS_COUNTS,
        remotes=(WATERBIRDS_ARCHIVE, CUB_MASKS),
    ),
}


def dataset_names() -> list[str]:
    """Return the names of the catalogue, sorted."""
    return sorted(CATALOG)


def entry(name: str) -> Entry:
    """Return a data set's entry.

    Raises
    ------
    SettingsError
        For an unknown name.
    """
    if name not in CATALOG:
        raise SettingsError(unknown_name("data set", name, CATALOG))
    return CATALOG[name]


def read_images(settings: DataSettings) -> ImageTable:
    """Return the table of a data set that lies in image files.

    Raises
    ------
    DataError
        If it does not, or its tables are damaged.
    """
    found = entry(settings.name)
    if found.images is None:
        raise DataError(f"{settings.name} does not lie in image files")
    return found.images(settings)


def build_task(settings: DataSettings, images: ImageSettings | None = None, *, listen: Listener = silent) -> Task:
    """Build the data set that `settings` name, and check that every class has samples in every split.

    Parameters
    ----------
    settings : DataSettings
    images : ImageSettings, optional
        How image files are read.
    listen : Listener
        Hears of the first opening of image files.

    Raises
    ------
    SettingsError
        For an unknown name.
    DataError
        For missing, damaged or too small data.
    """
    found = entry(settings.name)
    if found.arrays is not None:
        task = found.arrays(settings)
    else:
        task = task_from_table(read_images(settings), images or ImageSettings(), listen=listen)
    task.check()
    return task
