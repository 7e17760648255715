"""The script that measures a machine with a GPU runs on any."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


@pytest.mark.slow
def test_a_tiny_run_writes_figures_and_tables(tmp_path: Path) -> None:
    subprocess.run([sys.executable, SCRIPT, "--tiny", "--out", tmp_path], check=True, capture_output=True)
    found = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert {"training", "heatmaps", "startup"} < set(found)
    assert all(row["rate"] > 0 for row in found["training"])
    text = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert "runtime.precision=auto" in text
    assert text.count("| ResNet-18, ImageNet stem, 28 px, 8 |") == len(found["training"]) + len(found["heatmaps"])
