"""What an extraction holds in memory does not grow with the number of images."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SIDE, FEW, MANY = 64, 500, 4000  # both many batches
ALLOWED = 32  # MiB, beyond the features; the heatmaps of MANY - FEW images have 164

SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from torch import nn
from exmap.data import Split
from exmap.data.files import FileImages, FolderFiles, open_images
from exmap.explain import explain_split
from exmap.pipeline.files import heatmap_file, save_explained
from exmap.pipeline.store import peak_memory_mib
from exmap.runtime import torch_seed
from exmap.settings import ExplainSettings, ImageSettings

folder, count, side, cache = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
how = ImageSettings(resize=side, crop=None, workers=1, cache=cache, cache_dir=folder / f"cache-{count}")
names = tuple(f"{number % 20}.png" for number in range(count))
files, rows = FolderFiles(folder), np.arange(count)
opened = open_images(files, names, ("",) * count, how)
images = FileImages(files, names, ("",) * count, how, opened.cache, rows)
split = Split("val", images, rows % 2, tuple(map(str, rows)), ("a", "b"))
with torch_seed(0):
    model = nn.Sequential(nn.Conv2d(3, 4, 8, stride=8), nn.ReLU(), nn.Flatten(), nn.Linear(256, 2)).eval()
out = folder / f"out-{count}-{cache}"
out.mkdir()
maps, outputs = explain_split(model, split, ExplainSettings(batch_size=20), allocate=heatmap_file(out))
save_explained(maps, outputs, split.ids, out)
print(peak_memory_mib())
"""


def peak_memory(folder: Path, count: int, cache: str) -> float:
    """Return the MiB of a fresh process that reads, explains and writes so many images, as the stage does."""
    words = [str(folder), str(count), str(SIDE), cache]
    said = subprocess.run([sys.executable, "-c", SCRIPT, *words], check=True, timeout=600, capture_output=True)
    maps = np.load(folder / f"out-{count}-{cache}" / "heatmaps.npy", mmap_mode="r", allow_pickle=False)
    assert maps.shape == (count, 3, SIDE, SIDE)
    assert all(np.abs(maps[row]).max() == 1 for row in (0, count // 2, count - 1))  # each was written
    return float(said.stdout)


@pytest.mark.long
@pytest.mark.parametrize("cache", ["always", "never"])
def test_eight_times_the_images_take_no_more_memory(tmp_path: Path, cache: str) -> None:
    rng = np.random.default_rng(0)
    for number in range(20):
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    few, many = (peak_memory(tmp_path, count, cache) for count in (FEW, MANY))
    features = (MANY - FEW) * 256 * 4 / 2**20
    assert (MANY - FEW) * 3 * SIDE**2 * 4 / 2**20 > 5 * ALLOWED
    assert many - few < ALLOWED + features, (few, many)
