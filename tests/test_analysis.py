"""A classifier of one's own, analysed in memory in one call."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import HDBSCAN, KMeans
from torch import nn

import exmap
from exmap.analysis import Analysis, Fit
from exmap.api import evaluate
from exmap.data import Split, Task, array_split, planted_shortcut
from exmap.errors import DataError, SettingsError
from exmap.methods import Method, Part
from exmap.pipeline.fitting import fit_last_layer
from exmap.records import Explained, Groups, Heatmaps, Outputs, silent
from exmap.report.outcome import accuracy_by_group, headline
from exmap.retrain.balance import parts_of
from exmap.runtime import generator, torch_seed
from exmap.settings import Settings, change_settings
from sample_analysis import Looks

QUICK = (
    "cluster.method=kmeans",
    "cluster.n_clusters=2",
    "cluster.scope=local",
    "explain.layer=none",
    "retrain.repeats=2",
    "retrain.subsamples=2",
    "retrain.tuning_splits=1",
    "retrain.strengths=[0.3]",
    "evaluate.bootstrap=20",
    "train.epochs=1",
)
HOSTILE = "<img src=x onerror=alert(1)>"


@cache
def planted() -> Task:
    return planted_shortcut(2, (60, 160, 80), correlation=0.75, side=8, noise=0.3)


@cache
def classifier() -> nn.Module:
    """A classifier that looks at the patch more than at the bar; nothing is trained."""
    return Looks(planted(), 2.0)


def analyze(images: Split | Task | None = None, model: nn.Module | None = None, **more: Any) -> Analysis:
    settings = (*QUICK, *more.pop("settings", ()))
    more.setdefault("auto", False)  # what it costs is paid once, below
    return exmap.analyze(model or classifier(), images or planted().val, settings=settings, **more)


@pytest.fixture(scope="module")
def found() -> Analysis:
    return analyze(sources=["classes", "random"])


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_bits(model: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# What is there


def test_all_images_are_grouped_and_each_is_measured_by_a_layer_fitted_to_others(found: Analysis) -> None:
    val = planted().val
    assert found.task.cross_fitted
    assert found.explained.ids == val.ids == found.task.test.ids
    assert found.results is not None
    fit = found.fit()
    assert found.results.methods["exmap+dfr"].mean_accuracy == pytest.approx((fit.predicted == val.labels).mean())
    assert fit.predicted.shape == (2, 160)


def test_what_only_noise_was_fitted_to_is_right_by_chance() -> None:
    rng, val = np.random.default_rng(0), planted().val
    noise = replace(val, labels=rng.integers(2, size=len(val)))
    outputs = Outputs(rng.normal(size=(len(val), 60)).astype(np.float32), np.zeros((len(val), 2), dtype=np.float32))
    settings = change_settings(Settings(), ["retrain.repeats=1", "retrain.strengths=[1]", "retrain.subsamples=2"])
    method = Method(Part("dfr"), Part("classes"))
    groups = Groups(noise.labels, ("0", "1"), "classes", ("class labels",))
    fit = fit_last_layer(method, settings, classifier(), noise, outputs, groups, None, listen=silent)
    assert (fit.heads[0].predict(outputs.features) == noise.labels).mean() > 0.8
    assert (fit.predicted == noise.labels).mean() < 0.65


def test_labels_of_an_image_have_no_part_in_what_it_is_predicted(found: Analysis) -> None:
    val = planted().val
    wrong = replace(val, labels=np.where(np.arange(len(val)) == 7, 1 - val.labels, val.labels))
    groups = found.groups["random"]
    settings, outputs = found.settings, found.explained.outputs
    parts = parts_of(val.labels, groups, settings.evaluate.folds, generator(settings.seed, "folds"))
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(val)))
    method = Method(Part("dfr"), Part("random"))
    first, second = (
        fit_last_layer(method, settings, classifier(), split, outputs, groups, None, listen=silent)
        for split in (val, wrong)
    )
    others = parts_of(wrong.labels, groups, settings.evaluate.folds, generator(settings.seed, "folds"))
    mine = next(rows for rows in others if 7 in rows)
    if np.array_equal(mine, next(rows for rows in parts if 7 in rows)):
        assert np.array_equal(first.predicted[:, mine], second.predicted[:, mine])


def test_with_a_second_set_that_is_measured(found: Analysis) -> None:
    two = analyze(test=planted().test)
    assert not two.task.cross_fitted
    assert two.fit().predicted.shape == (2, 80)
    images = torch.from_numpy(planted().test.images.batch(np.arange(80)))
    assert np.array_equal(two.test.predicted, classifier()(images).argmax(dim=1).numpy())


def test_groups_fits_results_and_trust_are_there(found: Analysis) -> None:
    assert list(found.groups) == ["exmap", "classes", "random"]
    assert all(len(groups) == 160 for groups in found.groups.values())
    assert found.oracle is not None
    assert found.pseudo_groups is found.groups["exmap"]
    assert found.groups["random"].counts().tolist() == found.pseudo_groups.counts().tolist()
    assert list(found.fits) == ["exmap+dfr", "classes+dfr", "random+dfr"]
    assert all(fit.predicted.shape == (2, 160) and len(fit.heads) == 2 for fit in found.fits.values())
    assert found.results is not None
    assert list(found.results.methods) == ["erm", *found.fits]
    assert found.results.methods["exmap+dfr"].labels_used["groups"] == ("class labels",)
    assert found.results.methods["exmap+dfr"].repeats == 2
    assert found.trust is not None
    assert (found.method, found.last_word) == ("exmap+dfr", "exmap+dfr")


def test_results_are_what_the_classifiers_achieve(found: Analysis) -> None:
    assert found.results is not None
    table = evaluate(classifier(), found.task.test)
    assert found.results.methods["erm"].worst_group_accuracy == pytest.approx(table.worst)
    assert found.results.methods["erm"].mean_accuracy == pytest.approx(table.mean)
    two = analyze(test=planted().test)
    fit, test = two.fit(), two.task.test
    assert evaluate(two.repair(), test).mean == pytest.approx((fit.predicted[0] == test.labels).mean())


def test_a_repair_by_its_groups_lifts_the_worst_group(found: Analysis) -> None:
    assert found.results is not None
    worst = {name: row.worst_group_accuracy for name, row in found.results.methods.items()}
    assert worst["exmap+dfr"] > worst["erm"] + 0.2


def test_the_same_seed_gives_the_same_analysis(found: Analysis) -> None:
    again, other = analyze(sources=["classes", "random"]), analyze(seed=1, sources=["random"])
    assert again.groups == found.groups
    assert again.results == found.results
    assert other.groups["random"] != found.groups["random"]


def test_printed_it_says_what_was_found(found: Analysis) -> None:
    before = accuracy_by_group(found, found.explained.predicted, "before")
    lines = str(found).splitlines()
    assert lines[0] == headline(found, before)
    assert lines[-1] == repr(found)
    assert "split" not in repr(found)


def test_a_frame_has_a_row_per_explained_image(found: Analysis) -> None:
    frame = found.to_frame()
    assert frame["id"].tolist() == list(found.explained.ids)
    assert [*frame.columns] == [
        "id",
        "class",
        "predicted",
        "correct",
        "group (exmap)",
        "group (classes)",
        "group (random)",
    ]
    assert frame["group (exmap)"].value_counts().to_dict() == dict(
        zip(found.pseudo_groups.names, found.pseudo_groups.counts().tolist(), strict=True)
    )
    assert (frame["class"] == frame["predicted"]).tolist() == frame["correct"].tolist()


def test_unassigned_images_are_called_so_in_the_frame(found: Analysis) -> None:
    index = found.pseudo_groups.index.copy()
    index[3] = -1
    partly = replace(found, groups={"exmap": replace(found.pseudo_groups, index=index)})
    assert partly.to_frame()["group (exmap)"][3] == "unassigned"


# The classifier


def test_the_model_stays_as_it_is() -> None:
    model, modes = Looks(planted(), 2.0).train(), []
    model.features.eval()
    before = bits(model)
    found = analyze(model=model)
    fixed = found.repair()
    assert same_bits(model, before)
    modes = [module.training for module in model.modules()]
    assert modes == [True, False, False, False, False, True]
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert type(fixed) is Looks
    assert fixed is not model
    changed = {name for name, tensor in fixed.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed <= {"head.weight", "head.bias"}
    assert "head.weight" in changed


def test_each_method_repairs_by_itself(found: Analysis) -> None:
    by_classes = found.repair("classes+dfr")
    assert not torch.equal(by_classes.head.weight, found.repair().head.weight)
    with pytest.raises(DataError, match=r"unknown method 'exmap\+dfrr' \(did you mean 'exmap\+dfr'\?\)"):
        found.repair("exmap+dfrr")


def test_without_fits_there_is_nothing_to_repair(found: Analysis) -> None:
    bare = replace(found, fits={})
    assert (bare.method, bare.last_word) == (None, None)
    with pytest.raises(DataError, match="nothing was retrained in this analysis"):
        bare.repair()


def test_a_classifier_without_a_last_linear_layer_is_left_alone() -> None:
    model = nn.Sequential(classifier(), nn.Tanh())
    found = analyze(model=model)
    fit = found.fit()
    assert fit.left_alone
    assert found.repair() is model
    assert found.results is not None
    methods = found.results.methods
    assert methods["exmap+dfr"].mean_accuracy == methods["erm"].mean_accuracy


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), "outputs 5 classes, the data set has 2"),
        (nn.Sequential(nn.Flatten(), nn.Linear(100, 2)), "the model failed on images of shape"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(model: nn.Module, said: str) -> None:
    with pytest.raises(DataError, match=said):
        analyze(model=model)


# What is given


def test_a_task_is_explained_on_validation_and_measured_on_test_images() -> None:
    found = analyze(planted())
    assert found.explained.ids == planted().val.ids
    assert found.task.test.ids == planted().test.ids


def test_images_to_measure_on_may_be_given() -> None:
    found = analyze(test=planted().test)
    assert found.explained.ids == planted().val.ids
    assert found.task.test.ids == planted().test.ids
    assert found.task.test.name == "test"


def test_arrays_without_true_groups_are_reported_by_class() -> None:
    rng = np.random.default_rng(0)
    split = array_split(rng.random((60, 3, 8, 8), dtype=np.float32), np.arange(60) % 2)
    found = analyze(split, sources=["oracle", "classes"])
    assert found.oracle is None
    assert list(found.groups) == ["exmap", "classes"]  # there is no oracle without true groups
    assert found.results is not None
    assert [*found.results.methods["erm"].group_accuracy] == ["0", "1"]
    assert found.results.group_inference == {}


def test_true_groups_make_no_difference_to_anything_but_the_measures() -> None:
    val = planted().val
    with_them, without = analyze(val), analyze(replace(val, truth=None))
    assert with_them.groups == without.groups
    for one, other in zip(with_them.fit().heads, without.fit().heads, strict=True):
        assert np.array_equal(one.weight, other.weight)


def test_an_oracle_is_measured_and_not_among_the_groups() -> None:
    found = analyze(sources=["oracle"])
    assert list(found.groups) == ["exmap"]
    assert found.results is not None
    assert found.results.methods["oracle+dfr"].labels_used["groups"] == ("true groups",)


@pytest.mark.parametrize(
    ("clusterer", "names"), [(KMeans(3, n_init=1), 6), (HDBSCAN(min_cluster_size=5, copy=True), None)]
)
def test_a_clusterer_of_ones_own_takes_the_place_of_the_clustering(clusterer: Any, names: int | None) -> None:
    found = analyze(clusterer=clusterer)
    if names is not None:
        assert len(found.pseudo_groups.names) == names
    assert not hasattr(clusterer, "labels_")  # it is a copy that is fitted
    assert list(found.fits) == ["exmap+dfr"]


def test_an_estimator_that_takes_all_images_for_noise_leaves_them_unassigned() -> None:
    val = planted().val.rows(np.arange(0, 160, 16))
    groups = exmap.ExMap(clusterer=HDBSCAN(min_cluster_size=9, copy=True)).infer(classifier(), val)
    assert (groups.index == -1).all()
    assert groups.names == ()


class Middle:
    """An explainer with Captum's method: all relevance is in the middle of the image."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, ...]] = []

    def attribute(self, inputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        self.asked.append(tuple(inputs.shape))
        values = torch.zeros_like(inputs)
        values[:, :, 4, 4] = 1
        return values


def test_an_explainer_of_ones_own_takes_the_place_of_relevance_propagation() -> None:
    explainer = Middle()
    found = analyze(explainer=explainer)
    assert explainer.asked
    maps = found.explained.maps().values.sum(axis=1)
    assert (np.argwhere(maps != 0)[:, 1:] == 4).all()


@pytest.mark.parametrize(("learner", "method"), [("afr", "afr@exmap"), ("dfr[smallest_group=3]", "exmap+dfr")])
def test_learners_are_written_as_in_a_bench(learner: str, method: str) -> None:
    found = analyze(learner=learner, sources=["classes", "random"])
    assert next(iter(found.fits)) == method
    assert len(found.fits) == 3
    assert found.method_of("random") is not None
    assert found.settings.retrain.options.get("smallest_group") == (3 if "[" in learner else None)
    assert type(found.repair()) is Looks


def test_a_learner_that_takes_no_groups_is_fitted_once() -> None:
    found = analyze(learner="class_balanced", sources=["classes"])
    assert list(found.fits) == ["class_balanced"]
    assert found.last_word == "class_balanced"


@pytest.mark.parametrize("more", [{"learner": "rwg"}, {"learner": "jtt"}, {"sources": ["xrm"]}, {"sources": ["eiil"]}])
def test_what_trains_whole_networks_is_refused_without_training_images(more: dict[str, Any]) -> None:
    with pytest.raises(SettingsError) as caught:
        analyze(**more)
    assert ("give train=" if "learner" in more else "leave it out") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_repair_of_the_whole_network_is_refused_without_training_images() -> None:
    with pytest.raises(SettingsError, match="give train="):
        analyze(auto=True, settings=["auto.repair=auto"])


def test_a_whole_network_is_trained_on_the_images_that_are_given() -> None:
    with torch_seed(0):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    before = bits(model)
    found = analyze(model=model, train=planted().train, learner="rwg")
    fixed = found.repair()
    assert same_bits(model, before)
    assert type(fixed) is nn.Sequential
    assert not torch.equal(fixed[0].weight, before["0.weight"])
    assert list(found.fits) == ["exmap+rwg"]
    assert repr(found.fit()) == "Fit(whole network, 80 test images)"
    assert evaluate(fixed, found.task.test).mean == pytest.approx(
        (found.fit().predicted[0] == found.task.test.labels).mean()
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"learner": "dfrr"}, "unknown learner 'dfrr' (did you mean 'dfr'?)"),
        ({"sources": ["exmapp"]}, "did you mean 'exmap'"),
        ({"settings": ["cluster.methd=kmeans"]}, "did you mean 'method'"),
        ({"explainer": object()}, "explainer must be one of"),
        ({"clusterer": KMeans}, "a clusterer must be one of"),
        ({"settings": ["cluster.representation=channels"]}, "set cluster.representation=pixels"),
    ],
)
def test_unknown_names_are_refused_in_one_sentence(more: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        analyze(**more)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_work_is_heard_of() -> None:
    heard: list[str] = []
    analyze(listen=lambda progress: heard.append(progress.task))
    assert {"heatmaps (val)", "retrain"} <= set(heard)


# What is shown


class Addresses(HTMLParser):
    """Collects what a page would load or run."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.handlers: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "srcset", "data", "poster") or (name == "href" and tag in ("link", "use", "image")):
                self.found.append(value or "")
            if name.startswith("on"):
                self.handlers.append(f"{tag} {name}")


@cache
def hostile() -> Analysis:
    """An analysis of classes whose names would do harm where they are not escaped."""
    val = planted().val
    return analyze(replace(val, class_names=(HOSTILE, *val.class_names[1:])))


def test_a_report_is_one_file_that_loads_nothing(tmp_path: Path) -> None:
    found = hostile()
    assert found.report(tmp_path / "mine.html") == tmp_path / "mine.html"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.html"]
    page = (tmp_path / "mine.html").read_text(encoding="utf-8")
    read = Addresses(page)
    assert all(address.startswith(("data:", "#")) for address in read.found)
    assert read.handlers == []
    assert not re.findall(r"(?:url\(|@import|fetch\(|import\()\s*['\"]?(?:https?:)?//", page)
    assert HOSTILE not in page


def test_a_notebook_shows_names_as_text() -> None:
    found = hostile()
    for record in (found, found.results, found.pseudo_groups):
        assert record is not None
        shown = record._repr_html_()
        assert HOSTILE not in shown
        assert all(address.startswith("data:image/png;base64,") for address in Addresses(shown).found)
    assert "&lt;img src=x" in found.pseudo_groups._repr_html_()
    assert "exmap+dfr" in found._repr_html_()


def large() -> dict[str, Any]:
    """Records of 50,000 images, without images."""
    n, names = 50_000, tuple(f"class {number}" for number in range(10))
    zeros, labels = np.zeros(n, dtype=np.float32), np.arange(n) % 10
    images = np.broadcast_to(np.zeros((1, 1, 1, 1), dtype=np.float32), (n, 3, 32, 32))
    split = array_split(images, labels, class_names=names, name="val")
    outputs = Outputs(np.zeros((n, 2), dtype=np.float32), np.zeros((n, 10), dtype=np.float32))
    maps = Heatmaps(np.zeros((n, 1, 1, 1), dtype=np.float32), labels, zeros, zeros == 0, zeros == 0)
    task = Task("large", replace(split, name="train"), split, replace(split, name="test"))
    explained = Explained("val", split.ids, labels, names, outputs, maps)
    groups = Groups(labels, tuple(f"group {number}" for number in range(10)), "exmap", ("class labels",))
    fit = Fit(np.zeros((5, n), dtype=np.int64))
    settings = exmap.load_settings("digits")
    analysis = Analysis(
        settings, task, explained, outputs, {"exmap": groups, "classes": groups}, network=nn.Identity, fits={"a": fit}
    )
    records = (split, task, explained, groups, maps, outputs, fit, analysis)
    return {type(record).__name__: record for record in records}


def test_records_are_shown_in_a_line_however_large_they_are() -> None:
    records = large()
    assert set(records) == {"Split", "Task", "Explained", "Groups", "Heatmaps", "Outputs", "Fit", "Analysis"}
    for name, record in records.items():
        shown = repr(record)
        assert len(shown) < 200, name
        assert "\n" not in shown, name
        assert shown.startswith(f"{name}("), name
        assert "50,000" in shown, name


def test_groups_are_equal_where_they_group_alike(found: Analysis) -> None:
    groups = found.pseudo_groups
    again = replace(groups, index=groups.index.copy(), labels_used=("others",))
    assert again == groups
    assert {groups, again} == {groups}
    moved = groups.index.copy()
    moved[0] = (moved[0] + 1) % len(groups.names)
    for other in (
        replace(groups, index=moved),
        replace(groups, source="other"),
        replace(groups, names=tuple(reversed(groups.names)), classes=(), parts=()),
        replace(groups, index=groups.index[:-1]),
    ):
        assert other != groups
    assert groups != "exmap"
