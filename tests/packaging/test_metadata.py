"""Facts that files outside of Python have to repeat agree with pyproject.toml, and those files are well-formed."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import exmap

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base", "lightning-fabric": "pytorch-lightning"}


def lower_bounds(requirements: list[str]) -> dict[str, Version]:
    """Return the lowest version that is allowed of each package."""
    read = [Requirement(each) for each in requirements]
    assert all([s.operator for s in each.specifier] == [">="] for each in read), "open lower bounds alone"
    return {canonicalize_name(each.name): Version(next(iter(each.specifier)).version) for each in read}


def pinned(name: str) -> dict[str, Version]:
    lines = (ROOT / name).read_text("utf-8").split()
    pairs = [line.split("==") for line in lines]
    assert lines == sorted(lines, key=lambda line: line.split("==")[0].lower()), f"sort {name}"
    return {canonicalize_name(package): Version(version) for package, version in pairs}


def test_the_version_is_written_once_and_repeated_without_error():
    assert PROJECT["dynamic"] == ["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    recipe = yaml.safe_load((ROOT / "conda" / "recipe.yaml").read_text("utf-8"))
    assert citation["version"] == recipe["context"]["version"] == exmap.__version__
    assert f"## {exmap.__version__}" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_addresses_are_those_of_the_metadata():
    urls = PROJECT["urls"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    about = yaml.safe_load((ROOT / "conda" / "recipe.yaml").read_text("utf-8"))["about"]
    assert citation["repository-code"] == about["homepage"] == urls["Repository"] == urls["Homepage"]
    assert citation["url"] == about["documentation"] == urls["Documentation"]
    assert about["summary"] == PROJECT["description"]


def test_conda_asks_for_the_same_versions():
    recipe = yaml.safe_load((ROOT / "conda" / "recipe.yaml").read_text("utf-8"))
    wanted = {CONDA_NAMES.get(name, name): version for name, version in lower_bounds(PROJECT["dependencies"]).items()}
    wanted["python"] = Version(PROJECT["requires-python"].removeprefix(">="))
    assert lower_bounds(recipe["requirements"]["run"]) == wanted


def test_the_lowest_constraints_are_the_lower_bounds():
    lowest = pinned("constraints-lowest.txt")
    bounds = lower_bounds(PROJECT["dependencies"])
    assert {name: lowest.get(name) for name in bounds} == bounds


def test_the_newest_constraints_are_allowed():
    newest = pinned("constraints.txt")
    for name, bound in lower_bounds(PROJECT["dependencies"]).items():
        assert newest[name] >= bound, name


def test_the_versions_of_python_that_are_promised_are_tested():
    named = {row.rsplit(" ", 1)[1] for row in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", row)}
    tests = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text("utf-8"))
    assert set(tests["jobs"]["tests"]["strategy"]["matrix"]["python"]) == named
    assert min(named, key=Version) == ".".join(PROJECT["requires-python"].removeprefix(">=").split(".")[:2])


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("vendor.github-workflows", WORKFLOWS),
        ("vendor.dependabot", [ROOT / ".github" / "dependabot.yml"]),
        ("vendor.github-issue-config", [ROOT / ".github" / "ISSUE_TEMPLATE" / "config.yml"]),
        ("vendor.github-issue-forms", [ROOT / ".github" / "ISSUE_TEMPLATE" / f"{n}.yml" for n in ("bug", "feature")]),
        ("vendor.citation-file-format", [ROOT / "CITATION.cff"]),
        ("vendor.readthedocs", [ROOT / ".readthedocs.yaml"]),
    ],
)
def test_files_of_services_are_well_formed(schema: str, files: list[Path]):
    pytest.importorskip("check_jsonschema")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *map(str, files)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (len(files) > 0, checked.returncode) == (True, 0), checked.stdout + checked.stderr


def test_workflows_have_no_more_rights_than_they_need():
    assert {path.name for path in WORKFLOWS} == {"nightly.yml", "release.yml", "tests.yml"}
    for path in WORKFLOWS:
        workflow = yaml.safe_load(path.read_text("utf-8"))
        assert workflow["permissions"] == {"contents": "read"}, path.name
        for name, job in workflow["jobs"].items():
            assert "timeout-minutes" in job, f"{path.name}: {name}"
            assert job.get("permissions") == ({"id-token": "write"} if name == "publish" else None)
    assert not [path.name for path in WORKFLOWS if "secrets." in path.read_text("utf-8")]


def test_make_targets_that_workflows_call_exist():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    called = [
        word
        for path in WORKFLOWS
        for line in re.findall(r"make ([a-z -]+)", path.read_text("utf-8"))
        for word in line.split()
    ]
    assert called
    assert set(called) <= set(targets)
