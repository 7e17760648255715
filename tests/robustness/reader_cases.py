"""All kinds of inputs of readers in this process: what is accepted is right, what is refused is refused in a sentence.

Inputs are drawn by hypothesis, most of them as damages of a corpus of sound ones; each kind has a judge, which returns
what was wrong with one input.
"""

from __future__ import annotations

from functools import partial

from hypothesis import strategies as st
from materials import Materials
from nasty import NASTY_NAMES
from read_chain import IMAGES, judge_chain
from read_data import judge_folder, judge_idx, judge_image, judge_labels, judge_shard, judge_table_file, labelled_rows
from read_files import judge_results, judge_step, judge_weights
from read_python import (
    ANSWERS,
    OUTPUTS,
    features,
    given_arrays,
    judge_answer,
    judge_arrays,
    judge_clusters,
    judge_dfr,
    judge_output,
)
from read_settings import (
    YAML_TEXTS,
    judge_edits,
    judge_method,
    judge_name,
    judge_setting,
    judge_settings_file,
    judge_yaml,
)
from reader import SEEDS, Reader
from settings_cases import NAMES

__all__ = ["readers"]


def readers(made: Materials) -> dict[str, Reader]:
    """Return the kinds of inputs, each with how it is drawn and judged."""
    folders = [name for name in NASTY_NAMES if "/" not in name]
    names = st.lists(st.sampled_from(folders), min_size=2, max_size=3, unique=True)
    unseen = st.characters(categories=["Cs", "Cc", "Cf", "Zl"])
    texts = st.text(max_size=40) | st.sampled_from(NASTY_NAMES) | st.text(alphabet=unseen, max_size=5)
    numbers = st.sampled_from(("float", "float", "double", "half"))
    answers = st.tuples(st.sampled_from(sorted(ANSWERS)), SEEDS, st.booleans(), numbers)
    return {
        "yaml": Reader(YAML_TEXTS, judge_yaml, 12),
        "setting": Reader(st.tuples(st.sampled_from(NAMES), SEEDS), judge_setting, 20),
        "settings_file": Reader(SEEDS, judge_settings_file, 5),
        "edits": Reader(SEEDS, judge_edits, 4),
        "method": Reader(SEEDS, judge_method, 4),
        "table_file": Reader(SEEDS, judge_table_file, 8),
        "labels": Reader(labelled_rows(), judge_labels, 5),
        "folder": Reader(names, judge_folder, 2),
        "image": Reader(SEEDS, judge_image, 10),
        "idx": Reader(SEEDS, judge_idx, 5),
        "shard": Reader(SEEDS, judge_shard, 3),
        "arrays": Reader(given_arrays(), judge_arrays, 8),
        "answer": Reader(answers, judge_answer, 3),
        "output": Reader(OUTPUTS, judge_output, 4),
        "dfr": Reader(features(), judge_dfr, 2),
        "clusters": Reader(st.tuples(features(), st.sampled_from(("spectral", "kmeans"))), judge_clusters, 2),
        "chain": Reader(IMAGES, judge_chain, 1),
        "weights": Reader(SEEDS, partial(judge_weights, made), 5),
        "results": Reader(SEEDS, partial(judge_results, made), 4),
        "step": Reader(SEEDS, partial(judge_step, made), 2),
        "name": Reader(texts, judge_name, 4),
    }
