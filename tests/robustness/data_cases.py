"""Cases of data: folders of images, tables, IDX files and shards that are damaged, or hold what none should."""

from __future__ import annotations

import io
import os
import random
import shutil
import struct
import tarfile
import zlib
from pathlib import Path

from case import Case, checked_run
from damage import damage_bytes, damage_file
from forked import Said
from materials import CHEAP, SMALL, Materials, copied, encoded, options, pick
from nasty import NASTY_NAMES, nasty_text
from PIL import Image

__all__ = ["archives", "idx_files", "photos", "tables"]


def photos(rng: random.Random, place: Path, made: Materials) -> Case:
    """A folder of images, some of which are damaged, or beside which strange things lie."""
    folder = copied(made.photos, place / "photos")
    done = []
    for _ in range(rng.choice((1, 1, 2, 5))):
        done.append(_stranger(rng, folder) if rng.random() < 0.6 else damage_file(pick(rng, folder), rng))
    words = [
        ["run", "folder", "--data-dir", "photos", "--out", "out", *options(*CHEAP)],
        ["data", "check", "folder", "photos"],
    ][rng.random() < 0.4]
    if rng.random() < 0.3:
        words += options("images.on_error=skip")
    return Case(f"{words[0]} of photos: {done}", words, check=lambda said: checked_run(place / "out", said))


STRANGE_FOLDERS = (
    "@eaDir", "$RECYCLE.BIN", "lost+found", "System Volume Information", ".ipynb_checkpoints", "__pycache__",
    ".git", "empty", "__MACOSX", "Thumbs.db", "#recycle", ".Trash-1000", "desktop.ini", "Cat", "runs", "_gsdata_",
)  # fmt: skip


def _stranger(rng: random.Random, folder: Path) -> str:
    """Put something beside images that is none of them, and return what."""
    places = [folder, *sorted(path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink())]
    place = rng.choice(places)
    kind = rng.choice(
        ("name", "name", "system", "link up", "link twice", "dangling", "fifo", "device", "mode", "big", "twin", "deep")
    )
    if kind == "name":
        name = rng.choice(NASTY_NAMES)
        target = place / name if rng.random() < 0.5 else place / f"{name}.png"
        if target.suffix == ".png":
            target.write_bytes(encoded(0, 7))
        else:
            target.mkdir(exist_ok=True)
            (target / "x.png").write_bytes(encoded(1, 8))
        return f"{kind} {target.name!r:.40}"
    if kind == "system":
        target = place / rng.choice(STRANGE_FOLDERS)
        target.mkdir(exist_ok=True)
        if rng.random() < 0.6:
            (target / "thumb.png").write_bytes(encoded(1, 9))
        return f"{kind} {target.name}"
    target = place / "stranger.png"
    if kind == "link up":
        (place / "c").symlink_to(rng.choice((".", "..", "../..")))
    elif kind == "link twice":
        (place / f"again{rng.randrange(1000)}.png").symlink_to(pick(rng, folder))
    elif kind == "dangling":
        target.symlink_to("nowhere.png")
    elif kind == "fifo":
        os.mkfifo(target)
    elif kind == "device":
        target.symlink_to(rng.choice(("/dev/zero", "/dev/null", "/dev/tty", "/proc/self/mem", "/proc/kmsg")))
    elif kind == "mode":
        _mode(rng, target)
    elif kind == "big":
        target.write_bytes(_bomb(rng))
    elif kind == "twin":
        file = pick(rng, folder)
        shutil.copyfile(file, file.with_name(file.name.upper() + ".PNG"))
    elif kind == "deep":
        deep = place
        for _ in range(rng.choice((5, 40, 150))):
            deep = deep / "d"
        deep.mkdir(parents=True, exist_ok=True)
        (deep / "x.png").write_bytes(encoded(0, 3))
    return kind


def _mode(rng: random.Random, target: Path) -> None:
    """Save a picture of another mode or kind of file under a name in ``.png``."""

    mode = rng.choice(("1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"))
    whole = Image.new(mode, (rng.choice((1, 5, 30)), rng.choice((1, 7, 30))))
    form = rng.choice(("PNG", "TIFF", "GIF", "JPEG", "BMP", "WEBP", "PPM"))
    try:
        whole.save(target, form)
    except (OSError, ValueError):
        whole.convert("L").save(target, "PNG")


def _bomb(rng: random.Random) -> bytes:
    """Return a small file that states an image of very many pixels."""

    side = rng.choice((14_000, 60_000, 2**31 - 1))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")
    )


def tables(rng: random.Random, place: Path, made: Materials) -> Case:
    """A table of images that is damaged, or holds cells that nobody would write."""
    folder = copied(made.table, place / "table")
    lines = (folder / "labels.csv").read_text(encoding="utf-8").splitlines()
    kind = rng.choice(("bytes", "cell", "cell", "column", "header", "labels", "parquet", "rows"))
    name = "labels.csv"
    if kind == "cell":
        for _ in range(rng.choice((1, 1, 20))):
            row = rng.randrange(len(lines))
            cells = lines[row].split(",")
            cells[rng.randrange(len(cells))] = rng.choice(
                (nasty_text(rng), rng.choice(NASTY_NAMES), "", "/etc/passwd", "../x.png")
            )[:9000]
            lines[row] = ",".join(cells)
    elif kind == "column":
        which = rng.randrange(4)
        value = rng.choice(("", "x", "0.0", "nan", "train", "1,2", '"a\nb"', "é"))
        lines = [
            lines[0],
            *(",".join([*c[:which], value, *c[which + 1 :]]) for c in (line.split(",") for line in lines[1:])),
        ]
    elif kind == "header":
        lines[0] = rng.choice(
            (
                "path,label,label,split",
                "path;label;split",
                "",
                "\ufeffpath,label,split,background",
                "a,b,c,d",
                "PATH,Label,Split,background",
                "path,label,split",
            )
        )
    elif kind == "labels":
        spellings = rng.choice(
            (
                ("0", "1"),
                ("0.0", "1.0", "10.0"),
                ("1", "1.0"),
                ("True", "true", "FALSE", "False"),
                ("01", "1"),
                ("a", "a ", "A"),
                ("nan", "NaN", "x"),
                ("-1", "0", "1"),
                ("9" * 25, "1"),
                ("0.9", "1.1"),
            )
        )
        lines = [
            lines[0],
            *(",".join([c[0], rng.choice(spellings), *c[2:]]) for c in (line.split(",") for line in lines[1:])),
        ]
    elif kind == "rows":
        lines = rng.choice(
            (lines[:1], lines[:2], lines + lines[1:], [lines[0], *(line for line in lines if ",cat," in line)])
        )
    (folder / "labels.csv").unlink()
    whole = "\n".join(lines).encode("utf-8", "surrogateescape") + b"\n"
    if kind == "bytes":
        whole, done = damage_bytes(whole, ".csv", rng)
        kind += f" {done}"
    elif kind == "parquet":
        import pandas as pd

        kept = io.BytesIO()
        pd.DataFrame([line.split(",") for line in lines[1:]], columns=lines[0].split(",")).to_parquet(kept)
        whole, done = damage_bytes(kept.getvalue(), ".parquet", rng)
        kind, name = f"{kind} {done}", "labels.parquet"
    (folder / name).write_bytes(whole)
    extra = rng.choice(
        ([], ["data.group_columns=[background]"], ["data.group_columns=[background]"], ["data.classes=[dog, cat]"])
    )
    given = [f"data.table={name}", *extra]
    words = ["run", "table", "--data-dir", "table", "--out", "out", *options(*CHEAP, *given)]
    return Case(f"table: {kind} {extra}", words, check=lambda said: checked_run(place / "out", said))


def idx_files(rng: random.Random, place: Path, made: Materials) -> Case:
    """IDX files that are damaged, or do not match each other."""
    folder = copied(made.idx, place / "mnist")
    file = pick(rng, folder)
    how = damage_file(file, rng)
    words = ["run", "cmnist", "--data-dir", place, "--out", "out", *options(*SMALL, "explain.size=7")]
    return Case(f"IDX {file.name} {how}", words, check=lambda said: checked_run(place / "out", said))


def archives(rng: random.Random, place: Path, made: Materials) -> Case:
    """Shards that are damaged, or whose members want to be elsewhere: nothing is written but into the run folder."""
    folder = copied(made.shards, place / "in" / "shards")
    file = pick(rng, folder)
    how = damage_file(file, rng) if rng.random() < 0.5 else _member(rng, file)
    (place / "in" / "home").mkdir()
    words = ["run", "webdataset", "--data-dir", "shards", "--out", "out", *options(*CHEAP)]

    def check(said: Said) -> list[str]:
        there = {path.name for path in place.iterdir()} - {"in"}
        return checked_run(place / "in" / "out", said) + ([f"escaped: {there}"] if there else [])

    # The command is given one folder below, so that `..` can be seen.
    return Case(f"shards: {how}", words, check=check, before=lambda: os.chdir("in"))


def _member(rng: random.Random, file: Path) -> str:
    """Put a member into an archive that no honest one holds, and return what."""

    kept = file.read_bytes()
    file.unlink()
    file.write_bytes(kept)
    kind = rng.choice(
        ("../out.png", "/tmp/exmap-escaped.png", "link", "hard link", "fifo", "name", "huge", "twice", "class")
    )
    member = tarfile.TarInfo("zz.png")
    data = encoded(0, 5)
    if kind == "link":
        member.type, member.linkname, data = tarfile.SYMTYPE, "/etc/passwd", b""
    elif kind == "hard link":
        member.type, member.linkname, data = tarfile.LNKTYPE, "../../x", b""
    elif kind == "fifo":
        member.type, data = tarfile.FIFOTYPE, b""
    elif kind == "name":
        member.name = rng.choice(NASTY_NAMES) + ".png"
    elif kind == "twice":
        member.name = "0000.png"
    elif kind == "class":
        member.name, data = "0000.cls", nasty_text(rng).encode("utf-8", "surrogatepass")[:5000]
    elif kind != "huge":
        member.name = kind
    member.size = len(data)
    with tarfile.open(file, "a") as archive:
        archive.addfile(member, io.BytesIO(data))
        if kind == "huge":
            member = tarfile.TarInfo("zy.png")
            member.size = 2**40
            archive.fileobj.seek(archive.offset)  # type: ignore[union-attr]
            archive.fileobj.write(member.tobuf())  # type: ignore[union-attr]
    return kind
