from __future__ import annotations

import base64
from io import BytesIO

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from exmap.errors import DataError
from exmap.report.sprites import LARGEST_SIDE, LEVELS, Sheet, heat_sheet, heat_tiles, picture_sheet, picture_tiles


def opened(sheet: Sheet, mode: str) -> np.ndarray:
    kind, _, data = sheet.uri.partition(",")
    assert kind == "data:image/webp;base64"
    return np.asarray(Image.open(BytesIO(base64.b64decode(data))).convert(mode))


def cut(sheet: Sheet, number: int, mode: str) -> np.ndarray:
    """Cut a tile out where the page's style finds it: percentages of what the sheet is larger than one tile."""
    across, down = (float(part.removesuffix("%")) / 100 for part in sheet.place(number).split())
    left = round(across * (sheet.columns - 1) * sheet.width)
    top = round(down * (sheet.rows - 1) * sheet.height)
    return opened(sheet, mode)[top : top + sheet.height, left : left + sheet.width]


@pytest.mark.parametrize("n", [1, 2, 5, 12])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (12, 6)])
def test_every_tile_is_found_again_in_its_place(n: int, height: int, width: int) -> None:
    images = np.random.default_rng(0).random((n, 3, height, width)).astype(np.float32)
    tiles = picture_tiles(images)
    assert tiles.shape == (n, height, width, 3)
    np.testing.assert_allclose(tiles / 255, images.transpose(0, 2, 3, 1), atol=0.5 / 255 + 1e-6)
    sheet = picture_sheet(tiles)
    for number in range(n):
        assert np.array_equal(cut(sheet, number, "RGB"), tiles[number])


def test_heatmaps_over_white_have_the_colours_of_a_diverging_map() -> None:
    maps = np.zeros((2, 3, 4, 4), dtype=np.float32)
    maps[0, :, 0, 0], maps[0, :, 0, 1] = 0.5, -0.25  # channels are summed
    levels = heat_tiles(maps)
    assert levels[0, 0].tolist() == [LEVELS, round(-LEVELS / 2), 0, 0]
    assert not levels[1].any()
    sheet = heat_sheet(levels)
    found = cut(sheet, 0, "RGBA").astype(float) / 255
    over_white = found[..., :3] * found[..., 3:] + 1 - found[..., 3:]
    red, blue = (colormaps["RdBu_r"](x)[:3] for x in (1.0, 0.5 + levels[0, 0, 1] / (2 * LEVELS)))
    np.testing.assert_allclose(over_white[0, 0], red, atol=0.02)
    np.testing.assert_allclose(over_white[0, 1], blue, atol=0.02)
    assert found[2, 2, 3] == 0  # see-through where there is no relevance
    assert not cut(sheet, 1, "RGBA")[..., 3].any()


def test_large_pictures_become_small_and_keep_their_shape() -> None:
    tiles = picture_tiles(np.full((2, 3, 200, 100), 0.5, dtype=np.float32))
    assert tiles.shape == (2, LARGEST_SIDE, LARGEST_SIDE // 2, 3)
    sheet = picture_sheet(tiles)
    assert (sheet.width, sheet.height) == (LARGEST_SIDE // 2, LARGEST_SIDE)
    np.testing.assert_allclose(cut(sheet, 1, "RGB"), 128, atol=3)
    assert heat_tiles(np.ones((1, 3, 200, 100), dtype=np.float32)).shape == (1, LARGEST_SIDE, LARGEST_SIDE // 2)


def test_grey_pictures_out_of_range_and_broken_numbers_are_shown() -> None:
    grey = np.array([-1, 0.5, 3, np.nan], dtype=np.float32).reshape(1, 1, 2, 2)
    assert picture_tiles(grey)[0, ..., 0].tolist() == [[0, 128], [255, 0]]
    assert not heat_tiles(np.full((1, 3, 4, 4), np.nan, dtype=np.float32)).any()


def test_sheets_of_as_many_tiles_lie_alike_whatever_the_tiles_shape() -> None:
    wide, square = (picture_sheet(picture_tiles(np.zeros((7, 3, 6, w), dtype=np.float32))) for w in (12, 6))
    assert [wide.place(k) for k in range(7)] == [square.place(k) for k in range(7)]


def test_a_tile_that_is_not_there_is_refused() -> None:
    with pytest.raises(DataError, match="a sheet of 1 tiles has no tile 1"):
        picture_sheet(np.zeros((1, 2, 2, 3), dtype=np.uint8)).place(1)
