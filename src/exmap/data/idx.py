"""IDX files (the format of MNIST and Fashion-MNIST), gzipped or not: find, download, read, verify.

Format: two zero bytes, a type code (8 = unsigned byte), the number of dimensions, each dimension as a big-endian
32-bit number, then the values.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exmap.errors import DataError

__all__ = ["FILES", "download_set", "find_idx", "find_set", "read_idx", "read_pair"]

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
    stored = path.read_bytes()
    try:
        raw = gzip.decompress(stored) if path.suffix == ".gz" else stored
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is not a whole gzip file ({error}); fetch it again") from error
    magic = struct.pack(">HBB", 0, 8, dimensions)
    if raw[:4] != magic:
        raise DataError(
            f"{path} must start with the IDX magic number {magic.hex()} ({dimensions}-dimensional unsigned bytes), "
            f"found {raw[:4].hex() or 'an empty file'}; give the original IDX file"
        )
    header = 4 + 4 * dimensions
    shape = struct.unpack(f">{dimensions}I", raw[4:header]) if len(raw) >= header else ()
    expected = header + (math.prod(shape) if shape else 0)
    if len(raw) != expected:
        raise DataError(
            f"{path} must hold {expected:,} bytes by its header, found {len(raw):,}; it is "
            f"{'truncated' if len(raw) < expected else 'too long'}: fetch it again"
        )
    return np.frombuffer(raw, dtype=np.uint8, offset=header).reshape(shape), hashlib.sha256(stored).hexdigest()


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


def read_pair(folder: Path, stem: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8], dict[str, str]]:
    """Read the images and labels of ``train`` or ``t10k``, with the digests of both files.

    Raises
    ------
    DataError
        As :func:`read_idx`, or if there is not one label per image.
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
    return images, labels, {images_path.name: images_digest, labels_path.name: labels_digest}


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
