"""Readers of tables, folders, images, IDX files and shards."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import random
import struct
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from damage import damage_bytes
from hypothesis import strategies as st
from materials import encoded, picture, shard
from PIL import Image
from reader import emptied, scratch, written

from exmap.data import build_task
from exmap.data.columns import read_table
from exmap.data.decode import decode
from exmap.data.idx import read_idx
from exmap.settings import DataSettings, ImageSettings

__all__ = [
    "judge_folder",
    "judge_idx",
    "judge_image",
    "judge_labels",
    "judge_shard",
    "judge_table_file",
    "labelled_rows",
]


TINY = ImageSettings(resize=6, crop=None, random_crop=None, workers=0, cache="never", normalize="none")


CSV = "path,label,split,background\n" + "".join(
    f"{i}.png,{('cat', 'dog')[i % 2]},{('train', 'val', 'test')[i % 3]},{('land', 'sea')[i % 5 > 2]}\n"
    for i in range(24)
)


def judge_table_file(number: int) -> list[str]:
    rng = random.Random(number)
    kind, data = ".csv", CSV.encode()
    if rng.random() < 0.3:
        import pandas as pd

        kept = io.BytesIO()
        pd.read_csv(io.StringIO(CSV)).to_parquet(kept)
        kind, data = ".parquet", kept.getvalue()
    columns, _ = read_table(written(damage_bytes(data, kind, rng)[0], f"table{kind}"))
    lengths = {len(values) for values in columns.values()}
    if len(lengths) > 1:
        return [f"columns of {lengths}"]
    odd = [value for values in columns.values() for value in values if not isinstance(value, str)]
    return [f"a cell is {odd[0]!r}"] if odd else []


LABELS = st.sampled_from(
    ("cat", "dog", "Cat", "cat ", " dog", "0", "1", "2", "10", "01", "0.0", "1.0", "1e0", "0.9", "-1", "true", "True",
     "FALSE", "nan", "None", "", "é", "e\u0301", "\ufeffcat", "a,b", 'a"b', "\u200bcat", "yes", "no", "\u0661", "²",
     "1_0", "inf", "0x1")
)  # fmt: skip


@st.composite
def labelled_rows(draw: Any) -> list[tuple[str, str]]:
    names = draw(st.lists(LABELS, min_size=1, max_size=4, unique=True))
    return [
        (draw(st.sampled_from(names)), draw(st.sampled_from(("train", "val", "test"))))
        for _ in range(draw(st.integers(6, 24)))
    ]


@cache
def pictures() -> Path:
    folder = scratch() / "pictures"
    folder.mkdir()
    for i in range(32):
        (folder / f"{i:02d}.png").write_bytes(encoded(i % 2, i))
    return folder


def judge_labels(rows: list[tuple[str, str]]) -> list[str]:
    """Labels of a table are classes of that name, or of that number, in an order that can be told."""

    folder = pictures()
    with open(folder / "labels.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(
            [("path", "label", "split"), *((f"{i:02d}.png", label, split) for i, (label, split) in enumerate(rows))]
        )
    task = build_task(DataSettings(name="table", dir=folder, table=Path("labels.csv")), TINY)
    faults = []
    for split in (task.train, task.val, task.test):
        for name, label in zip(split.ids, split.labels, strict=True):
            written_as, called = rows[int(Path(name).stem)][0], split.class_names[label]
            if not _same_label(written_as, called):
                faults.append(f"{written_as!r} is {called!r} of {split.class_names}")
    names = task.train.class_names
    if all(map(_is_number, names)) and [*names] != sorted(names, key=float):
        faults.append(f"numbers are ordered {names}")
    if len({name.strip().casefold() for name in names}) < len(names):
        faults.append(f"classes that differ in case or blanks alone: {names}")
    return faults[:1]


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _same_label(one: str, other: str) -> bool:
    if one.strip() == other.strip() or one.strip().casefold() == other.strip().casefold():
        return True
    return _is_number(one) and _is_number(other) and float(one) == float(other)


def judge_folder(names: list[str]) -> list[str]:
    """Images in folders are of the class that the folder is named after."""
    with emptied("folders") as root:
        for label, name in enumerate(names):
            (root / name).mkdir()
            for i in range(5):
                (root / name / f"{i}.png").write_bytes(encoded(label % 2, i))
        task = build_task(DataSettings(name="folder", dir=root), TINY)
        for split in (task.train, task.val, task.test):
            for image, label in zip(split.ids, split.labels, strict=True):
                if Path(image).parent.name != split.class_names[label]:
                    return [f"{image!r} is of class {split.class_names[label]!r}"]
            json.dumps([split.ids, split.class_names], ensure_ascii=False).encode("utf-8", "surrogateescape")
    return []


FORMS = (
    ("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "I;16"), ("PNG", "1"), ("JPEG", "L"), ("JPEG", "RGB"),
    ("JPEG", "CMYK"), ("TIFF", "RGB"), ("TIFF", "F"), ("GIF", "P"), ("BMP", "RGB"), ("WEBP", "RGBA"), ("PPM", "RGB"),
)  # fmt: skip


@cache
def image_file(form: str, mode: str) -> bytes:
    kept = io.BytesIO()
    whole = Image.fromarray(picture(1, 3))
    whole = whole.convert("I").convert(mode) if mode == "I;16" else whole.convert(mode)
    whole.save(kept, form)
    return kept.getvalue()


def judge_image(number: int) -> list[str]:
    rng = random.Random(number)
    data = damage_bytes(image_file(*rng.choice(FORMS)), "", rng)[0]
    side = rng.choice((1, 6, 31))
    made = decode(data, side, image_file("PNG", "1") if rng.random() < 0.1 else None)
    return [] if made.shape == (side, side, 3) and made.dtype == np.uint8 else [f"{made.shape}, {made.dtype}"]


def judge_idx(number: int) -> list[str]:

    rng = random.Random(number)
    shape = (rng.choice((0, 1, 5)), 4, 4)
    whole = struct.pack(">4i", 2051, *shape) + rng.randbytes(math.prod(shape))
    data = damage_bytes(whole, "", rng)[0]
    name = "x-idx3-ubyte"
    if rng.random() < 0.4:
        data, name = gzip.compress(data, mtime=0), f"{name}.gz"
        data = damage_bytes(data, "", rng)[0] if rng.random() < 0.5 else data
    array, _ = read_idx(written(data, name), 3)
    plain = gzip.decompress(data) if name.endswith("gz") else data
    stated = struct.unpack(">3I", plain[4:16])
    right = array.shape == stated and array.tobytes() == plain[16:] and len(plain) == 16 + math.prod(stated)
    return [] if right else [f"{array.shape} of a file that states {stated} and has {len(plain) - 16} bytes"]


def judge_shard(number: int) -> list[str]:
    rng = random.Random(number)
    with emptied("shards") as root:
        (root / "part-000.tar").write_bytes(damage_bytes(shard(24), "", rng)[0])
        task = build_task(DataSettings(name="webdataset", dir=root, one_set=True), TINY)
        if len({*task.val.ids}) != len(task.val.ids):
            return ["an image comes twice"]
        task.val.images.pixels(np.arange(min(4, len(task.val))))
    return []
