"""The stage that trains the whole network where the last layer does not suffice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from exmap.stages import open_run, run_stages

from exmap.records import silent
from exmap.settings import load_settings


def quiet(_: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="module")
def repaired(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose choice says that the last layer does not suffice; its own verdict may be another one."""
    wanted = ["groups.auto=true", "auto.repair=auto", "auto.only_if_found=false", "retrain.repeats=1", "train.epochs=2"]
    run, settings = open_run(
        tmp_path_factory.mktemp("run"), load_settings("digits", [*wanted, "groups.sources=[exmap]"])
    )
    run_stages(run, settings, until="auto", say=quiet)
    path = run.stage("auto") / "auto.json"
    record = json.loads(path.read_text())
    record["repair"]["last_layer_suffices"] = False
    path.write_text(json.dumps(record))
    run_stages(run, settings, until="evaluate", listen=silent, say=quiet)
    return run.path


def test_the_whole_network_is_trained_on_the_chosen_grouping_of_the_training_images(repaired: Path) -> None:
    done = json.loads((repaired / "repair" / "repair.json").read_text())
    assert done["done"] is True
    assert done["learner"] == "subg"
    assert sum(done["groups"].values()) == 897  # all training images
    assert 2 <= done["epochs"] <= 100
    assert {"model.safetensors", "outputs.safetensors", "repair.json"} <= {
        file.name for file in (repaired / "repair").iterdir()
    }
    assert not (repaired / "repair" / "heatmaps.npy").exists()


def test_its_accuracy_stands_beside_the_others(repaired: Path) -> None:
    methods = json.loads((repaired / "results.json").read_text())["methods"]
    assert {"erm", "exmap+dfr", "auto+dfr", "auto+subg"} == set(methods)
    assert methods["auto+subg"]["labels_used"]["tuning"] == ["auto groups"]
    assert "true groups" not in methods["auto+subg"]["labels_used"]["groups"]


def test_without_leave_the_stage_is_gone(repaired: Path) -> None:
    run, settings = open_run(
        repaired, open_run(repaired)[1].model_copy(update={"auto": load_settings("digits").auto}), change=True
    )
    run_stages(run, settings, until="evaluate", say=quiet)
    assert not (repaired / "repair").exists()
    assert "auto+subg" not in json.loads((repaired / "results.json").read_text())["methods"]
