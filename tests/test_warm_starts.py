"""What a run hands over to a learner of the whole network to begin with, and what it says of one that was tuned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from exmap.analysis import Fit
from exmap.data import Split
from exmap.methods import parse_method
from exmap.model import collect_outputs
from exmap.pipeline.fitting import fit_whole_network
from exmap.records import Groups, silent
from exmap.settings import RuntimeSettings, Settings, TrainSettings
from exmap.testing.common import planted, small_model

TASK = planted()
STILL = "learning_rate=1e-9,weight_decay=0"  # weights stay what they were
SETTINGS = Settings(
    train=TrainSettings(epochs=1, batch_size=32, learning_rate=0.03), runtime=RuntimeSettings(accelerator="cpu")
)


def grouped(split: Split) -> Groups:
    groups = split.true_groups()
    return Groups(groups.index, groups.names, "own", ("class labels",))


def fits(*texts: str, begun: nn.Module, classifier: nn.Module) -> list[Fit]:
    """Fit methods that differ in their choice alone, by the true groups."""
    methods = [parse_method(text) for text in texts]
    asked = []

    def begin() -> nn.Module:
        asked.append(True)
        return begun

    made = fit_whole_network(
        methods,
        SETTINGS,
        begin,
        TASK,
        grouped(TASK.train),
        {method.selection: grouped(TASK.val) for method in methods if method.selection is not None},
        classifier=classifier,
        tested=collect_outputs(classifier, TASK.test),
        listen=silent,
    )
    assert bool(asked) == ("start=classifier" not in texts[0])
    return [made[str(method)] for method in methods]


def close(fit: Fit, model: nn.Module) -> bool:
    assert fit.network is not None
    pairs: Any = zip(fit.network.parameters(), model.parameters(), strict=True)
    return all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)


@pytest.mark.parametrize("start", ["initial", "classifier"])
def test_a_learner_says_what_it_starts_from(start: str) -> None:
    begun, classifier = small_model(seed=1), small_model(seed=2)
    (fit,) = fits(f"oracle+rwg[start={start},harm=warn,{STILL}]", begun=begun, classifier=classifier)
    assert close(fit, begun) == (start == "initial")
    assert close(fit, classifier) == (start == "classifier")


def test_the_usual_start_is_that_of_the_classifiers_own_training() -> None:
    begun, classifier = small_model(seed=1), small_model(seed=2)
    (fit,) = fits(f"oracle+rwg[harm=warn,{STILL}]", begun=begun, classifier=classifier)
    assert close(fit, begun)


def test_each_method_says_how_it_was_tuned() -> None:
    begun = small_model(seed=1)
    texts = [f"oracle+rwg[harm=warn,tuned=yes,steps=4,learning_rate=0.01]{after}" for after in ("", "@classes")]
    for fit in fits(*texts, begun=begun, classifier=small_model(seed=2)):
        (note,) = [note for note in fit.notes if "was tuned" in note]
        assert "is the best of 3 trainings" in note
