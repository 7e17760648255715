"""What the source itself promises: who imports whom, who prints, and what is never called."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import exmap

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
    assert {"cli.py", "stages.py", "runtime.py", "model/fit.py"} <= set(MODULES)


def test_the_import_contracts_hold() -> None:
    pytest.importorskip("importlinter")
    start = (
        "import sys; sys.path.insert(0, ''); from importlinter.cli import lint_imports_command; lint_imports_command()"
    )
    done = subprocess.run(
        [sys.executable, "-c", start, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 kept, 0 broken" in done.stdout


def test_only_the_command_line_prints() -> None:
    assert callers("print") == ["cli.py"]


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
    assert callers("torch.load", "torch.save", "joblib.load", "joblib.dump") == []
    pickling = ("pickle", "cloudpickle", "dill", "shelve")
    found = [m for m, tree in MODULES.items() if any(n.split(".")[0] in pickling for n in imported(tree))]
    assert found == ["runtime.py"]  # between its own processes, in a temporary folder that only they can write
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
        if not any(isinstance(node, ast.Assign) and dotted(node.targets[0]) == "__all__" for node in tree.body)
    ]
    assert silent == []


def test_true_groups_are_read_only_where_models_are_judged() -> None:
    readers = [
        module
        for module, tree in MODULES.items()
        if any(isinstance(node, ast.Attribute) and node.attr in ("true_groups", "truth") for node in ast.walk(tree))
    ]
    assert set(readers) <= {"stages.py", "api.py", "data/dataset.py", "data/check.py"}
    functions = {
        f"{module}:{node.name}"
        for module in ("stages.py", "api.py")
        for node in ast.walk(MODULES[module])
        if isinstance(node, ast.FunctionDef)
        and any(isinstance(n, ast.Attribute) and n.attr in ("true_groups", "truth") for n in ast.walk(node))
    }
    judging = {"evaluation_labels", "measure_on_test", "reported_groups", "agreement_with_truth"}
    oracle = {"oracle_source", "_sources"}
    assert functions <= {f"stages.py:{name}" for name in judging | oracle} | {"api.py:evaluate"}
