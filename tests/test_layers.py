"""What the source itself promises: who imports whom, who prints, and what is never called."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

import exmap
from exmap.errors import SettingsError
from exmap.groups import make_source, needs_of, source_names
from exmap.groups.source import TRUE_GROUPS
from exmap.methods import Part
from exmap.records import Explained, Groups
from exmap.settings import load_settings

ROOT = Path(__file__).parents[1]
PACKAGE = Path(exmap.__file__).parent
MODULES = {str(path.relative_to(PACKAGE)): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def dotted(node: ast.AST) -> str:
    """Return ``a.b.c`` for a chain of names, and ``.c`` for the attribute of anything else."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


def calls(tree: ast.AST) -> Iterator[str]:
    return (dotted(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call))


def callers(*names: str) -> list[str]:
    return [module for module, tree in MODULES.items() if set(calls(tree)) & set(names)]


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_source_is_found() -> None:
    assert {"cli/run.py", "pipeline/runner.py", "runtime.py", "model/fit.py"} <= set(MODULES)


def test_the_import_contracts_hold() -> None:
    pytest.importorskip("importlinter")
    start = (
        "import sys; sys.path.insert(0, ''); from importlinter.cli import lint_imports_command; lint_imports_command()"
    )
    done = subprocess.run(
        [sys.executable, "-c", start, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"[1-9]\d* kept, 0 broken", done.stdout)


def test_only_the_command_line_prints() -> None:
    printing = callers("print", "typer.echo", "sys.stdout.write")
    assert printing
    assert [module for module in printing if not module.startswith("cli/")] == []


def test_no_global_generator_is_seeded() -> None:
    assert (
        callers("np.random.seed", "numpy.random.seed", "random.seed", "torch.seed", "torch.cuda.manual_seed_all") == []
    )


def test_torch_is_seeded_only_inside_a_fork_of_its_generator() -> None:
    assert callers("torch.manual_seed") == ["runtime.py"]
    seeders = [
        node.name
        for node in ast.walk(MODULES["runtime.py"])
        if isinstance(node, ast.FunctionDef) and "torch.manual_seed" in calls(node)
    ]
    assert seeders == ["torch_seed"]


def test_no_file_is_unpickled() -> None:
    assert callers("joblib.load", "joblib.dump") == []
    assert callers("torch.load") == ["model/pickled.py"]  # weights of a user's, of which nothing is executed
    assert callers("torch.save") == ["export/forms.py"]  # repaired ones, in the form they came in
    loads = [
        {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
        for node in ast.walk(MODULES["model/pickled.py"])
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    assert loads
    assert all(given.get("weights_only") is True for given in loads)
    pickling = ("pickle", "cloudpickle", "dill", "shelve")
    found = [m for m, tree in MODULES.items() if any(n.split(".")[0] in pickling for n in imported(tree))]
    # Between its own processes, in a temporary folder that only they can write; and to see whether a thing can be.
    assert found == ["data/inputs.py", "engine/workers.py", "runtime.py", "testing/common.py"]
    assert [m for m, tree in MODULES.items() if "torch.load" in imported(tree)] == []


def test_no_array_may_hold_pickles() -> None:
    allowed = [
        module
        for module, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword)
        and node.arg == "allow_pickle"
        and not (isinstance(node.value, ast.Constant) and node.value.value is False)
    ]
    assert allowed == []


def test_no_tensor_is_sent_to_a_device_by_its_name() -> None:
    devices = [
        module
        for module, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "cuda"
    ]
    assert devices == []


def test_every_module_says_what_it_is_and_what_it_offers() -> None:
    assert [module for module, tree in MODULES.items() if not ast.get_docstring(tree)] == []
    silent = [
        module
        for module, tree in MODULES.items()
        if module != "__main__.py" and len(tree.body) > 1  # what is more than a docstring
        if not any(isinstance(node, ast.Assign) and dotted(node.targets[0]) == "__all__" for node in tree.body)
    ]
    assert silent == []


# True groups


READERS = {  # modules that read the true groups, and what they do with them
    "data/dataset.py",  # hands them out
    "data/check.py",  # counts them
    "analysis.py:reported_groups",  # evaluation
    "api/chain.py:evaluate",  # evaluation
    "pipeline/outcome.py:measure_on_test",  # evaluation
    "pipeline/outcome.py:agreement_with_truth",  # evaluation
    "pipeline/outcome.py:labels_used",  # says so
    "pipeline/facts.py:save_task",  # keeps them
    "pipeline/facts.py:load_task",  # and brings them back
    "report/points.py",  # shows them, from the analysis that has them beside the others
    "pipeline/chain.py:sources_of",  # only asks whether there are any
    "pipeline/gather.py:gathered",  # for showing them beside the others
    "pipeline/plan_groups.py:_given",  # to a source that says oracle
    "testing/dataset.py",  # checks of what others add
    "testing/learner.py",
    "testing/source.py",
}
NAMES = ("true_groups", "truth")


def reads(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield what could be a look at true groups: an attribute, or a name that getattr or a record could be asked for.

    ``replace(split, truth=None)`` and ``Split(..., truth=...)`` only pass them on.
    """
    for node in ast.walk(tree):
        asked = node.attr if isinstance(node, ast.Attribute) else node.value if isinstance(node, ast.Constant) else None
        if asked in NAMES:
            yield node


def readers(module: str) -> Iterator[str]:
    """Yield the functions, or the module, in which true groups are looked at."""
    tree = MODULES[module]
    inside = {
        node: f"{module}:{function.name}"
        for function in tree.body
        if isinstance(function, ast.FunctionDef | ast.ClassDef)
        for node in ast.walk(function)
    }
    yield from (inside.get(node, module) for node in reads(tree))


def test_true_groups_are_read_only_where_models_are_judged() -> None:
    found = {reader for module in MODULES for reader in readers(module)}
    allowed = {reader for reader in found if reader in READERS or reader.partition(":")[0] in READERS}
    # Data sets make them, the source of groups that is called oracle names them, and evaluation is handed them.
    allowed |= {reader for reader in found if reader.startswith("data/")}
    allowed |= {"groups/source.py"} & found
    assert found - allowed == set()
    assert {"data/dataset.py:Split", "pipeline/outcome.py:measure_on_test", "pipeline/plan_groups.py:_given"} <= found


@pytest.mark.parametrize("folder", ["auto/", "cluster/", "explain/", "retrain/", "model/", "evaluation/", "bench/"])
def test_nothing_that_infers_or_fits_reads_true_groups(folder: str) -> None:
    modules = [module for module in MODULES if module.startswith(folder)]
    assert len(modules) > 3
    assert [reader for module in modules for reader in readers(module)] == []


def test_the_graph_gives_true_groups_to_no_step_but_an_oracles() -> None:
    """Sources of groups are given what they name, and only one that says oracle may name these."""
    settings = load_settings("digits")
    for name in source_names():
        if "oracle" not in name:
            assert TRUE_GROUPS not in needs_of(make_source(Part(name), settings))
    with pytest.raises(SettingsError, match="only a source that says oracle in its name may see the true groups"):
        make_source(Part(f"{__name__}:Curious"), settings)


class Curious:
    """A source that asks for the true groups and does not say so."""

    name: ClassVar[str] = "curious"
    needs: ClassVar[tuple[str, ...]] = (TRUE_GROUPS,)

    def infer(self, explained: Explained, *, seed: int) -> Groups:
        raise AssertionError("it is never asked")
