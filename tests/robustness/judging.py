"""What is a fault of a command: how it ended, what it said, and numbers that are not those of its own files."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from forked import Said
from safetensors.numpy import load_file

__all__ = ["CODES", "faults_of_numbers", "faults_of_saying", "left_overs", "signature", "without_times"]

CODES = {0, 1, 2, 130}  # as the command line promises
MAY_SAY_NO = ("audit", "bench", "check-model", "data")  # whose exit code 1 is an answer
LONGEST_SENTENCE = 2500  # characters: an unknown name is answered by all that are known
OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # by a terminal
PROGRESS = re.compile(r".* [\d,]+/[\d,]+ \w+, ")  # lines of long work where there is no screen
INNER = re.compile(r"0x[0-9a-f]{8,}|<class '|<function |<exmap\.|\[type=|pydantic\.dev|Errno ?\d|site-packages")
TIMES = ("seconds", "images_per_second", "peak_memory_mib")


def faults_of_saying(said: Said, words: Iterable[str]) -> list[str]:
    """Return what is wrong with how a command ended and with what it said."""
    first = next(iter(words), "")
    out, err = (stream.decode("utf-8", "surrogateescape") for stream in (said.out, said.err))
    if said.code is None:
        return ["hang"]
    if "Traceback (most recent call last)" in out + err:
        return [f"traceback: {last_line(err)}"]
    if said.code not in CODES or (said.code == 1 and first not in MAY_SAY_NO):
        return [f"exit code {said.code}: {last_line(err)}"]
    faults = []
    if OBEYED.search(out + err):
        faults.append(f"control characters: {OBEYED.findall(out + err)[:3]}")
    if re.search(r"[\ud800-\udfff]", out + err):
        faults.append("output is not UTF-8")
    lines = [line for line in err.splitlines() if line.strip() and not PROGRESS.match(line) and line != "loading"]
    if said.code == 2:
        if len(lines) != 1 or not re.match(r"exmap( \(process \d+\))?: \S", lines[0]):
            faults.append(f"not one sentence: {lines[:3]}")
        elif len(lines[0]) > LONGEST_SENTENCE:
            faults.append(f"a sentence of {len(lines[0])} characters: {lines[0][:200]}")
        elif INNER.search(lines[0]):
            faults.append(f"inner words: {lines[0]}")
    elif lines and not all(line.startswith("exmap") for line in lines):
        faults.append(f"noise: {lines[:3]}")
    return faults


def last_line(text: str) -> str:
    """Return the last line that says something, and where in exmap the error was."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    places = re.findall(r'File "[^"]*/(exmap/[^"]*)", line (\d+)', text)
    return f"{lines[-1][:300] if lines else ''} [{':'.join(places[-1]) if places else '?'}]"


def signature(fault: str) -> str:
    """Return the kind of a fault: the same for another name or number."""
    fault = re.sub(r"'[^']*'|\"[^\"]*\"", "'...'", fault)
    return re.sub(r"\d+", "0", fault)[:160]


def without_times(results: dict[str, Any]) -> dict[str, Any]:
    """Return results without what another run of the same settings need not repeat."""
    return {key: value for key, value in results.items() if key not in TIMES}


def strict_json(text: str) -> Any:
    """Return a JSON value; NaN and infinity are no JSON."""

    def refuse(word: str) -> Any:
        raise ValueError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def left_overs(folder: Path) -> list[str]:
    """Return what an interrupted command left in a run folder."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    return sorted(name for name in names if re.search(r"\.(part|old|tmp|lock)($|[./-])", name) or name.endswith("~"))


def faults_of_numbers(run: Path) -> list[str]:
    """Return where a finished run's numbers are not those of the files that they are made of.

    Everything is computed anew, by other code: labels by the names of folders, accuracies by what was kept.
    """
    faults: list[str] = []
    try:
        results = strict_json((run / "results.json").read_text(encoding="utf-8"))
        (run / "report" / "report.html").read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        return [f"results or report cannot be read: {error}"]
    known = json.loads((run / "data" / "data.json").read_text(encoding="utf-8"))
    classes = known.get("class_names") or known.get("classes")
    table = pd.read_parquet(run / "data" / "test.parquet")
    labels = table["class"].to_numpy()
    for name, label in zip(table["id"], labels, strict=True):
        parts = str(name).split("/")
        if len(parts) > 1 and parts[-2] in classes and classes[label] != parts[-2]:
            faults.append(f"label: {name} is of class {classes[label]}")
            break
    logits = load_file(run / "test" / "outputs.safetensors")["logits"]
    if len(logits) != len(labels) or not np.isfinite(logits).all():
        return [*faults, f"outputs: {logits.shape} of {len(labels)} images, or not finite"]
    groups = table["true_group"].to_numpy() if "true_group" in table else labels
    faults += _faults_of_method("erm", results["methods"]["erm"], logits.argmax(1)[None], labels, groups)
    for method, values in results["methods"].items():
        kept = run / f"fit-{method}" / "predicted.safetensors"
        predicted = load_file(kept).get("predicted") if kept.is_file() else None
        if predicted is not None:  # else another file was put in its place, and no step opened it
            faults += _faults_of_method(method, values, np.atleast_2d(predicted), labels, groups)
    return faults


def _faults_of_method(name: str, values: dict[str, Any], predicted: Any, labels: Any, groups: Any) -> list[str]:
    if predicted.shape[1] != len(labels):
        return [f"{name}: {predicted.shape} predictions of {len(labels)} images"]
    right = predicted == labels
    mean = float(right.mean())
    by_group = [right[:, groups == group].mean(1) for group in np.unique(groups[groups >= 0])]
    worst = float(np.min(by_group, axis=0).mean()) if by_group else math.nan
    found = []
    for what, here, there in (
        ("mean_accuracy", mean, values["mean_accuracy"]),
        ("worst_group_accuracy", worst, values["worst_group_accuracy"]),
    ):
        if there is None or abs(here - there) > 1e-6:
            found.append(f"{name}: {what} is {there}, but {here} of what was kept")
    return found
