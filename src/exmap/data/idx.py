"""IDX files (the format of MNIST and Fashion-MNIST), gzipped or not: find, download, read, verify.

Format: two zero bytes, a type code (8 = unsigned byte), the number of dimensions, each dimension as a big-endian
32-bit number, then the values.
"""

from __future__ import annotations

import hashlib
import http.client
import math
import struct
import zlib
from contextlib import AbstractContextManager, nullcontext
from gzip import GzipFile
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exmap.data.regular import open_regular
from exmap.errors import DataError

__all__ = ["FILES", "download_set", "find_idx", "find_set", "read_idx", "read_pair"]

CLASSES = 10
LARGEST = 2**30  # bytes of one file; the largest sets in this format have half of that
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def find_idx(folder: Path, name: str) -> Path:
    """Return the path of `name` or `name`.gz in `folder`.

    Raises
    ------
    DataError
        If neither is there.
    """
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise DataError(
        f"{folder} must hold {name} or {name}.gz, but has neither; give the folder of the IDX files with --data-dir, "
        "or let them be downloaded with --set data.download=true"
    )


def read_idx(path: Path, dimensions: int) -> tuple[NDArray[np.uint8], str]:
    """Read one IDX file of unsigned bytes.

    Parameters
    ----------
    path : Path
        Gzipped if it ends in ``.gz``.
    dimensions : int
        3 for images, 1 for labels.

    Returns
    -------
    array : ndarray of uint8
        With the shape the header states.
    digest : str
        SHA-256 of the file as it lies on disk.

    Raises
    ------
    DataError
        For a wrong magic number, a damaged gzip stream, or fewer or more bytes than the header states.
    """
    with open_regular(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        try:
            with _plain(file, path) as stream:
                shape = _read_header(stream, path, dimensions)
                header, length = 4 + 4 * dimensions, math.prod(shape)
                if length > LARGEST:
                    raise DataError(
                        f"{path} must hold at most {LARGEST:,} bytes, but its header states {header + length:,}; give "
                        "the original IDX file"
                    )
                values = stream.read(length + 1)  # what is stated, and not what a small file may be blown up to
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path} is not a whole gzip file: it is cut off or damaged; fetch it again") from error
    if len(values) != length:
        found = f"{header + len(values):,}" + (" or more" if len(values) > length else "")
        raise DataError(
            f"{path} must hold {header + length:,} bytes by its header, found {found}; it is "
            f"{'truncated' if len(values) < length else 'too long'}: fetch it again"
        )
    return np.frombuffer(values, dtype=np.uint8).reshape(shape), digest


def _plain(file: BufferedReader, path: Path) -> AbstractContextManager[GzipFile | BufferedReader]:
    """Return the stream of a file's bytes, unpacked where it is gzipped."""
    return GzipFile(fileobj=file) if path.suffix == ".gz" else nullcontext(file)


def _read_header(stream: GzipFile | BufferedReader, path: Path, dimensions: int) -> tuple[int, ...]:
    """Return the shape that a file states."""
    magic, start = struct.pack(">HBB", 0, 8, dimensions), stream.read(4)
    if start != magic:
        raise DataError(
            f"{path} must start with the IDX magic number {magic.hex()} ({dimensions}-dimensional unsigned bytes), "
            f"found {start.hex() or 'an empty file'}; give the original IDX file"
        )
    stated = stream.read(4 * dimensions)
    if len(stated) < 4 * dimensions:
        raise DataError(
            f"{path} must hold {4 + 4 * dimensions:,} bytes by its header, found {4 + len(stated):,}; it is truncated: "
            "fetch it again"
        )
    return struct.unpack(f">{dimensions}I", stated)


def find_set(folder: Path | None, name: str) -> Path:
    """Return where the IDX files of ``mnist`` or ``fashion-mnist`` lie at or below `folder`.

    Both sets name their files alike, so that only a folder's own name tells which it is: ``mnist``, or torchvision's
    ``MNIST/raw``; ``fashion-mnist`` or ``FashionMNIST/raw``. For MNIST, `folder` itself may hold the files.

    Raises
    ------
    DataError
        If they lie in none of these.
    """
    if folder is None:
        raise DataError(f"the IDX files of {name} must lie in a folder, and none was given; name it with --data-dir")
    below = {"mnist": ("mnist", "MNIST/raw", "."), "fashion-mnist": ("fashion-mnist", "FashionMNIST/raw")}[name]
    for place in below:
        if any((folder / place).glob(f"{FILES[0]}*")):
            return folder / place
    raise DataError(
        f"{folder} must hold {name}'s IDX files ({FILES[0]}.gz and three more) in one of {', '.join(below)}, but none "
        "has them; give the folder that holds them with --data-dir, or let them be downloaded with "
        "--set data.download=true"
    )


def read_pair(
    folder: Path, stem: str, side: int | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], dict[str, str]]:
    """Read the images and labels of ``train`` or ``t10k``, with the digests of both files.

    Parameters
    ----------
    folder : Path
    stem : str
    side : int, optional
        Height and width that the images must have.

    Raises
    ------
    DataError
        As :func:`read_idx`, or if there is not one label from 0 to 9 per image, or if the images have another size,
        than they must or than those of the other pair.
    """
    images_path = find_idx(folder, f"{stem}-images-idx3-ubyte")
    labels_path = find_idx(folder, f"{stem}-labels-idx1-ubyte")
    images, images_digest = read_idx(images_path, 3)
    labels, labels_digest = read_idx(labels_path, 1)
    if len(images) != len(labels):
        raise DataError(
            f"{images_path} and {labels_path} must hold one label per image, found {len(images)} images and "
            f"{len(labels)} labels; they belong to different sets"
        )
    if len(labels) and labels.max() >= CLASSES:
        raise DataError(
            f"{labels_path} must hold labels from 0 to {CLASSES - 1}, found {labels.min()} to {labels.max()}; give the "
            "original IDX file, or number the classes from 0 on"
        )
    _check_sizes(folder, images_path, images.shape[1:], side)
    return images, labels, {images_path.name: images_digest, labels_path.name: labels_digest}


def _check_sizes(folder: Path, path: Path, size: tuple[int, ...], side: int | None) -> None:
    found = " x ".join(map(str, size))
    if 0 in size or (side is not None and size != (side, side)):
        wanted = f"{side} x {side}" if side is not None else "1 x 1 or more"
        raise DataError(f"{path} must hold images of {wanted} pixels, found {found}; give the original IDX file")
    for name in (FILES[0], FILES[2]):
        other = next((place for place in (folder / name, folder / f"{name}.gz") if place.is_file()), path)
        if other == path:
            continue
        try:
            with open_regular(other) as file, _plain(file, other) as stream:
                beside = _read_header(stream, other, 3)[1:]
        except (DataError, OSError, EOFError, zlib.error):  # it is read by itself, or not at all
            continue
        if beside != size:
            raise DataError(
                f"{path} and {other} must hold images of one size, found {found} and {' x '.join(map(str, beside))}; "
                "they belong to different sets"
            )


def download_set(folder: Path, name: str) -> None:
    """Download the files of ``mnist`` or ``fashion-mnist`` that `folder` lacks, each checked by its published MD5.

    Raises
    ------
    DataError
        If no mirror delivers a file with the right checksum.
    """
    from torchvision.datasets import MNIST, FashionMNIST
    from torchvision.datasets.utils import download_url

    source: Any = {"mnist": MNIST, "fashion-mnist": FashionMNIST}[name]
    folder.mkdir(parents=True, exist_ok=True)
    for archive, md5 in source.resources:
        if any((folder / name).is_file() for name in (archive, archive.removesuffix(".gz"))):
            continue
        reasons = []
        for mirror in source.mirrors:
            part = folder / f"{archive}.part"
            try:
                download_url(f"{mirror}{archive}", str(folder), part.name, md5)
                part.replace(folder / archive)
                break
            except (OSError, RuntimeError, http.client.HTTPException) as error:
                part.unlink(missing_ok=True)
                reasons.append(f"{mirror}: {error}")
        else:
            raise DataError(
                f"{archive} could not be downloaded ({'; '.join(reasons)}); fetch it elsewhere and put it into {folder}"
            )
