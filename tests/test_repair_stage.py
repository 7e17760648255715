"""The step that chooses among repairs where the last layer does not suffice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

import exmap
from running import auto_run, changed, copy_run, little_choices, modification_times, redone, results_of, rewrite
from sharing import shared

METHOD = "auto+cheapest"


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


def test_repairs_are_tried_on_the_chosen_grouping_of_the_training_images(repaired: Path) -> None:
    groups = pq.read_table(repaired / "groups-train-auto" / "groups.parquet")
    assert groups.num_rows == 897
    fitted = json.loads((repaired / "repair" / "fit.json").read_text())
    assert list(fitted) == [METHOD]
    assert load_file(repaired / "repair" / "predicted.safetensors")["predicted"].shape == (1, 450)
    tried = fitted[METHOD]["repairs"]
    assert [trial["name"] for trial in tried] == ["dfr", "lp_ft", "exchange", "rwg"]
    assert [trial["kept"] for trial in tried].count(True) == 1
    assert all(trial["low"] <= trial["worst"] <= trial["high"] for trial in tried)
    assert results_of(repaired)["methods"][METHOD]["repairs"] == tried


def test_what_was_kept_is_the_repaired_classifier(repaired: Path) -> None:
    (kept,) = [each["name"] for each in results_of(repaired)["methods"][METHOD]["repairs"] if each["kept"]]
    assert kept in ("dfr", "lp_ft")  # the cheapest within noise of the best, which is a matter of rounding
    network, trained = (load_file(repaired / step / "model.safetensors") for step in ("repaired", "train"))
    changes = [name for name, tensor in network.items() if (tensor != trained[name]).any()]
    if kept == "dfr":
        head = load_file(repaired / "repair" / "heads.safetensors")
        assert any(network[name].shape == head["0.weight"].shape for name in changes)
        assert len(changes) == 2
    else:
        assert 2 < len(changes) < len(network)
    analysis = exmap.open_analysis(repaired)
    assert analysis.last_word == METHOD
    assert f"The repair that was kept is {kept}" in analysis.findings().repair.why


def test_a_network_that_is_kept_is_handed_over_whole(repaired: Path, tmp_path: Path) -> None:
    run = copy_run(repaired, tmp_path / "run")
    changed(
        run,
        "groups.auto=false",
        "groups.sources=[exmap]",
        "retrain.learner=cheapest",
        "retrain.repairs=rwg",
        "retrain.epochs=1",
    )
    found = results_of(run)["methods"]["exmap+cheapest"]
    assert [(trial["name"], trial["kept"]) for trial in found["repairs"]] == [("rwg", True)]
    assert found["epoch"] == 1
    network, trained = (load_file(run / step / "model.safetensors") for step in ("repaired", "train"))
    assert set(network) == set(trained)
    assert (network["0.weight"] != trained["0.weight"]).any()


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
    assert redone(before, run) == {"repaired", "evaluate"}


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
