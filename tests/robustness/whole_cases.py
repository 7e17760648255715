"""All kinds of cases of the whole program.

Case `number` of a seed is always the same, so that a fault can be had again by its number.
"""

from __future__ import annotations

import random
from pathlib import Path

import data_cases
import model_cases
import run_cases
import settings_cases
from case import Case, Maker
from materials import Materials

__all__ = ["KINDS", "make_case"]


# How each kind is made, and how often it is tried among a hundred.
KINDS: dict[str, tuple[Maker, int]] = {
    "settings_words": (settings_cases.settings_words, 6),
    "settings_run": (settings_cases.settings_run, 7),
    "settings_file": (settings_cases.settings_file, 5),
    "edits": (settings_cases.edits, 3),
    "benches": (settings_cases.benches, 1),
    "command_line": (settings_cases.command_line, 4),
    "run_folder": (run_cases.run_folder, 24),
    "run_folder_twice": (run_cases.run_folder_twice, 5),
    "places": (run_cases.places, 4),
    "surroundings": (run_cases.surroundings, 3),
    "loading": (run_cases.loading, 1),
    "limits": (run_cases.limits, 2),
    "photos": (data_cases.photos, 10),
    "tables": (data_cases.tables, 8),
    "idx_files": (data_cases.idx_files, 4),
    "archives": (data_cases.archives, 5),
    "weights": (model_cases.weights, 6),
    "model_words": (model_cases.model_words, 3),
}


def make_case(kind: str, seed: int, number: int, place: Path, made: Materials) -> Case:
    """Return a case, with all that it needs below an empty folder."""
    return KINDS[kind][0](random.Random(f"{seed} {kind} {number}"), place, made)
