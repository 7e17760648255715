"""Lay out the images a classifier was not trained on, as somebody who audits it would have them.

    python sets.py birds --data path/to/waterbirds-remix --out birds
    python sets.py faces --data path/to/celeba-10k --out faces

The birds come as a folder per class (validation split) and a second one (test split); the faces as a table,
labels.csv, with images beside it, and a second one, test.csv. `test_groups.csv` names the test images' places, or
whether the person is a man: nothing reads it but what judges an audit afterwards. The ViT's images are written by
train_dominoes_vit.py.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import pandas as pd


def birds(data: Path, out: Path) -> None:
    """Write held-out/CLASS/ and test/CLASS/."""
    table = pd.read_csv(data / "metadata.csv")
    table["label"] = table.y.map({0: "landbird", 1: "waterbird"})
    for number, name in ((1, "held-out"), (2, "test")):
        part = table[table.split == number].copy()
        part["path"] = name + "/" + part.label + "/" + part.img_filename.str.split("/").str[-1]
        copied(part, data, out)
        if name == "test":
            part["place"] = part.place.map({0: "land", 1: "water"})
            part[["path", "label", "place"]].to_csv(out / "test_groups.csv", index=False)


def faces(data: Path, out: Path) -> None:
    """Write labels.csv and test.csv, and the images they name below images/."""
    table = pd.read_csv(data / "metadata.csv")
    table["label"] = table.y_blond.map({0: "not blond", 1: "blond"})
    table["male"] = table.a_male.map({0: "not male", 1: "male"})
    table["path"] = "images/" + table.img_filename
    table["img_filename"] = table["path"]
    for split, name in (("val", "labels.csv"), ("test", "test.csv")):
        part = table[table.split == split]
        copied(part, data, out)
        part[["path", "label"]].to_csv(out / name, index=False)
    part[["path", "label", "male"]].to_csv(out / "test_groups.csv", index=False)


def copied(part: pd.DataFrame, data: Path, out: Path) -> None:
    """Copy images to the paths the table names."""
    for source, path in zip(part.img_filename, part.path, strict=True):
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(data / source, out / path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=["birds", "faces"])
    parser.add_argument("--data", type=Path, required=True, help="folder with metadata.csv and images/")
    parser.add_argument("--out", type=Path, required=True, help="a folder outside the repository")
    args = parser.parse_args()
    (birds if args.which == "birds" else faces)(args.data, args.out)


if __name__ == "__main__":
    main()
