from __future__ import annotations

import contextlib
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torchvision.transforms import RandomResizedCrop

from exmap.data.decode import centre_crop, decode, random_crop
from exmap.errors import DataError

Pixels = NDArray[np.uint8]
COLOURS = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
DEEP = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)  # every step of 16 bits


def stored(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(array: NDArray[Any]) -> bytes:
    return stored(Image.fromarray(array), "PNG")


def smooth(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture such as a camera makes: no two neighbours differ much, and no symmetry."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def grey(values: NDArray[Any]) -> Pixels:
    return np.repeat(values.astype(np.uint8)[:, :, None], 3, axis=2)


def over_white(colours: NDArray[Any], alpha: NDArray[Any]) -> NDArray[np.float64]:
    share = alpha[:, :, None] / 255
    return colours * share + 255 * (1 - share)


def refusal(data: bytes, mask: bytes | None = None) -> str:
    with pytest.raises(DataError) as caught:
        decode(data, 8, mask)
    return str(caught.value)


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG file of a few bytes whose head names any size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def exif(order: str, tags: list[tuple[int, int, int, bytes]]) -> bytes:
    """EXIF data as they stand in a file: (tag, type, count, four bytes of value)."""
    entries = b"".join(struct.pack(f"{order}HHI", tag, kind, count) + value for tag, kind, count, value in tags)
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    return b"Exif\0\0" + start + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_colours_come_out_as_they_were_stored(kind: str) -> None:
    decoded = decode(stored(Image.fromarray(COLOURS), kind), 8)
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, COLOURS)


def test_webp_comes_out_as_it_was_stored() -> None:
    assert np.array_equal(decode(stored(Image.fromarray(COLOURS), "WEBP", lossless=True), 8), COLOURS)


def test_grey_has_three_equal_channels() -> None:
    assert np.array_equal(decode(png(COLOURS[:, :, 0]), 8), grey(COLOURS[:, :, 0]))


def test_one_bit_is_black_and_white() -> None:
    bits = COLOURS[:, :, 0] > 127
    data = stored(Image.fromarray(bits), "PNG")
    assert Image.open(io.BytesIO(data)).mode == "1"
    assert np.array_equal(decode(data, 8), grey(255 * bits))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_what_is_transparent_is_laid_over_white(kind: str) -> None:
    alpha = np.tile(np.arange(8, dtype=np.uint8) * 36, (8, 1))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    decoded = decode(stored(Image.fromarray(np.dstack([COLOURS, alpha])), kind, **options), 8)
    assert np.abs(decoded - over_white(COLOURS, alpha)).max() <= 1
    assert (decoded[:, 0] == 255).all()


def test_grey_with_transparency_is_laid_over_white() -> None:
    alpha = np.tile(np.arange(8, dtype=np.uint8) * 36, (8, 1))
    shade = COLOURS[:, :, 0]
    data = stored(Image.fromarray(np.dstack([shade, alpha])), "PNG")
    assert Image.open(io.BytesIO(data)).mode == "LA"
    assert np.abs(decode(data, 8) - over_white(grey(shade), alpha)).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_one_transparent_colour_of_a_palette_becomes_white(kind: str) -> None:
    image = Image.fromarray((np.arange(64) % 3).astype(np.uint8).reshape(8, 8)).convert("P")
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    data = stored(image, kind, transparency=1)
    wanted = np.array([[200, 0, 0], [255, 255, 255], [0, 0, 200]])[np.arange(64) % 3].reshape(8, 8, 3)
    assert np.array_equal(decode(data, 8), wanted)


def test_a_palette_with_degrees_of_transparency_is_laid_over_white() -> None:
    image = Image.fromarray((np.arange(64) % 3).astype(np.uint8).reshape(8, 8)).convert("P")
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    data = stored(image, "PNG", transparency=bytes([0, 128, 255]))
    assert Image.open(io.BytesIO(data)).mode == "P"
    colours = np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200]])[np.arange(64) % 3].reshape(8, 8, 3)
    alpha = np.array([0, 128, 255])[np.arange(64) % 3].reshape(8, 8)
    assert np.abs(decode(data, 8) - over_white(colours, alpha)).max() <= 1


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3)])
def test_one_transparent_colour_without_a_palette_becomes_white(shape: tuple[int, ...]) -> None:
    array = np.zeros(shape, dtype=np.uint8)
    array[:4] = 7
    data = stored(Image.fromarray(array), "PNG", transparency=7 if len(shape) == 2 else (7, 7, 7))
    assert np.array_equal(decode(data, 8), grey(np.repeat([[255], [0]], 4, axis=0) * np.ones(8)))


@pytest.mark.parametrize("colour", [(200, 30, 60), (0, 0, 0), (255, 255, 255), (10, 220, 90)])
def test_a_cmyk_jpeg_is_not_inverted(colour: tuple[int, int, int]) -> None:
    data = stored(Image.new("RGB", (64, 64), colour).convert("CMYK"), "JPEG", quality=95)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    assert np.abs(decode(data, 16).astype(int) - colour).max() <= 3


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_and_not_cut_off(kind: str) -> None:
    assert np.array_equal(decode(stored(Image.fromarray(DEEP), kind), 8), grey(DEEP // 257))


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_sixteen_bits_of_either_byte_order_are_the_same(mode: str) -> None:
    order = ">u2" if mode == "I;16B" else "<u2"
    data = stored(Image.frombytes(mode, (8, 8), DEEP.astype(order).tobytes()), "TIFF")
    assert Image.open(io.BytesIO(data)).mode == mode
    assert np.array_equal(decode(data, 8), grey(DEEP // 257))


def test_sixteen_bits_held_in_thirty_two_are_the_same() -> None:
    data = stored(Image.fromarray(DEEP.astype(np.int32)), "TIFF")
    assert Image.open(io.BytesIO(data)).mode == "I"
    assert np.array_equal(decode(data, 8), grey(DEEP // 257))


@pytest.mark.parametrize("value", [-1, 65536, 2**31 - 1])
def test_whole_numbers_beyond_sixteen_bits_are_refused(value: int) -> None:
    data = stored(Image.fromarray(np.array([[0, value]], dtype=np.int32)), "TIFF")
    assert refusal(data) == "pixels outside 0 to 65535 have no known range: save it with 8 or 16 bits"


def test_floating_point_is_refused() -> None:
    data = stored(Image.fromarray(np.ones((8, 8), dtype=np.float32)), "TIFF")
    assert refusal(data) == "floating-point pixels have no known range: save it with 8 or 16 bits"


@pytest.mark.parametrize("size", [(96, 64), (640, 480)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotated_jpeg_looks_like_the_upright_picture(orientation: int, size: tuple[int, int]) -> None:
    undone = {  # how a camera that was held so has stored the upright picture
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    upright = np.asarray(smooth(*size))
    tag = Image.Exif()
    tag[0x0112] = orientation
    as_stored = Image.fromarray(np.ascontiguousarray(undone[orientation](upright)))
    decoded = decode(stored(as_stored, "JPEG", quality=95, exif=tag), 32).astype(int)
    assert np.abs(decoded - decode(png(upright), 32)).mean() < 2


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_other_formats_are_set_upright_too_and_once(kind: str) -> None:
    tag = Image.Exif()
    tag[0x0112] = 6
    as_stored = Image.fromarray(np.ascontiguousarray(np.rot90(COLOURS)))
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(decode(stored(as_stored, kind, exif=tag, **options), 8), COLOURS)


@pytest.mark.parametrize("order", ["<", ">"])
def test_other_exif_values_of_a_wrong_type_do_no_harm(order: str) -> None:
    orientation = (0x0112, 3, 1, struct.pack(f"{order}HH", 6, 0))
    odd = [(0x011A, 2, 4, b"abc\0"), (0x0100, 2, 4, b"abc\0"), (0x0128, 2, 4, b"abc\0")]  # numbers as text
    upright = np.asarray(smooth(640, 480))
    as_stored = Image.fromarray(np.ascontiguousarray(np.rot90(upright)))
    data = stored(as_stored, "JPEG", quality=95, exif=exif(order, [*odd, orientation]))
    assert np.abs(decode(data, 32).astype(int) - decode(png(upright), 32)).mean() < 2


@pytest.mark.parametrize(
    "damaged",
    [b"Exif\0\0garbage", b"Exif\0\0", exif("<", [(0x0112, 3, 1, b"\x09\0\0\0")]), exif("<", [])[:-7] + b"\xff\xff"],
)
def test_damaged_exif_data_do_no_harm(damaged: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    picture = smooth(64, 48)
    plain, odd = stored(picture, "JPEG"), stored(picture, "JPEG", exif=damaged)
    assert np.array_equal(decode(odd, 32), decode(plain, 32))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_picture_of_several_is_taken(kind: str) -> None:
    first, second = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    options = {"lossless": True} if kind == "WEBP" else {}
    data = stored(first, kind, save_all=True, append_images=[second], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert np.array_equal(decode(data, 8), np.asarray(first))


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (3, 1000), (17, 23)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_any_aspect_ratio_becomes_a_square(size: tuple[int, int], kind: str) -> None:
    decoded = decode(stored(Image.new("RGB", size, (10, 200, 30)), kind, quality=95), 5)
    assert decoded.shape == (5, 5, 3)
    assert np.abs(decoded.astype(int) - (10, 200, 30)).max() <= 3


@pytest.mark.parametrize("quality", [75, 95])
@pytest.mark.parametrize("size", [(900, 700), (2000, 300), (257, 255)])
def test_decoding_a_jpeg_in_part_is_near_decoding_it_whole(size: tuple[int, int], quality: int) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    picture = Image.blend(smooth(*size), Image.fromarray(noise).filter(ImageFilter.GaussianBlur(2)), 0.5)
    data = stored(picture, "JPEG", quality=quality)
    whole = Image.open(io.BytesIO(data)).convert("RGB").resize((64, 64), Image.Resampling.BILINEAR)
    difference = np.abs(decode(data, 64).astype(int) - np.asarray(whole))
    assert difference.mean() < 2
    assert difference.max() < 24


def test_an_empty_file_is_named_so() -> None:
    assert refusal(b"") == "the file is empty"
    assert refusal(png(COLOURS), b"") == "its mask cannot be read: the file is empty"


@pytest.mark.parametrize("data", [b"Hello, I am text.\n" * 50, b"\xff\xd8\xff", b"\0" * 1000, b"<svg/>", b"\x89PNG"])
def test_what_is_no_image_is_named_so(data: bytes) -> None:
    assert refusal(data) == "not an image"
    assert refusal(png(COLOURS), data) == "its mask cannot be read: not an image"


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_a_truncated_file_is_refused_with_the_reason(kind: str, share: float) -> None:
    noise = Image.fromarray(np.random.default_rng(2).integers(0, 256, (200, 200, 3), dtype=np.uint8))
    data = stored(noise, kind)
    reason = refusal(data[: int(share * len(data))])
    assert "truncated" in reason or kind == "WEBP"
    assert reason
    assert "\n" not in reason


@pytest.mark.parametrize("size", [(60000, 60000), (2**31 - 1, 2**31 - 1)])
def test_a_few_bytes_that_claim_to_be_huge_are_refused(size: tuple[int, int]) -> None:
    bomb = png_that_claims(*size)
    assert refusal(bomb).startswith("it has more than the 178,956,970 pixels")
    assert refusal(png(COLOURS), bomb).startswith("its mask cannot be read: it has more")


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
def test_damage_anywhere_raises_nothing_else(kind: str, mask: bool) -> None:
    tag = Image.Exif()
    tag[0x0112] = 6
    options = {"exif": tag} if kind == "JPEG" else {}
    whole = stored(Image.fromarray(COLOURS), kind, **options)
    rng = np.random.default_rng(3)
    for _ in range(60):
        data = bytearray(whole[: rng.integers(1, len(whole) + 1)] if rng.random() < 0.3 else whole)
        for place in rng.integers(0, min(len(data), rng.choice([32, 128, 10**6])), size=rng.choice([1, 2, 8])):
            data[place] = rng.choice([0, 255, rng.integers(256)])
        with contextlib.suppress(DataError):
            decode(png(COLOURS), 8, bytes(data)) if mask else decode(bytes(data), 8)


def test_a_mask_keeps_what_is_above_200_and_blackens_the_rest() -> None:
    shades = np.tile(np.array([0, 1, 128, 199, 200, 201, 254, 255], dtype=np.uint8), (8, 1))
    masked = decode(png(COLOURS), 8, png(shades))
    assert np.array_equal(masked, np.where(shades[:, :, None] > 200, COLOURS, 0))


def test_a_mask_is_applied_before_the_image_is_resized() -> None:
    white, half = np.full((8, 8, 3), 255, dtype=np.uint8), np.tile(np.array([255, 0], dtype=np.uint8), (8, 4))
    assert np.abs(decode(png(white), 1, png(half)).astype(int) - 127).max() <= 1  # after it: 255 or 0


def test_a_mask_fits_a_large_jpeg_at_full_size() -> None:
    shades = np.zeros((480, 640), dtype=np.uint8)
    shades[:, :320] = 255
    masked = decode(stored(Image.new("RGB", (640, 480), "white"), "JPEG"), 32, png(shades))
    assert (masked[:, :15] > 250).all()
    assert (masked[:, 17:] == 0).all()


def test_a_mask_may_be_stored_in_any_mode() -> None:
    kept = COLOURS[:, :, 0] > 127
    wanted = np.where(kept[:, :, None], COLOURS, 0)
    shade = np.where(kept, 255, 0).astype(np.uint8)
    palette = Image.fromarray(shade).convert("P")
    for mask in (png(kept), png(grey(shade)), stored(palette, "PNG"), png(np.where(kept, 65535, 0).astype(np.uint16))):
        assert np.array_equal(decode(png(COLOURS), 8, mask), wanted)


def test_a_mask_of_sixteen_bits_is_scaled_before_it_is_compared() -> None:
    deep = np.tile(np.array([0, 300, 30000, 200 * 257, 201 * 257, 60000, 65000, 65535], dtype=np.uint16), (8, 1))
    masked = decode(png(COLOURS), 8, png(deep))
    assert np.array_equal(masked, np.where(deep[:, :, None] >= 201 * 257, COLOURS, 0))


def test_a_mask_of_another_size_is_refused_with_both_sizes() -> None:
    mask = png(np.full((8, 9), 255, dtype=np.uint8))
    assert refusal(png(COLOURS), mask) == "its mask must have its size, but is 9 x 8 for an image of 8 x 8 pixels"


def test_a_damaged_mask_is_told_from_a_damaged_image() -> None:
    whole = png(np.random.default_rng(4).integers(0, 256, (8, 8), dtype=np.uint8))
    assert refusal(png(COLOURS), whole[:60]).startswith("its mask cannot be read: ")
    assert not refusal(whole[:60], whole).startswith("its mask")


@pytest.mark.parametrize(("size", "side", "start"), [(8, 4, 2), (8, 5, 1), (7, 4, 1), (7, 5, 1), (8, 8, 0), (5, 1, 2)])
def test_the_centre_is_cut_out_exactly(size: int, side: int, start: int) -> None:
    images = np.random.default_rng(5).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    stop = start + side
    assert np.array_equal(centre_crop(images, side), images[:, start:stop, start:stop])


GRID = np.stack([*np.mgrid[:200, :200], np.zeros((200, 200))], axis=2).astype(np.uint8)  # each pixel says where it is


def box_of(crop: Pixels) -> tuple[float, float, float, float, bool]:
    """Return top, left, height, width and whether it was flipped, read off a crop of GRID."""
    rows, columns = crop[:, :, 0].astype(float).mean(axis=1), crop[:, :, 1].astype(float).mean(axis=0)
    flipped = columns[0] > columns[-1]
    columns = columns[::-1] if flipped else columns
    n = len(crop)
    height, width = ((line[-2] - line[1]) / (n - 3) * n for line in (rows, columns))
    centre_y, centre_x = rows[1:-1].mean(), columns[1:-1].mean()
    return centre_y - height / 2 + 0.5, centre_x - width / 2 + 0.5, height, width, bool(flipped)


def draws(n: int, area: tuple[float, float], flip: bool = True) -> NDArray[np.float64]:
    rngs = np.random.default_rng(6).spawn(n)
    return np.array([box_of(random_crop(GRID, 32, area, flip, rng)) for rng in rngs])


def test_the_same_seed_cuts_the_same_part() -> None:
    first, again, other = (random_crop(GRID, 32, (0.2, 1), True, np.random.default_rng(s)) for s in (7, 7, 8))
    assert first.shape == (32, 32, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_whole_image_is_only_resized() -> None:
    picture = np.asarray(smooth(40, 40))
    cuts = [random_crop(picture, 40, (1, 1), False, rng) for rng in np.random.default_rng(9).spawn(20)]
    assert any(np.array_equal(cut, picture) for cut in cuts)  # any other ratio does not fit, nor does it ten times
    assert all(cut.shape == (40, 40, 3) for cut in cuts)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_tiny_images_can_be_cut(size: int) -> None:
    image = np.full((size, size, 3), 9, dtype=np.uint8)
    for rng in np.random.default_rng(10).spawn(30):
        assert (random_crop(image, 4, (0.01, 1), True, rng) == 9).all()


def test_random_parts_lie_in_the_image_and_their_area_and_ratio_in_the_bounds() -> None:
    top, left, height, width, _ = draws(400, (0.3, 0.6)).T
    assert top.min() > -1.5
    assert left.min() > -1.5
    assert (top + height).max() < 201.5
    assert (left + width).max() < 201.5
    assert 0.28 < (height * width / 200**2).min() < 0.33
    assert 0.57 < (height * width / 200**2).max() < 0.62
    assert 0.73 < (width / height).min() < 0.8
    assert 1.25 < (width / height).max() < 1.37


def test_half_of_the_parts_are_flipped_if_any() -> None:
    assert abs(draws(400, (0.3, 1))[:, 4].mean() - 0.5) < 4 * 0.5 / 20
    assert draws(50, (0.3, 1), flip=False)[:, 4].sum() == 0


def test_random_parts_are_distributed_as_those_of_torchvision() -> None:
    image = torch.zeros(3, 200, 200)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        boxes = [RandomResizedCrop.get_params(image, [0.5, 1.0], [3 / 4, 4 / 3]) for _ in range(1500)]
    theirs, ours = np.array(boxes, dtype=float), draws(1500, (0.5, 1.0))[:, :4]
    for column in range(4):
        assert largest_gap(ours[:, column].round(), theirs[:, column]) < 0.08  # 0.071 at p = 0.001
    assert largest_gap(ours[:, 3] / ours[:, 2], theirs[:, 3] / theirs[:, 2]) < 0.08


def largest_gap(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return the largest difference of two distribution functions, over a grid coarser than a pixel."""
    at = np.quantile(np.concatenate([one, other]), np.linspace(0.02, 0.98, 25))
    return float(max(abs((one <= x).mean() - (other <= x).mean()) for x in at))


def test_decoding_warns_of_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    assert "truncated" in refusal(png_that_claims(10000, 10000))  # beyond the size from which the library warns
    assert capfd.readouterr().err == ""
