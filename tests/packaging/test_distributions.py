"""What users install: the wheel and the source distribution, built as for a release, and the wheel by itself."""

from __future__ import annotations

import email
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import exmap
from running import CHEAP, as_options
from sharing import shared

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
JUNK = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.part")

pytestmark = pytest.mark.long


def build(folder: Path) -> None:
    """Build both distributions of a copy of the sources: the wheel is made of the source distribution."""
    source = folder / "source"
    source.mkdir(parents=True)
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, source)
    for name in ("src", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=JUNK)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(source)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    shutil.rmtree(source)


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of both distributions."""
    return shared(tmp_path_factory, "dist", build) / "dist"


@pytest.fixture(scope="session")
def wheel(dist: Path) -> Path:
    return dist / f"exmap-{exmap.__version__}-py3-none-any.whl"


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = ROOT / "src" / "exmap"
    here = {path.relative_to(package.parent).as_posix() for path in package.rglob("*") if path.is_file()}
    assert held == {name for name in here if "__pycache__" not in name and not name.endswith(".part")}


def test_the_wheel_says_what_it_is(wheel: Path):
    with zipfile.ZipFile(wheel) as opened:
        info = f"exmap-{exmap.__version__}.dist-info"
        said = email.message_from_string(opened.read(f"{info}/METADATA").decode())
        assert f"{info}/licenses/LICENSE" in opened.namelist()
        assert opened.read(f"{info}/entry_points.txt").decode().split() == [
            "[console_scripts]", "exmap", "=", "exmap.__main__:main",
        ]  # fmt: skip
    assert (said["Name"], said["Version"]) == ("exmap", exmap.__version__)
    assert said["License-Expression"] == "Apache-2.0"
    assert said["Description-Content-Type"] == "text/markdown"
    assert said.get_payload().strip() == (ROOT / "README.md").read_text("utf-8").strip()
    assert dict(row.split(", ") for row in said.get_all("Project-URL")) == PROJECT["urls"]
    assert set(said.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])


def test_the_source_distribution_can_be_tested(dist: Path):
    with tarfile.open(dist / f"exmap-{exmap.__version__}.tar.gz") as opened:
        held = {name.split("/", 1)[1] for name in opened.getnames() if "/" in name}
    assert {
        "LICENSE",
        "CHANGELOG.md",
        "CITATION.cff",
        "constraints.txt",
        "tests/conftest.py",
        "tests/running.py",
    } <= held
    assert not [name for name in held if "__pycache__" in name]
    assert {name.split("/")[0] for name in held if "/" in name} == {"src", "tests"}


def test_the_wheel_works_by_itself(wheel: Path, tmp_path: Path):
    """In an environment that shares the libraries of this one, but not exmap, and away from the sources."""
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (site / "libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n", "utf-8")
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COVERAGE", "COV_"))
    }

    def run(*command: str) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    pip = (sys.executable, "-m", "pip", "--python", str(python))
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel))
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (site / "libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n", "utf-8")
    where = run(str(python), "-c", "import exmap; print(exmap.__file__)").strip()
    assert Path(where).is_relative_to(site)
    command = str(python.with_name("exmap"))
    assert run(command, "--version") == f"exmap {exmap.__version__}\n"
    assert "audit" in run(command, "--help")
    run(command, "run", "digits", "--out", "run", *as_options(*CHEAP, "groups.sources=[exmap]"))
    assert "<html" in (tmp_path / "run" / "report" / "report.html").read_text("utf-8")[:2000]
