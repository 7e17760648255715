"""The real job on the real data: C-MNIST from the files to the repaired model, by the command a user gives."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_cmnist_is_repaired_without_group_labels(mnist_dir: Path, tmp_path: Path) -> None:
    words = ["run", "cmnist", "--data-dir", str(mnist_dir), "--out", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-m", "exmap", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    erm, repaired = (results["methods"][name]["worst_group_accuracy"] for name in ("erm", "exmap+dfr"))
    assert repaired >= 0.85
    assert repaired > erm + 0.1
    assert results["group_inference"]["exmap"]["ari"] >= 0.9
    assert "true groups" not in results["methods"]["exmap+dfr"]["labels_used"]["groups"]
