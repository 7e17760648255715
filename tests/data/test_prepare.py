from __future__ import annotations

import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from exmap.data.catalog import read_images
from exmap.data.prepare import prepare_data
from exmap.errors import DataError, SettingsError
from exmap.registry import DATASETS
from exmap.settings import DataSettings
from trees import celeba_tree, picture, urbancars_tree, waterbirds_tree

FEW = {0: (1, 1, 1, 1), 1: (1, 1, 1, 1), 2: (1, 1, 1, 1)}
CARS = dict.fromkeys(range(3), (1,) * 8)
TREE = "waterbird_complete95_forest2water2"


def tar(source: Path, archive: Path) -> Path:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz" if archive.suffix != ".tar" else "w") as file:
        file.add(source, source.name)
    return archive


def waterbirds_archives(root: Path) -> Path:
    """Write both archives under the names they are published with, into one folder."""
    waterbirds_tree(root / "made", FEW, masks=True)
    tar(root / "made" / TREE, root / "archives" / f"{TREE}.tar.gz")
    tar(root / "made" / "segmentations", root / "archives" / "segmentations.tgz")
    return root / "archives"


def celeba_files(root: Path) -> Path:
    """Write CelebA's three files as one downloads them."""
    made = celeba_tree(root / "made", FEW)
    (root / "files").mkdir()
    with zipfile.ZipFile(root / "files" / "img_align_celeba.zip", "w") as file:
        for image in sorted((made / "img_align_celeba").iterdir()):
            file.write(image, f"img_align_celeba/{image.name}")
    for table in made.glob("*.txt"):
        shutil.copyfile(table, root / "files" / table.name)
    return root / "files"


def images(name: str, folder: Path) -> int:
    table = read_images(DataSettings(name=name, dir=folder))
    return sum(table.files.stamp(image)[0] > 0 for image in table.names)


def test_waterbirds_are_unpacked_from_their_archive(tmp_path: Path) -> None:
    archives, to = waterbirds_archives(tmp_path), tmp_path / "deep" / "to"
    assert prepare_data("waterbirds", to, source=archives / f"{TREE}.tar.gz") == to
    assert images("waterbirds", to) == 12


def test_waterbirds_fg_are_unpacked_from_a_folder_of_both_archives(tmp_path: Path) -> None:
    archives, to = waterbirds_archives(tmp_path), tmp_path / "to"
    assert prepare_data("waterbirds-fg", to, source=archives) == to
    table = read_images(DataSettings(name="waterbirds-fg", dir=to))
    assert sum(table.files.stamp(mask)[0] > 0 for mask in table.masks if mask) == 4


def test_archives_may_come_one_after_the_other(tmp_path: Path) -> None:
    archives, to = waterbirds_archives(tmp_path), tmp_path / "to"
    prepare_data("waterbirds", to, source=archives / f"{TREE}.tar.gz")
    with pytest.raises(DataError, match=r"needs CUB's masks in .*segmentations, and there is no such folder"):
        prepare_data("waterbirds-fg", to, source=archives / f"{TREE}.tar.gz")
    assert prepare_data("waterbirds-fg", to, source=archives) == to
    assert images("waterbirds-fg", to) == 12


def test_downloads_that_were_unpacked_before_are_not_unpacked_again(tmp_path: Path) -> None:
    archives, to = waterbirds_archives(tmp_path), tmp_path / "to"
    prepare_data("waterbirds", to, source=archives / f"{TREE}.tar.gz")
    changed = (to / TREE / "metadata.csv").stat().st_mtime_ns
    prepare_data("waterbirds-fg", to, source=archives)
    assert (to / TREE / "metadata.csv").stat().st_mtime_ns == changed


def test_celeba_is_prepared_from_its_three_files(tmp_path: Path) -> None:
    files, to = celeba_files(tmp_path), tmp_path / "to"
    assert prepare_data("celeba", to, source=files) == to
    assert images("celeba", to) == 12
    assert sorted(path.name for path in to.iterdir()) == [
        "img_align_celeba",
        "list_attr_celeba.txt",
        "list_eval_partition.txt",
    ]


def test_celeba_may_be_unpacked_where_its_files_lie(tmp_path: Path) -> None:
    files = celeba_files(tmp_path)
    assert prepare_data("celeba", files, source=files) == files


def test_celeba_whose_tables_come_later_is_not_unpacked_again(tmp_path: Path) -> None:
    files, to = celeba_files(tmp_path), tmp_path / "to"
    with pytest.raises(DataError, match=r"must hold metadata.csv or list_attr_celeba.txt or"):
        prepare_data("celeba", to, source=files / "img_align_celeba.zip")
    assert prepare_data("celeba", to, source=files) == to
    assert images("celeba", to) == 12


def test_tables_without_images_are_not_the_whole_data_set(tmp_path: Path) -> None:
    files = celeba_files(tmp_path)
    (files / "img_align_celeba.zip").unlink()
    with pytest.raises(DataError) as caught:
        prepare_data("celeba", tmp_path / "to", source=files)
    assert str(caught.value) == (
        f"the images of celeba must also be in {files}, but 000001.jpg is missing; unpack them"
    )


def test_urbancars_are_unpacked_from_a_plain_tar(tmp_path: Path) -> None:
    urbancars_tree(tmp_path / "made", CARS)
    archive, to = tar(tmp_path / "made" / "urbancars", tmp_path / "UrbanCars-copy.tar"), tmp_path / "to"
    assert prepare_data("urbancars", to, source=archive) == to
    assert [images(name, to) for name in ("urbancars", "urbancars-bg", "urbancars-coobj")] == [24, 24, 24]


def test_a_source_in_the_right_layout_is_used_where_it_lies(tmp_path: Path) -> None:
    source, to = waterbirds_tree(tmp_path / "source", FEW), tmp_path / "to"
    assert prepare_data("waterbirds", to, source=source) == source
    assert not to.exists()


@pytest.mark.parametrize("fetch", [False, True])
def test_what_is_prepared_already_stays(tmp_path: Path, fetch: bool) -> None:
    to = waterbirds_tree(tmp_path, FEW)
    assert prepare_data("waterbirds", to, source=tmp_path / "no-such", fetch=fetch) == to


@pytest.mark.parametrize("name", ["../escaped.txt", "/escaped.txt", "a/../../escaped.txt", "C:\\escaped.txt"])
def test_an_archive_that_leaves_its_folder_is_refused_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    archive, to = tmp_path / "waterbirds.zip", tmp_path / "inner" / "to"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("metadata.csv", "")
        file.writestr(name, "")
    with pytest.raises(DataError, match="which would be written outside the folder; nothing was unpacked"):
        prepare_data("waterbirds", to, source=archive)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["waterbirds.zip"]


def test_an_archive_of_something_else_is_told_by_the_reader(tmp_path: Path) -> None:
    picture(tmp_path / "cats" / "1.jpg")
    archive, to = tar(tmp_path / "cats", tmp_path / "cats.tar.gz"), tmp_path / "to"
    with pytest.raises(DataError) as caught:
        prepare_data("waterbirds", to, source=archive)
    assert str(caught.value) == f"{to} must hold metadata.csv, itself or in a folder below it, but it does not"


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    archive = waterbirds_archives(tmp_path) / f"{TREE}.tar.gz"
    archive.write_bytes(archive.read_bytes()[:-300])
    with pytest.raises(DataError, match="is damaged"):
        prepare_data("waterbirds", tmp_path / "to", source=archive)
    assert not (tmp_path / "to").exists()


def test_a_source_without_archives_is_left_alone(tmp_path: Path) -> None:
    source, to = tmp_path / "source", tmp_path / "to"
    source.mkdir()
    (source / "notes.txt").write_text("private")
    with pytest.raises(DataError, match=r"source must hold metadata.csv or list_attr_celeba.txt"):
        prepare_data("celeba", to, source=source)
    assert not to.exists()


def test_a_source_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        prepare_data("waterbirds", tmp_path / "to", source=tmp_path / "gone.zip")
    assert str(caught.value) == f"the source {tmp_path / 'gone.zip'} does not exist; give an archive or a folder"


@pytest.mark.parametrize("name", sorted(name for name, one in DATASETS.items() if one.counts or one.idx))
def test_without_a_source_it_says_what_to_get_and_where_to_put_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError) as caught:
        prepare_data(name, tmp_path / "to")
    public = name.startswith("waterbirds") or bool(DATASETS[name].idx)
    said = str(caught.value)
    assert said.startswith(
        f"{name} can be prepared {'with --download, or ' if public else ''}from an archive or a folder with --source "
        "PATH; name one."
    )
    assert said.endswith(DATASETS[name].instead)
    assert said == said.strip()
    assert public or {"celeba": "list_eval_partition.txt"}.get(name, "bg-0.5_co_occur_obj-0.5") in said
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("name", ["celeba", "urbancars", "urbancars-bg", "urbancars-coobj"])
def test_what_is_not_public_is_not_downloaded(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError) as caught:
        prepare_data(name, tmp_path / "to", fetch=True)
    assert str(caught.value) == f"{name} cannot be downloaded. {DATASETS[name].instead}"


def test_there_is_nothing_to_prepare_of_embedded_data_and_of_your_own(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"^digits comes with a library exmap needs: there is nothing to prepare, run it"
    ):
        prepare_data("digits", tmp_path)
    for name in ("folder", "table", "huggingface"):
        with pytest.raises(DataError, match=rf"^{name} is your own images: there is nothing to prepare, run them with"):
            prepare_data(name, tmp_path)


def test_an_unknown_name_is_answered_with_the_closest(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^unknown data set 'waterbird' \(did you mean 'waterbirds'\?\)"):
        prepare_data("waterbird", tmp_path)


def test_idx_files_are_used_where_they_lie(idx_dir: Path, tmp_path: Path) -> None:
    assert prepare_data("dominoes", idx_dir) == idx_dir
    assert prepare_data("cmnist", tmp_path, source=idx_dir / "mnist") == idx_dir / "mnist"
    with pytest.raises(DataError, match="must hold fashion-mnist's IDX files"):
        prepare_data("dominoes", tmp_path, source=idx_dir / "mnist")
