"""The step that trains the whole network where the last layer does not suffice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from running import auto_run, changed, copy_run, little_choices, modification_times, redone, results_of, rewrite
from sharing import shared

METHOD = "auto+subg"


@pytest.fixture(autouse=True)
def little() -> Iterator[None]:
    with little_choices():
        yield


@pytest.fixture(scope="session")
def repaired(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose choice says that the last layer does not suffice; its own verdict may be another one."""
    chosen = auto_run(tmp_path_factory)

    def make(folder: Path) -> None:
        copy_run(chosen, folder)
        path = folder / "auto" / "auto.json"
        record = json.loads(path.read_text())
        record["repair"]["last_layer_suffices"] = False
        record["repaired"] = True
        rewrite(path, record)
        changed(folder, "auto.repair=auto")

    return shared(tmp_path_factory, "repaired-run", make)


def test_the_whole_network_is_trained_on_the_chosen_grouping_of_the_training_images(repaired: Path) -> None:
    groups = pq.read_table(repaired / "groups-train-auto" / "groups.parquet")
    assert groups.num_rows == 897
    fitted = json.loads((repaired / "repair" / "fit.json").read_text())
    assert list(fitted) == [METHOD]
    network, trained = (load_file(repaired / step / "model.safetensors") for step in ("repair", "train"))
    assert set(network) == set(trained)
    assert (network["0.weight"] != trained["0.weight"]).any()
    assert load_file(repaired / "repair" / "predicted.safetensors")["predicted"].shape == (1, 450)


def test_its_accuracy_stands_beside_the_others(repaired: Path) -> None:
    methods = results_of(repaired)["methods"]
    assert set(methods) == {"erm", "exmap+dfr", "auto+dfr", METHOD}
    assert methods[METHOD]["repeats"] == 1
    assert methods[METHOD]["labels_used"]["tuning"] == ["auto groups"]
    assert "true groups" not in methods[METHOD]["labels_used"]["groups"]


def test_without_leave_it_is_not_evaluated_and_comes_back_without_training(repaired: Path, tmp_path: Path) -> None:
    run = copy_run(repaired, tmp_path / "run")
    before = modification_times(run)
    changed(run, "auto.repair=last_layer")
    assert METHOD not in results_of(run)["methods"]
    changed(run, "auto.repair=auto")
    assert METHOD in results_of(run)["methods"]
    assert redone(before, run) == {"evaluate"}


def test_where_the_last_layer_suffices_nothing_is_trained(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    run = copy_run(auto_run(tmp_path_factory), tmp_path / "run")
    path = run / "auto" / "auto.json"
    record = json.loads(path.read_text())
    record["repair"]["last_layer_suffices"] = True
    rewrite(path, record)
    changed(run, "auto.repair=auto")
    assert json.loads((run / "repair" / "fit.json").read_text()) == {}
    assert not (run / "explain-train").exists()
    assert METHOD not in results_of(run)["methods"]
