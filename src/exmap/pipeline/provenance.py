"""Where a run comes from: the settings that decide what it computes, versions, commit and machine."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exmap.data import Task
from exmap.precision import choose_precision
from exmap.registry import REQUIRED, Registry
from exmap.settings import Settings, dump_settings

__all__ = ["MANIFEST", "identity_part", "made_by", "manifest", "options_in_use", "plain_text", "setting"]

MANIFEST = "manifest.json"  # in a run folder
NOT_IDENTITY = {  # where things lie, whose content is identity, and how quickly they are read
    "data": ("dir", "download"),
    "images": ("workers", "cache", "cache_dir", "cache_limit_gib"),
    "model": ("weights", "trained"),  # where it is trained, that is said beside
    "runtime": ("threads", "engine", "address", "actors", "shard_images"),
    "groups": ("auto", "sources", "earlier"),  # steps of their own, which are there or not
}
PACKAGES = ("exmap", "torch", "torchvision", "lightning-fabric", "scikit-learn", "numpy", "umap-learn")


def identity_part(settings: Settings) -> dict[str, Any]:
    """Return the settings that decide what a run computes, as plain values."""
    return without_places(dump_settings(settings))


def without_places(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return dumped settings without what makes no difference to what is computed."""
    runtime = dict(tree["runtime"])
    runtime["devices"] *= runtime.pop("num_nodes")  # how many processes, wherever they are
    data = {k: v for k, v in tree["data"].items() if k != "graded" or tree["data"]["name"] == k}  # of that set alone
    tree = {**tree, "runtime": runtime, "data": data}
    return {
        section: {k: v for k, v in value.items() if k not in NOT_IDENTITY.get(section, ())}
        if isinstance(value, Mapping)
        else value
        for section, value in tree.items()
        if section != "preset"  # a name for settings, not a setting
    }


def setting(tree: Mapping[str, Any], name: str) -> Any:
    """Return a section by its name, or a value as ``section.key``."""
    for key in name.split("."):
        tree = tree[key]
    return tree


def options_in_use(registry: Registry, name: str, given: Mapping[str, Any]) -> dict[str, str]:
    """Return the options that a registered thing is built with, defaults included, as text.

    A default that changes in another version is then another identity.
    """
    defaults = {key: option.default for key, option in registry.options(name).items() if option.default is not REQUIRED}
    return {key: plain_text(value) for key, value in {**defaults, **given}.items()}


def plain_text(value: Any) -> str:
    """Return a value as text that is the same in every process."""
    text = repr(value)
    if " at 0x" not in text:
        return text
    parameters = value.get_params() if callable(getattr(value, "get_params", None)) else vars(value)
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    return f"{kind}({', '.join(f'{key}={plain_text(each)}' for key, each in sorted(parameters.items()))})"


def manifest(settings: Settings, task: Task) -> dict[str, Any]:
    """Return where a run comes from: versions, commit, digests of the inputs, seed, machine."""
    versions = {name: _version(name) for name in PACKAGES}
    return {
        "format": 1,
        "settings": dump_settings(settings),
        "seed": settings.seed,
        "input_digests": dict(task.digests),
        "reading": dict(task.reading),
        "versions": {"python": sys.version.split()[0], **{k: v for k, v in versions.items() if v is not None}},
        "git_commit": git_commit(),
        "device": settings.runtime.accelerator,
        "precision": choose_precision(settings.runtime).precision,
        "machine": platform.platform(),
    }


def made_by(record: Any) -> dict[str, str]:
    """Return what a reader wants to know of a manifest: a value by its title; nothing of what is none."""
    if not isinstance(record, Mapping) or not isinstance(versions := record.get("versions", {}), Mapping):
        return {}
    shown = {str(name): str(version) for name, version in versions.items()}
    titles = {"git_commit": "commit of exmap", "device": "device", "precision": "precision", "machine": "machine"}
    return {**shown, **{title: str(record[key]) for key, title in titles.items() if record.get(key)}}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """Return the commit of the source tree exmap runs from, or None where that is no git checkout."""
    here = Path(__file__).resolve().parent
    try:
        asked = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() or None if asked.returncode == 0 else None
