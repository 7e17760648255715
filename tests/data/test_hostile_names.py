"""Names that strangers choose never lead out of a folder: paths in tables, members and links of archives."""

from __future__ import annotations

import os
import tarfile
import tempfile
from pathlib import Path, PurePosixPath, PureWindowsPath

from hypothesis import given
from hypothesis import strategies as st
from test_fetch import entry, tar_bytes, write, zip_bytes

from exmap.data.table import relative_name
from exmap.data.unpack import extract
from exmap.errors import DataError

PARTS = st.sampled_from(["..", ".", "", "a", "b", "C:", "c:a", "..\\..", "\\", "~", "a..", "a\0b", " "])
NAMES = st.lists(PARTS, min_size=1, max_size=5).map("/".join)
KINDS = st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])


@given(NAMES)
def test_a_path_in_a_table_lies_below_the_folder_or_is_refused(text: str) -> None:
    try:
        name = relative_name(text, "images.csv")
    except DataError:
        return
    assert os.path.normpath(f"/images/{name}").startswith("/images")
    for path in (PurePosixPath(name), PureWindowsPath(name)):
        assert not path.drive
        assert not path.root
        assert ".." not in path.parts


def assert_inside_or_refused(content: bytes) -> None:
    """Unpack an archive into one of two folders, and find the other, and the one above, as they were."""
    with tempfile.TemporaryDirectory() as place:
        above = Path(place).resolve()
        archive = write(above / "archive", content)
        (above / "a").mkdir()
        write(above / "a" / "b", b"precious")
        out = above / "out"
        try:
            extract(archive, out)
        except DataError:
            assert not out.exists()
        else:
            real = [Path(os.path.realpath(path)) for path in out.rglob("*")]  # not `resolve`: a link may be a loop
            assert all(path.is_relative_to(out) for path in real)
        assert {path.name for path in above.iterdir()} <= {"archive", "a", "out"}
        assert [path.read_bytes() for path in (above / "a").iterdir()] == [b"precious"]


@given(st.lists(st.tuples(NAMES, KINDS, NAMES), min_size=1, max_size=4))
def test_a_tar_unpacks_into_its_folder_or_is_refused(entries: list[tuple[str, bytes, str]]) -> None:
    without_nul = [(name.replace("\0", ""), kind, to.replace("\0", "")) for name, kind, to in entries]
    assert_inside_or_refused(
        tar_bytes(
            *(
                entry(name, b"evil") if kind == tarfile.REGTYPE else entry(name, type=kind, linkname=to)
                for name, kind, to in without_nul
            )
        )
    )


@given(st.lists(NAMES.filter(bool), min_size=1, max_size=4))
def test_a_zip_unpacks_into_its_folder_or_is_refused(names: list[str]) -> None:
    assert_inside_or_refused(zip_bytes(*((name, b"evil") for name in names)))
