from __future__ import annotations

import csv
import json
import os
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from exmap.data import compose_plan
from exmap.data.compose import Recipe, blend, compose
from exmap.errors import DataError, SettingsError
from exmap.records import Progress


def picture(red: int, green: int, blue: int, size: tuple[int, int] = (40, 30), spot: int = 0) -> Image.Image:
    """One colour with a spot of another, so that no two are the same."""
    pixels = np.full((size[1], size[0], 3), (red, green, blue), dtype=np.uint8)
    pixels[0, 0] = spot % 256
    return Image.fromarray(pixels)


def disc(size: tuple[int, int] = (40, 30)) -> Image.Image:
    """A mask: white inside, black outside."""
    y, x = np.mgrid[: size[1], : size[0]]
    inside = (x - size[0] / 2) ** 2 + (y - size[1] / 2) ** 2 < (min(size) / 3) ** 2
    return Image.fromarray((255 * inside).astype(np.uint8))


def cut_out(red: int, green: int, blue: int, spot: int = 0) -> Image.Image:
    image = picture(red, green, blue, spot=spot)
    image.putalpha(disc())
    return image


def save(image: Image.Image, path: Path, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def fill(folder: Path, kinds: dict[str, tuple[int, int, int]], n: int, cut: bool) -> Path:
    for kind, colour in kinds.items():
        for i in range(n):
            save((cut_out if cut else picture)(*colour, spot=i), folder / kind / f"{kind}{i:03d}.png")
    return folder


def birds(root: Path, n: int = 20, n_backgrounds: int = 20) -> Recipe:
    foregrounds = fill(root / "birds", {"landbird": (200, 0, 0), "waterbird": (200, 200, 0)}, n, cut=True)
    backgrounds = fill(root / "places", {"land": (0, 120, 0), "water": (0, 0, 200)}, n_backgrounds, cut=False)
    return Recipe("waterbirds", foregrounds, backgrounds)


def cars(root: Path, n: int = 10, names: tuple[str, ...] = ("country", "urban")) -> Recipe:
    def colours(shift: int) -> dict[str, tuple[int, int, int]]:
        return {name: (80 * shift, 60 * i, 255 - 60 * i) for i, name in enumerate(names)}

    return Recipe(
        "urbancars",
        fill(root / "cars", colours(3), n, cut=True),
        fill(root / "places", colours(0), n, cut=False),
        fill(root / "things", colours(1), n, cut=True),
        sizes=(8 * len(names), 4 * len(names), 4 * len(names)),
        side=64,
    )


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def pixels(path: Path) -> NDArray[np.int64]:
    with Image.open(path) as image:
        return np.asarray(image).astype(np.int64)


# pixels


@pytest.mark.parametrize("seed", range(3))
def test_blending_shows_the_background_where_alpha_is_zero_and_the_cut_out_where_it_is_full(seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (20, 30, 4), dtype=np.uint8)
    image[:5, :, 3], image[5:10, :, 3] = 0, 255
    background = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    blended = blend(image, background)
    assert (blended.dtype, blended.shape) == (np.uint8, (20, 30, 3))
    assert np.array_equal(blended[:5], background[:5])
    assert np.array_equal(blended[5:10], image[5:10, :, :3])
    low, high = np.minimum(background, image[..., :3]), np.maximum(background, image[..., :3])
    assert ((blended >= low) & (blended <= high)).all()  # no overflow, which rounding both terms apart would give


def test_a_bird_keeps_its_size_and_its_pixels_and_the_place_fills_the_rest(tmp_path: Path) -> None:
    compose(birds(tmp_path, n=5), tmp_path / "out")
    for row in table(tmp_path / "out" / "metadata.csv"):
        made = pixels(tmp_path / "out" / row["img_filename"])
        assert made.shape == (30, 40, 3)
        assert np.abs(made[15, 20] - [[200, 0, 0], [200, 200, 0]][int(row["y"])]).max() < 12
        assert np.abs(made[27, 37] - [[0, 120, 0], [0, 0, 200]][int(row["place"])]).max() < 12


def test_the_place_is_cropped_to_the_birds_aspect_ratio_not_squeezed(tmp_path: Path) -> None:
    recipe = birds(tmp_path, n=3, n_backgrounds=3)
    stripes = np.zeros((60, 180, 3), dtype=np.uint8)
    stripes[:, 50:130] = 255  # the middle 80 columns: what is left of 180 x 60 at 4 to 3
    for i, path in enumerate(sorted(recipe.backgrounds.rglob("*.png"))):
        Image.fromarray(np.maximum(stripes, i % 200)).save(path)
    compose(recipe, tmp_path / "out")
    for row in table(tmp_path / "out" / "metadata.csv"):
        assert pixels(tmp_path / "out" / row["img_filename"])[27, [0, 39]].min() > 200


def test_masks_beside_photographs_cut_them_out_softly_and_replace_their_own_transparency(tmp_path: Path) -> None:
    recipe = birds(tmp_path, n=3)
    soft = Image.fromarray(np.repeat(np.array([[0, 51, 255, 255]], dtype=np.uint8), 4, axis=0)).resize((40, 40), 0)
    for number, kind in enumerate(("landbird", "waterbird")):
        for i in range(3):
            (recipe.foregrounds / kind / f"{kind}{i:03d}.png").unlink()
            deeper = Path(kind, "species", f"{i}")
            photograph = picture(200, 0, 0, (40, 40), 80 * i + 40 * number)
            save(photograph, (recipe.foregrounds / deeper).with_suffix(".JPG"), quality=95)
            save(soft, (tmp_path / "masks" / deeper).with_suffix(".png"))
    unseen = picture(200, 0, 0, (40, 40), 99)
    unseen.putalpha(0)
    save(unseen, recipe.foregrounds / "landbird" / "species" / "3.png")
    save(soft.convert("RGB"), tmp_path / "masks" / "landbird" / "species" / "3.gif")
    compose(replace(recipe, masks=tmp_path / "masks"), tmp_path / "out")
    metadata = {row["img_filename"]: row for row in table(tmp_path / "out" / "metadata.csv")}
    rows = table(tmp_path / "out" / "manifest.csv")
    assert len(rows) == 7
    for row in rows:
        stem = row["cut_out_file"].rpartition(".")[0]
        assert row["mask_file"].rpartition(".")[0] == stem
        place = np.array([[0, 120, 0], [0, 0, 200]][int(metadata[row["image"]]["place"])])
        made = pixels(tmp_path / "out" / row["image"])
        for x, wanted in ((2, place), (15, 0.8 * place + [40, 0, 0]), (35, np.array([200, 0, 0]))):
            assert np.abs(made[20, x] - wanted).max() < 14


def test_pictures_are_turned_upright(tmp_path: Path) -> None:
    recipe = birds(tmp_path, n=3)
    lying = Image.new("RGB", (40, 30), (200, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter
    for i in range(3):
        (recipe.foregrounds / "landbird" / f"landbird{i:03d}.png").unlink()
        lying.putpixel((0, 0), (i, 0, 0))
        save(lying, recipe.foregrounds / "landbird" / f"{i}.png", exif=exif)
        save(disc((30, 40)), tmp_path / "masks" / "landbird" / f"{i}.png")
    compose(replace(recipe, masks=tmp_path / "masks"), tmp_path / "out")
    made = [row for row in table(tmp_path / "out" / "metadata.csv") if row["y"] == "0"]
    assert {pixels(tmp_path / "out" / row["img_filename"]).shape for row in made} == {(40, 30, 3)}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1-bit mask", "CMYK background"])
def test_other_kinds_of_image_files_are_read(tmp_path: Path, mode: str) -> None:
    recipe = birds(tmp_path, n=3, n_backgrounds=3)
    for i, path in enumerate(sorted(recipe.foregrounds.rglob("*.png"))):
        image = cut_out(200, 200, 200, i)
        if mode == "P":
            flat = Image.fromarray((np.asarray(disc()) == 0).astype(np.uint8), "P")
            flat.putpalette([200, 200, 200, i, i, i])
            flat.save(path, transparency=1)
        elif mode == "1-bit mask":
            image.convert("RGB").save(path)
            save(disc().convert("1"), tmp_path / "masks" / path.relative_to(recipe.foregrounds))
            recipe = replace(recipe, masks=tmp_path / "masks")
        else:
            image.convert("LA" if mode == "LA" else "RGBA").save(path)
    if mode == "CMYK background":
        for i, path in enumerate(sorted(recipe.backgrounds.rglob("*.png"))):
            colour = (0, 120, 0) if path.parent.name == "land" else (0, 0, 200)
            path.unlink()
            picture(*colour, spot=i).convert("CMYK").save(path.with_suffix(".jpg"), quality=95)
    compose(recipe, tmp_path / "out")
    for row in table(tmp_path / "out" / "metadata.csv"):
        made = pixels(tmp_path / "out" / row["img_filename"])
        assert np.abs(made[15, 20] - 200).max() < 12
        assert np.abs(made[27, 37] - [[0, 120, 0], [0, 0, 200]][int(row["place"])]).max() < 12


def test_a_car_stands_low_in_the_middle_and_a_thing_smaller_at_one_side_behind_it(tmp_path: Path) -> None:
    recipe = replace(cars(tmp_path), side=200)
    compose(recipe, tmp_path / "out")
    sides = []
    for row in table(tmp_path / "out" / "manifest.csv"):
        made = pixels(tmp_path / "out" / row["image"])
        assert made.shape == (200, 200, 3)
        behind = {"country": [0, 0, 255], "urban": [0, 60, 195]}[row["background"]]
        thing = {"country": [80, 0, 255], "urban": [80, 60, 195]}[row["object"]]
        assert np.abs(made[20, 100] - behind).max() < 12
        car = made[..., 0] > 180
        y, x = np.nonzero(car)
        assert 0.5 < (x.max() - x.min() + 1) / 200 < 0.7
        assert abs((x.max() + x.min()) / 2 - 100) < 4
        assert 0.9 < y.max() / 200 < 0.96
        assert car[(y.min() + y.max()) // 2, 100]
        small = np.abs(made - thing).max(axis=2) < 20
        small[car] = False
        where = np.nonzero(small)[1]
        assert 0.5 * np.pi / 4 * 50**2 < small.sum() < 50**2  # more than half of the disc is to be seen
        sides.append(where.mean() < 100)
        assert np.quantile(where, 0.9) < 60 if sides[-1] else np.quantile(where, 0.1) > 140  # edges of the car aside
    assert 0 < sum(sides) < len(sides)


def test_thin_and_tall_cut_outs_are_placed_inside_the_canvas(tmp_path: Path) -> None:
    recipe = cars(tmp_path)
    for i, path in enumerate(sorted([*recipe.foregrounds.rglob("*.png"), *(tmp_path / "things").rglob("*.png")])):
        size = [(1, 300), (300, 1), (1, 1), (2000, 7)][i % 4]
        Image.new("RGBA", size, (255, 0, i, 255)).save(path)  # nothing around it: a cut-out may fill its box
    compose(recipe, tmp_path / "out")
    for row in table(tmp_path / "out" / "manifest.csv"):
        assert (pixels(tmp_path / "out" / row["image"])[..., 0] > 100).any()


# numbers


@pytest.mark.parametrize(
    ("n", "own", "wanted"),
    [
        (500, "0.95", {(0, 0): 451, (0, 1): 24, (1, 0): 24, (1, 1): 1}),
        (498, "0.95", {(0, 0): 449, (0, 1): 24, (1, 0): 24, (1, 1): 1}),
        (4000, "0.95", {(0, 0): 3610, (0, 1): 190, (1, 0): 190, (1, 1): 10}),
        (500, "0.5", {(0, 0): 125, (0, 1): 125, (1, 0): 125, (1, 1): 125}),
        (7, "1", {(0, 0): 7}),
        (1, "0.95", {(0, 0): 1}),
    ],
)
def test_two_shortcuts_agree_in_expected_numbers(n: int, own: str, wanted: dict[tuple[int, int], int]) -> None:
    assert Counter(compose_plan._cells(n, 0, 2, 2, Fraction(own))) == Counter(wanted)


@pytest.mark.parametrize("n", [1, 2, 7, 10, 30, 50, 101, 999])
@pytest.mark.parametrize("own", ["0.5", "0.6", "0.9", "0.95", "0.99", "1"])
@pytest.mark.parametrize("k", [2, 3, 5])
def test_the_uncommon_are_rounded_and_even_over_the_kinds_in_every_shortcut(n: int, own: str, k: int) -> None:
    share = Fraction(own)
    for label in range(k):
        count = Counter(compose_plan._cells(n, label, k, 1, share))
        assert sum(count.values()) == n
        assert n - count[(label,)] == int((1 - share) * n + Fraction(1, 2))
        others = [count[(kind,)] for kind in range(k) if kind != label]
        assert max(others) - min(others) <= 1
        cells = compose_plan._cells(n, label, k, 2, share)
        assert len(cells) == n
        for shortcut in range(2):
            marginal = Counter(cell[shortcut] for cell in cells)
            assert abs(marginal[label] - share * n) <= Fraction(3, 2)
            others = [marginal[kind] for kind in range(k) if kind != label]
            assert max(others) - min(others) <= 2


@pytest.mark.parametrize("seed", range(3))
def test_every_split_has_its_counts(tmp_path: Path, seed: int) -> None:
    recipe = replace(birds(tmp_path, n=10), sizes=(81, 20, 10), correlation=(0.9, 0.8, 0.5))
    manifest = compose(recipe, tmp_path / "out", seed=seed)
    assert manifest.counts == {
        "train": {"landbird, land": 37, "landbird, water": 4, "waterbird, land": 4, "waterbird, water": 36},
        "val": {"landbird, land": 8, "landbird, water": 2, "waterbird, land": 2, "waterbird, water": 8},
        "test": {"landbird, land": 2, "landbird, water": 3, "waterbird, land": 3, "waterbird, water": 2},
    }
    made = Counter((row["split"], row["class"], row["background"]) for row in table(tmp_path / "out" / "manifest.csv"))
    for split, groups in manifest.counts.items():
        assert {name: made[(split, *name.split(", "))] for name in groups} == groups
    assert manifest.cut_outs_reused == {"train": 81 - 12, "val": 20 - 4, "test": 10 - 4}


def test_without_sizes_every_cut_out_comes_once(tmp_path: Path) -> None:
    manifest = compose(birds(tmp_path, n=11), tmp_path / "out")
    rows = table(tmp_path / "out" / "manifest.csv")
    assert sorted(row["cut_out_file"] for row in rows) == sorted(files(tmp_path / "birds"))
    assert Counter((row["split"], row["class"]) for row in rows) == Counter(
        {(split, kind): n for split, n in (("train", 7), ("val", 2), ("test", 2)) for kind in ("landbird", "waterbird")}
    )
    assert manifest.cut_outs_reused == manifest.objects_reused == {"train": 0, "val": 0, "test": 0}


# what goes where


@pytest.mark.parametrize("seed", range(3))
def test_no_file_is_in_two_splits_and_none_comes_again_before_all_have_come(tmp_path: Path, seed: int) -> None:
    recipe = replace(cars(tmp_path, n=7), sizes=(60, 30, 14))
    manifest = compose(recipe, tmp_path / "out", seed=seed)
    rows = table(tmp_path / "out" / "manifest.csv")
    for column in ("cut_out_file", "background_file", "object_file"):
        used = {split: Counter(r[column] for r in rows if r["split"] == split) for split in ("train", "val", "test")}
        assert not (set(used["train"]) & set(used["val"]) | set(used["train"]) & set(used["test"]))
        assert not set(used["val"]) & set(used["test"])
        for times in used.values():
            for kind in ("country/", "urban/"):
                of_kind = [n for name, n in times.items() if name.startswith(kind)]
                assert max(of_kind) - min(of_kind) <= 1
        reused = {split: sum(times.values()) - len(times) for split, times in used.items()}
        wanted = {
            "cut_out_file": manifest.cut_outs_reused,
            "background_file": manifest.backgrounds_reused,
            "object_file": manifest.objects_reused,
        }
        assert reused == wanted[column]


@pytest.mark.parametrize("seed", range(3))
def test_a_cut_out_that_comes_again_comes_on_another_background(tmp_path: Path, seed: int) -> None:
    compose(replace(birds(tmp_path, n=5, n_backgrounds=10), sizes=(24, 4, 4)), tmp_path / "out", seed=seed)
    pairs = [(row["cut_out_file"], row["background_file"]) for row in table(tmp_path / "out" / "manifest.csv")]
    assert len(pairs) - len(set(pairs)) <= 1  # only where the last one left of a round has been met


def test_the_same_bytes_come_from_the_same_seed_wherever_the_files_lie(tmp_path: Path) -> None:
    first = files_of(birds(tmp_path / "a", n=5), tmp_path / "one", seed=3)
    again = files_of(birds(tmp_path / "elsewhere" / "b", n=5), tmp_path / "two" / "deeper", seed=3)
    assert first == again
    other = files_of(birds(tmp_path / "a", n=5), tmp_path / "three", seed=4)
    assert first["metadata.csv"] != other["metadata.csv"]
    assert json.loads(first["manifest.json"])["sources"] == json.loads(other["manifest.json"])["sources"]
    assert str(tmp_path).encode() not in b"".join(first.values())


def files_of(recipe: Recipe, out: Path, seed: int) -> dict[str, bytes]:
    compose(recipe, out, seed=seed)
    return files(out)


def test_the_order_of_the_file_system_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = cars(tmp_path, n=4)
    iterdir, rglob = Path.iterdir, Path.rglob
    for turned in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "iterdir", lambda path, turned=turned: sorted(iterdir(path), reverse=turned))
            patch.setattr(Path, "rglob", lambda path, glob, turned=turned: sorted(rglob(path, glob), reverse=turned))
            compose(recipe, tmp_path / f"{turned}")
    assert files(tmp_path / "False") == files(tmp_path / "True")


def test_a_changed_file_changes_the_digest(tmp_path: Path) -> None:
    recipe = birds(tmp_path, n=4)
    before = compose(recipe, tmp_path / "one").sources
    cut_out(1, 2, 3).save(recipe.foregrounds / "landbird" / "landbird000.png")
    after = compose(recipe, tmp_path / "two").sources
    assert before["foregrounds"]["sha256"] != after["foregrounds"]["sha256"]
    assert before["backgrounds"] == after["backgrounds"]


def test_copies_are_left_out_and_told(tmp_path: Path) -> None:
    recipe = birds(tmp_path, n=5)
    cut_out(200, 0, 0, 0).save(recipe.foregrounds / "landbird" / "zzz.png")
    manifest = compose(recipe, tmp_path / "out")
    assert manifest.sources["foregrounds"]["left_out_as_duplicates"] == ["landbird/zzz.png"]
    assert manifest.sources["foregrounds"]["files"] == {"landbird": 5, "waterbird": 5}
    assert "landbird/zzz.png" not in {row["cut_out_file"] for row in table(tmp_path / "out" / "manifest.csv")}


# layouts


def test_the_waterbirds_layout(tmp_path: Path) -> None:
    recipe = birds(tmp_path, n=5)
    manifest = compose(recipe, tmp_path / "out", seed=5)
    text = (tmp_path / "out" / "metadata.csv").read_text()
    assert text.splitlines()[0] == "img_id,img_filename,y,split,place,place_filename"
    rows = table(tmp_path / "out" / "metadata.csv")
    assert [row["img_id"] for row in rows] == [str(i) for i in range(1, 11)]
    assert [row["split"] for row in rows] == ["0"] * 6 + ["1"] * 2 + ["2"] * 2
    assert rows[0]["img_filename"] == "landbird/000001.jpg"
    assert {row["img_filename"].split("/")[0]: row["y"] for row in rows} == {"landbird": "0", "waterbird": "1"}
    assert {(row["place_filename"].split("/")[0], row["place"]) for row in rows} <= {("land", "0"), ("water", "1")}
    assert all((recipe.backgrounds / row["place_filename"]).is_file() for row in rows)
    assert set(files(tmp_path / "out")) == {
        "metadata.csv",
        "manifest.csv",
        "manifest.json",
        *(row["img_filename"] for row in rows),
    }
    stored = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert stored["format"] == 1
    assert (stored["layout"], stored["seed"]) == ("waterbirds", 5)
    assert (stored["classes"], stored["backgrounds"]) == (["landbird", "waterbird"], ["land", "water"])
    assert (stored["objects"], stored["correlation"]) == ([], [0.95, 0.5, 0.5])
    assert stored["counts"] == manifest.counts
    full = table(tmp_path / "out" / "manifest.csv")
    assert ",".join(full[0]) == (
        "image,split,class,background,object,cut_out_file,mask_file,background_file,object_file"
    )
    assert [row["image"] for row in full] == [row["img_filename"] for row in rows]
    assert {row["object"] + row["object_file"] + row["mask_file"] for row in full} == {""}


def test_the_urbancars_layout(tmp_path: Path) -> None:
    manifest = compose(cars(tmp_path), tmp_path / "out")
    root = tmp_path / "out"
    assert sorted(path.name for path in root.iterdir()) == [
        "bg-0.5_co_occur_obj-0.5",
        "bg-0.95_co_occur_obj-0.95",
        "manifest.csv",
        "manifest.json",
    ]
    groups = sorted(
        f"obj-{c}_bg-{b}_co_occur_obj-{o}" for c in manifest.classes for b in manifest.classes for o in manifest.classes
    )
    for place, splits in (("bg-0.95_co_occur_obj-0.95", ["train", "val"]), ("bg-0.5_co_occur_obj-0.5", ["test"])):
        assert sorted(path.name for path in (root / place).iterdir()) == splits
        for split in splits:  # every group has its folder, also one without an image, as readers of the original want
            assert sorted(path.name for path in (root / place / split).iterdir()) == groups
            for (name, count), group in zip(sorted(manifest.counts[split].items()), groups, strict=True):
                assert group == "obj-{}_bg-{}_co_occur_obj-{}".format(*name.split(", "))
                assert len(list((root / place / split / group).glob("*.jpg"))) == count
    for row in table(root / "manifest.csv"):
        group = f"obj-{row['class']}_bg-{row['background']}_co_occur_obj-{row['object']}"
        assert row["image"].split("/")[1:3] == [row["split"], group]
        for kind, file in (("class", "cut_out"), ("background", "background"), ("object", "object")):
            assert row[f"{file}_file"].split("/")[0] == row[kind]


def test_a_full_correlation_is_named_as_the_original_names_it(tmp_path: Path) -> None:
    compose(replace(cars(tmp_path), correlation=(1, 1, 0.5)), tmp_path / "out")  # type: ignore[arg-type]
    assert (tmp_path / "out" / "bg-1.0_co_occur_obj-1.0" / "train").is_dir()


def test_three_classes(tmp_path: Path) -> None:
    recipe = replace(cars(tmp_path, n=5, names=("a", "b", "c")), sizes=(30, 9, 27), correlation=(0.8, 0.8, 1 / 3))
    manifest = compose(recipe, tmp_path / "out")
    assert len(manifest.counts["test"]) == 27
    assert set(manifest.counts["test"].values()) == {1}
    assert manifest.counts["train"]["b, b, b"] == 6
    assert (tmp_path / "out" / "bg-0.3333333333333333_co_occur_obj-0.3333333333333333" / "test").is_dir()


def test_masks_of_things(tmp_path: Path) -> None:
    recipe = cars(tmp_path, n=3)
    for i, path in enumerate(sorted((tmp_path / "things").rglob("*.png"))):
        picture(80, 0, 0, spot=i).save(path)
        save(disc(), tmp_path / "thing-masks" / path.relative_to(tmp_path / "things"))
    with pytest.raises(DataError, match="must have transparency or a mask"):
        compose(recipe, tmp_path / "out")
    compose(replace(recipe, object_masks=tmp_path / "thing-masks"), tmp_path / "out")


def test_hidden_files_other_files_and_odd_names_do_no_harm(tmp_path: Path) -> None:
    recipe = birds(tmp_path, n=3)
    before = files_of(recipe, tmp_path / "one", seed=0)
    for name in (".hidden.png", "notes.txt", "._landbird000.png", ".cache/x.png", "list.csv"):
        path = recipe.foregrounds / "landbird" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no image")
    (recipe.foregrounds / ".git").mkdir()
    (recipe.foregrounds / "readme.png").write_bytes(b"no image")
    assert files_of(recipe, tmp_path / "two", seed=0) == before
    cut_out(9, 9, 9).save(recipe.foregrounds / "landbird" / 'a "b", ü.x.PNG', "PNG")
    compose(recipe, tmp_path / "three")
    assert 'landbird/a "b", ü.x.PNG' in {row["cut_out_file"] for row in table(tmp_path / "three" / "manifest.csv")}


def test_tables_are_utf_8_even_if_a_name_is_not(tmp_path: Path) -> None:
    recipe = birds(tmp_path, n=3)
    name = b"caf\xe9.png"
    try:
        (recipe.foregrounds / "landbird" / "landbird000.png").rename(
            recipe.foregrounds / "landbird" / os.fsdecode(name)
        )
    except OSError:
        pytest.skip("this file system takes no such name")
    compose(recipe, tmp_path / "out")
    names = {row["cut_out_file"] for row in table(tmp_path / "out" / "manifest.csv")}
    assert r"landbird/caf\udce9.png" in names


# writing


def test_progress_is_told_for_every_image(tmp_path: Path) -> None:
    heard: list[Progress] = []
    compose(birds(tmp_path, n=3), tmp_path / "out", listen=heard.append)
    assert [(p.task, p.done, p.total) for p in heard] == [("compose", i, 6) for i in range(1, 7)]
    assert [p.note for p in heard] == ["train"] * 2 + ["val"] * 2 + ["test"] * 2


def test_nothing_is_left_of_an_attempt_that_fails_and_a_killed_ones_rest_is_removed(tmp_path: Path) -> None:
    recipe = birds(tmp_path, n=3)
    (tmp_path / "out.part" / "landbird").mkdir(parents=True)
    (tmp_path / "out.part" / "landbird" / "old.jpg").write_bytes(b"")

    def stop(progress: Progress) -> None:
        if progress.done == 3:
            assert (tmp_path / "out.part").is_dir()
            assert not (tmp_path / "out").exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compose(recipe, tmp_path / "out", listen=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["birds", "places"]
    (tmp_path / "out.part").mkdir()
    (tmp_path / "out.part" / "old.jpg").write_bytes(b"")
    (tmp_path / "out").mkdir()  # an empty folder will do
    compose(recipe, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["birds", "out", "places"]
    assert "old.jpg" not in {Path(name).name for name in files(tmp_path / "out")}


def test_a_place_that_holds_something_is_refused_and_stays(tmp_path: Path) -> None:
    recipe = birds(tmp_path, n=3)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "new.part").write_text("mine")
    for name in ("full", "file", "new"):
        with pytest.raises(DataError, match="must be new or an empty folder"):
            compose(recipe, tmp_path / name)
    assert (tmp_path / "full" / "mine.txt").read_text() == (tmp_path / "new.part").read_text() == "mine"


@pytest.mark.parametrize("place", ["birds/landbird/out", "places", "birds.part", "x/../birds/y"])
def test_a_place_in_or_around_the_sources_is_refused_and_they_stay(tmp_path: Path, place: str) -> None:
    recipe = birds(tmp_path, n=3)
    if place == "birds.part":  # what would be removed as a rest
        recipe.foregrounds.rename(tmp_path / "birds.part")
        recipe, place = replace(recipe, foregrounds=tmp_path / "birds.part"), "birds"
    before = files(tmp_path)
    with pytest.raises(DataError, match=r"must lie apart|must be new or an empty"):
        compose(recipe, tmp_path / place)
    assert files(tmp_path) == before


# errors


def test_an_unknown_layout(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"unknown layout 'waterbird' \(did you mean 'waterbirds'\?\)"):
        Recipe("waterbird", tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("layout", "change", "message"),
    [
        ("waterbirds", {"objects": Path("x")}, "waterbirds must have no co-occurring objects"),
        ("urbancars", {"objects": None}, "urbancars must have a folder of co-occurring objects"),
        ("urbancars", {"correlation": (0.95, 0.5, 0.5)}, "must be one, got 0.95 and 0.5"),
        ("urbancars", {"side": 8}, "side must be at least 32 pixels, got 8"),
        ("waterbirds", {"sizes": (1, 2)}, "sizes must have one value each for train, val and test, got 2"),
        ("waterbirds", {"correlation": (0.9,)}, "correlation must have one value each .* got 1"),
    ],
)
def test_parts_that_do_not_fit(layout: str, change: dict[str, Any], message: str) -> None:
    recipe = Recipe(layout, Path("f"), Path("b"), objects=Path("o") if layout == "urbancars" else None)
    with pytest.raises(DataError, match=message):
        replace(recipe, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"correlation": (0.49, 0.5, 0.5)}, r"correlation must lie in \[0.5, 1\] for 2 classes, got 0.49 for train"),
        ({"correlation": (0.9, 0.5, 1.01)}, "got 1.01 for test"),
        ({"correlation": (0.9, float("nan"), 0.5)}, "got nan for val"),
        ({"sizes": (10, 1, 10)}, "image for each of 2 classes in every split, got 1 for val"),
        ({"foregrounds": Path("nowhere")}, "foregrounds must be a folder, but nowhere is none"),
        ({"masks": Path("nowhere")}, "masks must be a folder, but nowhere is none"),
    ],
)
def test_numbers_and_folders_that_do_not_serve(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        compose(replace(birds(tmp_path, n=3), **change), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.part").exists()


def refused(recipe: Recipe, out: Path, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        compose(recipe, out)
    assert "\n" not in str(caught.value)
    assert not str(caught.value).endswith(".")
    assert not out.exists()
    assert not out.with_name("out.part").exists()


def test_folders_that_are_too_few(tmp_path: Path) -> None:
    recipe, out = birds(tmp_path, n=3), tmp_path / "out"
    (tmp_path / "flat").mkdir()
    picture(0, 0, 0).save(tmp_path / "flat" / "0.png")
    refused(
        replace(recipe, backgrounds=tmp_path / "flat"), out, "flat must hold a folder per class or kind, found none"
    )
    fill(tmp_path / "one", {"only": (1, 2, 3)}, 3, cut=True)
    refused(replace(recipe, foregrounds=tmp_path / "one"), out, "each of 2 or more classes, found 1")
    refused(
        replace(recipe, backgrounds=tmp_path / "one"), out, r"there are classes, 2 \(landbird, waterbird\), found 1"
    )
    (recipe.foregrounds / "waterbird" / "waterbird000.png").unlink()
    refused(recipe, out, r"waterbird must hold at least 3 different images .* found 2")


def test_cut_outs_that_are_none(tmp_path: Path) -> None:
    recipe, out, masks = birds(tmp_path, n=3), tmp_path / "out", tmp_path / "masks"
    path = recipe.foregrounds / "landbird" / "landbird001.png"
    picture(200, 0, 0, spot=1).save(path)
    refused(recipe, out, r"landbird001.png must have transparency or a mask of the same stem, but has neither")
    recipe = replace(recipe, masks=masks)
    mask = masks / "landbird" / "landbird001.png"
    save(disc((30, 40)), mask)
    refused(recipe, out, r"masks/landbird/landbird001.png must have the size of .* 40 x 30 pixels, found 30 x 40")
    save(Image.new("L", (40, 30), 1), mask)  # written as 0 and 1
    refused(recipe, out, r"masks/landbird/landbird001.png must keep something .* highest value is 1")
    save(Image.new("L", (40, 30), 255), mask)
    refused(recipe, out, "must let its background show somewhere, but every pixel is kept")
    save(Image.new("I;16", (40, 30), 65535), mask)
    refused(recipe, out, "must have 8 bits per channel, found mode I;16")
    save(disc(), mask.with_suffix(".bmp"))
    refused(recipe, out, "one mask for each stem, found landbird/landbird001.bmp and landbird/landbird001.png")
    mask.unlink()
    compose(recipe, out)


def test_a_transparent_cut_out(tmp_path: Path) -> None:
    recipe = birds(tmp_path, n=3)
    Image.new("RGBA", (40, 30), (9, 9, 9, 0)).save(recipe.foregrounds / "waterbird" / "waterbird002.png")
    refused(recipe, tmp_path / "out", r"waterbird002.png must keep something .* highest value is 0")


@pytest.mark.parametrize("damage", ["text", "half", "empty"])
def test_a_damaged_image(tmp_path: Path, damage: str) -> None:
    recipe = birds(tmp_path, n=3, n_backgrounds=3)
    for path in (recipe.backgrounds / "land").iterdir():
        noise = np.random.default_rng(int(path.stem[-1])).integers(0, 256, (90, 90, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        whole = path.read_bytes()
        stub = path.name.encode()
        path.write_bytes({"text": stub, "half": whole[: len(whole) // 2], "empty": whole[:8] + stub}[damage])
    refused(recipe, tmp_path / "out", r"land/land00\d.png cannot be read as an image \(.*\); replace or remove it")


def test_the_same_image_in_two_classes(tmp_path: Path) -> None:
    recipe = birds(tmp_path, n=3)
    cut_out(200, 0, 0, 0).save(recipe.foregrounds / "waterbird" / "copy.png")
    refused(recipe, tmp_path / "out", "of one kind, but landbird/landbird000.png and waterbird/copy.png are the same")


@pytest.mark.parametrize("name", ["a_bg-b", "a_co_occur_obj-b"])
def test_a_name_that_the_urbancars_layout_cannot_hold(tmp_path: Path, name: str) -> None:
    refused(cars(tmp_path, n=3, names=("a", name)), tmp_path / "out", f"must not contain '_bg-'.* found '{name}'")
