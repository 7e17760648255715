"""What a bench runs: blocks of data sets x methods x seeds, from a preset, a YAML file, or names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator

from exmap.arguments import reason_of
from exmap.errors import SettingsError, shown, unknown_name
from exmap.groups import make_source
from exmap.methods import Method, expand_methods, parse_method
from exmap.plain_yaml import read_yaml
from exmap.settings import Settings, change_settings, check_own_options, load_settings, packaged_yaml, preset_names
from exmap.settings.section import Section, Seed

__all__ = ["Bench", "Block", "Cell", "bench_names", "load_bench", "plan"]

GRIDS = "bench/presets"  # of the package
AS_PUBLISHED = "retrain.harm=warn"  # methods are compared as they are, also where they make a class worse
MOST_SEEDS = 10_000
DEFAULT_METHODS = ("erm", "classes+dfr", "random+dfr", "error_set+dfr", "george+dfr", "exmap+dfr", "oracle+dfr")


def _bound_of_seeds(number: int) -> str:
    """Return the bound that a number of seeds does not keep to, or nothing."""
    if 1 <= number <= MOST_SEEDS:
        return ""
    return "at least 1" if number < 1 else f"at most {MOST_SEEDS:,}"


class Block(Section):
    """Every method on every data set with every seed.

    Attributes
    ----------
    datasets : tuple of str
        Names of presets, or paths of YAML files with the settings of a run.
    methods : tuple of str
        As :mod:`exmap.methods` reads them, with alternatives in braces.
    seeds : tuple of int
        A number n stands for the seeds 0 to n - 1.
    """

    datasets: tuple[str, ...] = Field(min_length=1)
    methods: tuple[str, ...] = Field(DEFAULT_METHODS, min_length=1)
    seeds: tuple[Seed, ...] = Field((0, 1, 2), min_length=1, max_length=MOST_SEEDS)

    @field_validator("seeds", mode="before")
    @classmethod
    def _count(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            if bound := _bound_of_seeds(value):
                raise ValueError(f"must be {bound}, or a list of seeds")
            return tuple(range(value))
        return value


class Bench(Section):
    """A grid, and what its tables are read against.

    Attributes
    ----------
    blocks : tuple of Block
    reference : str
        The method that every other is compared with.
    settings : tuple of str
        ``section.key=value`` items that are applied to every data set.
    labels : mapping of str to str
        What tables show in place of a method.
    """

    blocks: tuple[Block, ...] = Field(min_length=1)
    reference: str = "exmap+dfr"
    settings: tuple[str, ...] = ()
    labels: Mapping[str, str] = {}


@dataclass(frozen=True)
class Cell:
    """One method on one data set with one seed.

    Attributes
    ----------
    dataset : str
        Name of the preset, or of the YAML file.
    seed : int
    method : Method
    settings : Settings
        Of the run that the cell begins with.
    """

    dataset: str
    seed: int
    method: Method
    settings: Settings


def bench_names() -> list[str]:
    """Return the names of the grids that come with the package, sorted."""
    return sorted(packaged_yaml(GRIDS))


def load_bench(
    source: str | Path | None = None,
    *,
    datasets: Sequence[str] = (),
    methods: Sequence[str] = (),
    seeds: int | None = None,
    reference: str | None = None,
    settings: Sequence[str] = (),
) -> Bench:
    """Read a grid, or make one of names.

    Parameters
    ----------
    source : str or Path, optional
        Name of a grid that comes with the package, or a YAML file.
    datasets, methods, seeds
        Without a `source`: the one block. With one: they take the place of its data sets, methods or seeds, and blocks
        that become the same are run once.
    reference : str, optional
    settings : sequence of str
        Added to those of the `source`.

    Raises
    ------
    SettingsError
        For an unknown name, key or method.
    """
    if source is None:
        if not datasets:
            raise SettingsError(
                f"a bench needs data sets, got none; name some (--datasets cmnist,dominoes), or take a preset: "
                f"{', '.join(bench_names())}"
            )
        tree: dict[str, Any] = {"blocks": [{"datasets": list(datasets)}]}
    else:
        tree = _read(source)
    blocks = tree.get("blocks")
    changes = {"datasets": list(datasets), "methods": list(methods), "seeds": seeds}
    if isinstance(blocks, list) and all(isinstance(block, dict) for block in blocks):
        tree["blocks"] = [{**block, **{k: v for k, v in changes.items() if v}} for block in blocks]
    if seeds is not None and (bound := _bound_of_seeds(seeds)):
        raise SettingsError(f"the number of seeds must be {bound}, got {shown(seeds)}")
    if reference is not None:
        tree["reference"] = reference
    if isinstance(own := tree.get("settings", []), list):  # anything else is refused below
        tree["settings"] = [*own, *settings]
    try:
        bench = Bench.model_validate(tree)
    except ValidationError as error:
        first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")  # a misspelled key says most
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            allowed = Block.model_fields if "blocks" in first["loc"] else Bench.model_fields
            raise SettingsError(unknown_name("setting of a bench", str(first["loc"][-1]), allowed)) from None
        raise SettingsError(f"bench setting {key}: {reason_of(first)}, got {shown(first['input'])}") from None
    parse_method(bench.reference)
    return bench


def plan(bench: Bench, data_dirs: Mapping[str, Path] | None = None) -> list[Cell]:
    """Return the cells of a grid, each once: seed by seed, so that every data set has results early.

    Parameters
    ----------
    bench : Bench
    data_dirs : mapping of str to Path, optional
        Folder of a data set's files by its name; that of "" serves the others.
    """
    dirs = data_dirs or {}
    made: dict[tuple[str, int], Settings] = {}
    names: dict[str, str] = {}
    cells: dict[tuple[str, int, str], Cell] = {}
    for block in bench.blocks:
        methods = [parse_method(text) for item in block.methods for text in expand_methods(item)]
        for source in block.datasets:
            base = _dataset(source, (AS_PUBLISHED, *bench.settings))
            if names.setdefault(base.preset, source) != source:
                raise SettingsError(
                    f"data sets must have names of their own, but {names[base.preset]} and {source} are both "
                    f"{base.preset}; rename a file"
                )
            check_own_options(base)
            for part in {part for method in methods for part, _ in method.groupings(base.groups.split)}:
                make_source(part, base)  # a value that cannot be is refused before any work
            for seed in block.seeds:
                folder = dirs.get(base.preset, dirs.get(""))
                settings = made.setdefault((base.preset, seed), change_settings(base, seed=seed, data__dir=folder))
                for method in methods:
                    cells.setdefault((base.preset, seed, str(method)), Cell(base.preset, seed, method, settings))
    known = {*preset_names(), *(cell.dataset for cell in cells.values()), ""}
    for name in dirs:
        if name not in known:
            raise SettingsError(unknown_name("data set", name, known - {""}))
    return sorted(cells.values(), key=lambda cell: cell.seed)


def _dataset(source: str, overrides: Sequence[str]) -> Settings:
    """Return the settings of a data set: a preset's, or those in a file."""
    if source in preset_names() or Path(source).suffix in {".yaml", ".yml"}:
        return load_settings(source, overrides)
    raise SettingsError(unknown_name("data set", source, preset_names()) + ", or the path of a YAML file")


def _read(source: str | Path) -> dict[str, Any]:
    name = str(source)
    if name in bench_names():
        return read_yaml(packaged_yaml(GRIDS)[name], f"grid {name}")
    path = Path(source)
    if not path.is_file():
        raise SettingsError(unknown_name("bench", name, bench_names()) + ", or the path of a YAML file")
    return read_yaml(path, name)
