"""The example of a plug-in: installed, found, checked by its own tests, and used by the command line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

pytestmark = pytest.mark.long
EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the example into a folder of its own, without a look at the network."""
    pytest.importorskip("setuptools", minversion="77")
    source, target = tmp_path_factory.mktemp("plugin") / "source", tmp_path_factory.mktemp("installed")
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    how = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target", str(target)]
    run(["-m", "pip", "install", *how, str(source)], target)
    return target


def run(arguments: Sequence[str], installed: Path, timeout: float = 300) -> str:
    """Run Python with the example on its path."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=EXAMPLE,
        env={**os.environ, "PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_own_tests_pass(installed: Path) -> None:
    assert "4 passed" in run(["-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "tests"], installed)


def test_settings_take_its_names_and_options(installed: Path) -> None:
    code = """
from exmap.cluster import make_clusterer
from exmap.errors import SettingsError
from exmap.registry import LEARNERS
from exmap.settings import describe_settings, load_settings
chosen = ["retrain.learner=group_weighted", "retrain.strength=0.3", "cluster.method=density"]
settings = load_settings("digits", [*chosen, "cluster.min_cluster_size=20"])
print(LEARNERS.build(settings.retrain.learner, settings.retrain.options, seed=3))
print(make_clusterer(settings.cluster, seed=0))
print([row.name for row in describe_settings(settings) if row.owner.startswith("exmap_plugin")])
try:
    load_settings("digits", [*chosen, "cluster.min_cluster_sise=3"])
except SettingsError as error:
    print(error)
"""
    assert run(["-c", code], installed).splitlines() == [
        "GroupWeighted(seed=3, harm='keep', strength=0.3, max_iter=1000)",
        "Density(min_cluster_size=20)",
        "['cluster.min_cluster_size', 'cluster.min_samples', 'retrain.strength', 'retrain.max_iter', 'retrain.harm']",
        "setting cluster: unknown option of the clustering method density 'min_cluster_sise' (did you mean "
        "'min_cluster_size'?); choose one of: gap, method, min_cluster_size, min_samples, n_clusters, n_neighbors, "
        "representation, scope",
    ]


def test_a_run_uses_it(installed: Path, tmp_path: Path) -> None:
    chosen = [
        "model.name=tiny",
        "train.epochs=1",
        "retrain.learner=group_weighted",
        "retrain.repeats=1",
        "cluster.method=density",
        "cluster.min_cluster_size=20",
        "groups.sources=[exmap]",
        "evaluate.bootstrap=10",
    ]
    sets = [word for one in chosen for word in ("--set", one)]
    said = run(["-m", "exmap", "run", "digits", "--out", str(tmp_path / "run"), *sets], installed)
    assert "exmap+group_weighted" in said
    assert "samples are in no dense region" in said
