"""Written results: they read as typed records, write as they were, and their schemas describe them."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel, ValidationError

import exmap.results
from exmap.errors import RunFolderError
from exmap.evaluation import measure
from exmap.results import (
    AutoRecord,
    ClassFinding,
    DoneCell,
    FailedCell,
    GradientAgreement,
    GroupAccuracy,
    MethodResult,
    Part,
    Quantiles,
    Rerun,
    Results,
    Trust,
    read_cell,
)
from exmap.results.schemas import WRITTEN, json_schema

WRITTEN_FILES = Path(__file__).with_name("written")  # by exmap run and exmap bench, shortened
SCHEMAS = resources.files("exmap") / "schemas"
NOT_TESTED = {"found": None, "p_value": None, "effect": None, "why": "not tested"}  # as files had it at first


def written(name: str) -> Any:
    return json.loads((WRITTEN_FILES / name).read_text(encoding="utf-8"))


@pytest.fixture
def tree() -> dict[str, Any]:
    return written("results.json")


@pytest.fixture
def results(tree: dict[str, Any]) -> Results:
    return Results.from_json(tree)


# There and back


def test_written_results_read_and_write_as_they_were(tree: dict[str, Any]) -> None:
    before = copy.deepcopy(tree)
    results = Results.from_json(tree)
    assert results.to_json() == tree == before
    assert Results.from_json(results.to_json()) == results
    json.dumps(results.to_json(), allow_nan=False)


@pytest.mark.parametrize("kind", ["last layer", "whole network", "failed"])
def test_written_cells_read_and_write_as_they_were(kind: str) -> None:
    tree = written("cells.json")[kind]
    cell = read_cell(tree)
    assert cell.to_json() == tree
    assert isinstance(cell, FailedCell if kind == "failed" else DoneCell)


def test_a_run_that_is_not_complete_has_no_times(tree: dict[str, Any]) -> None:
    for key in ("seconds", "images_per_second", "peak_memory_mib", "auto"):
        del tree[key]
    results = Results.from_json(tree)
    assert results.to_json() == tree
    assert (results.seconds, results.auto) == ({}, None)


def test_what_does_not_exist_is_nan_here_and_null_there(results: Results) -> None:
    row = results.methods["exmap+dfr"]
    empty = row.group_accuracy["an empty group"]
    assert math.isnan(empty.value)
    assert empty.count == 0
    assert math.isnan(row.gaps["background + co-occurring object"])
    assert empty.to_json() == {"value": None, "count": 0, "low": None, "high": None}
    assert results.methods["george+dfr"].strengths[0] is None  # a head that was not fitted has none
    assert GroupAccuracy(value=math.nan, count=0, low=math.nan, high=math.nan) == empty


def test_an_absent_part_is_left_out_and_an_empty_one_is_not(results: Results) -> None:
    erm = results.methods["erm"].to_json()
    assert not {"gaps", "strengths", "notes", "epoch", "chosen"} & set(erm)
    assert erm["std"] is None
    assert results.methods["erm"].changed(notes=()).to_json()["notes"] == []


def test_nothing_concluded_reads_as_it_was_first_written(tree: dict[str, Any]) -> None:
    record = dict.fromkeys(("chosen", "runner_up", "confidence", "judged_on", "reliance", "repair"))
    record |= {"candidates": [], "data_curve": [], "repaired": False, "why": "too few", "remarks": ["too few"]}
    read = AutoRecord.from_json(record | {"shortcut": {"cat": NOT_TESTED}})
    assert read.shortcut["cat"] == ClassFinding.nothing(None, "not tested")
    assert set(NOT_TESTED.items()) <= set(read.to_json()["shortcut"]["cat"].items())
    assert not read.found
    assert AutoRecord.from_json(read.to_json()) == read


def test_heatmaps_of_old_folders_have_no_check(tree: dict[str, Any]) -> None:
    tree["heatmaps"]["check"] = {}
    assert Results.from_json(tree).heatmaps.check is None


def test_records_stay_as_they_are(results: Results) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        results.seed = 1
    other = results.changed(seed=1)
    assert (results.seed, other.seed, other.methods) == (0, 1, results.methods)
    with pytest.raises(ValidationError):
        results.changed(seed="one")


# What is refused


def broken(tree: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    *there, last = path.split("/")
    part = tree
    for key in there:
        part = part[key]
    part[last] = value
    return tree


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("format", 2, "runs/a/results.json has format 2, and this version of exmap reads format 1; read it with"),
        ("format", None, "has format None"),
        ("surprise", 1, "is not as exmap writes it: surprise is not known; make it again with exmap evaluate RUN_DIR"),
        ("seed", "one", "seed: input should be a valid integer, unable to parse string as an integer, got 'one'"),
        ("methods/erm", {"worst_group": "a"}, "methods.erm.worst_group_accuracy is missing (and "),
        ("heatmaps/share_all_zero", 2, "heatmaps.share_all_zero: input should be less than or equal to 1, got 2"),
        ("auto/shortcut", "x" * 200, "..."),
    ],
)
def test_other_files_are_refused_in_one_sentence(tree: dict[str, Any], path: str, value: Any, said: str) -> None:
    with pytest.raises(RunFolderError) as caught:
        Results.from_json(broken(tree, path, value), where="runs/a/results.json")
    message = str(caught.value)
    assert said in message
    assert message.startswith("runs/a/results.json ")
    assert "\n" not in message
    assert len(message) < 300


@pytest.mark.parametrize("tree", [None, [], "results", 1])
def test_what_is_no_mapping_is_refused(tree: Any) -> None:
    with pytest.raises(RunFolderError, match=r"results.json is not as exmap writes it: the whole file: "):
        Results.from_json(tree)
    with pytest.raises(RunFolderError, match="make it again with exmap bench"):
        read_cell(tree)
    with pytest.raises(RunFolderError, match=r"auto.json .* make it again with exmap auto RUN_DIR"):
        AutoRecord.from_json(tree)


# What one does with them


def test_a_frame_has_a_row_per_method(results: Results) -> None:
    pytest.importorskip("pandas")
    frame = results.to_frame().set_index("method")
    assert list(frame.index) == list(results.methods)
    row = results.methods["auto+dfr"]
    assert frame.loc["auto+dfr", "worst_group_accuracy"] == row.worst_group_accuracy
    assert frame.loc["erm", "labels_used"] == "class labels"
    assert frame.loc["exmap+dfr", "labels_used"] == "class labels, exmap groups"
    groups = row.to_frame().set_index("group")
    assert groups.loc[row.worst_group, "accuracy"] == row.worst.value
    assert list(results.auto.to_frame()["name"]) == [each.name for each in results.auto.candidates]


def test_it_shows_itself_in_a_line_and_as_a_table(results: Results) -> None:
    said = repr(results)
    assert said == str(results)
    assert "\n" not in said
    assert f"erm {results.methods['erm'].worst_group_accuracy:.1%}" in said
    hostile = results.changed(methods={"<b>": results.methods["erm"]})
    assert "<td>&lt;b&gt;</td>" in hostile._repr_html_()
    assert repr(results.auto).startswith("AutoRecord(")


def test_the_worst_group_of_no_images_is_none(results: Results) -> None:
    row = results.methods["erm"]
    assert row.worst == row.group_accuracy[row.worst_group]
    assert row.changed(worst_group="").worst is None
    assert not row.by_class
    assert row.changed(labels_used={"evaluation": ["class labels"]}).by_class


def test_quantiles_are_of_finite_values() -> None:
    found = Quantiles.of(np.array([np.nan, 0, 1, 2, 3, 4, np.inf], dtype=np.float32))
    assert found == Quantiles(images=5, q05=0.2, q25=1, median=2, q75=3, q95=3.8)
    assert Quantiles.of([np.nan]) is None
    assert Quantiles.of(np.zeros(0)) is None


def trust_of(**changes: Any) -> Trust:
    fields: dict[str, Any] = {
        "images": 300,
        "not_finite": 0,
        "all_zero": 1,
        "explained_by": "lrp with symmetric_gamma, of the predicted class",
        "is_gradient": False,
        "input_share": Quantiles.of([0.9, 0.95]),
        "conservation_error": None,
        "rerun_share": 0.8,
        "reruns": (Rerun(images=240, groups=3, ari=0.97),),
        "gradient": GradientAgreement(images=300, ari=0.55, own_ari=0.99),
    }
    return Trust(**(fields | changes))


@pytest.mark.parametrize("gradient", [None, GradientAgreement(images=20, ari=0.5, own_ari=1)])
def test_trust_is_a_part_of_the_results(results: Results, gradient: GradientAgreement | None) -> None:
    with_trust = results.changed(trust=trust_of(gradient=gradient))
    tree = with_trust.to_json()
    assert Results.from_json(tree) == with_trust
    assert tree["trust"]["conservation_error"] is None
    assert {key: value for key, value in tree.items() if key != "trust"} == results.to_json()


# What is measured


def measured(predicted: list[list[int]], **keywords: Any) -> MethodResult:
    """Measure repeats on two classes of two images each, whose groups are 0, 0, 1 and 2; group 3 is empty."""
    labels, index = np.array([0, 0, 1, 1]), np.array([0, 0, 1, 2])
    counts = np.array([4, 2, 2, 0])
    rng, names = np.random.default_rng(0), ("a", "b", "c", "d")
    return measure(np.array(predicted), labels, index, names, rng=rng, train_counts=counts, **keywords)


def test_the_worst_group_is_the_mean_of_each_repeats_worst() -> None:
    result = measured([[0, 0, 1, 0], [0, 1, 1, 1]])  # the worst groups are c with 0 and a with 0.5
    assert result.worst_group_accuracy == 0.25
    assert result.std == pytest.approx(np.std([0, 0.5], ddof=1))
    assert (result.repeats, result.mean_accuracy, result.worst_group) == (2, 0.75, "c")
    assert result.weighted_mean_accuracy == pytest.approx((4 * 0.75 + 2 * 1 + 2 * 0.5) / 8)
    assert [group.count for group in result.group_accuracy.values()] == [2, 1, 1, 0]
    assert result.group_accuracy["a"].value == 0.75
    assert math.isnan(result.group_accuracy["d"].value)
    assert MethodResult.from_json(result.to_json()) == result


def test_one_repeat_has_no_deviation_and_one_shortcut_no_gaps() -> None:
    result = measured([[0, 0, 1, 1]], attributes=("colour",), coordinates=np.zeros((4, 2), dtype=int))
    assert (result.std, result.gaps, result.labels_used) == (None, None, {})


def test_several_shortcuts_have_gaps() -> None:
    places = np.array([[0, 0, 0], [0, 1, 0], [1, 0, 0], [1, 0, 1]])
    result = measured([[0, 0, 1, 0]], attributes=("colour", "shape"), coordinates=places)
    assert set(result.gaps) == {"colour", "shape", "colour + shape"}
    assert math.isnan(result.gaps["colour + shape"])
    assert result.to_json()["gaps"]["colour + shape"] is None


# Schemas


def parts() -> Iterator[type[BaseModel]]:
    return (kind for kind in vars(exmap.results).values() if isinstance(kind, type) and issubclass(kind, Part))


@pytest.mark.parametrize("kind", list(parts()), ids=lambda kind: kind.__name__)
def test_every_field_says_what_it_is(kind: type[BaseModel]) -> None:
    assert [name for name, field in kind.model_fields.items() if not (field.description or "").endswith(".")] == []


@pytest.mark.parametrize("name", WRITTEN)
def test_the_shipped_schemas_are_those_of_the_records(name: str) -> None:
    shipped = json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8"))
    assert shipped == json_schema(name), f"write {SCHEMAS} anew with: python {Path(__file__).name}"


def faults(schema: dict[str, Any], value: Any, root: dict[str, Any], path: str = "") -> list[str]:
    """Return where a value is not as a schema wants it, for the keywords that these schemas have."""
    if "$ref" in schema:
        return faults(root["$defs"][schema["$ref"].rpartition("/")[2]], value, root, path)
    if "anyOf" in schema or "oneOf" in schema:
        each = [faults(one, value, root, path) for one in schema.get("anyOf", schema.get("oneOf"))]
        return [] if [] in each else min(each, key=len)
    kinds = {
        "object": dict,
        "array": list,
        "string": str,
        "boolean": bool,
        "null": type(None),
        "integer": int,
        "number": (int, float),
    }
    allowed = schema.get("type", [])
    wanted = [allowed] if isinstance(allowed, str) else allowed
    whole = isinstance(value, float) and value.is_integer() and "integer" in wanted  # 1.0 is one, too
    if wanted and not whole and not any(isinstance(value, kinds[kind]) for kind in wanted):
        return [f"{path} is {type(value).__name__}, not {wanted}"]
    found = []
    if "const" in schema and value != schema["const"]:
        found.append(f"{path} is not {schema['const']}")
    if isinstance(value, int | float) and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        found.append(f"{path} is out of range")
    if isinstance(value, list):
        found += [fault for item in value for fault in faults(schema.get("items", {}), item, root, f"{path}[]")]
    if isinstance(value, dict):
        properties, others = schema.get("properties", {}), schema.get("additionalProperties", {})
        found += [f"{path}.{key} is missing" for key in schema.get("required", ()) if key not in value]
        found += [f"{path}.{key} is not known" for key in value if key not in properties and others is False]
        for key, item in value.items():
            found += faults(
                properties.get(key, others if isinstance(others, dict) else {}), item, root, f"{path}.{key}"
            )
    return found


def test_the_schemas_hold_for_what_is_written(tree: dict[str, Any]) -> None:
    whole = Results.from_json(tree).changed(trust=trust_of()).to_json()
    examples = [("results", tree), ("results", whole), ("auto", tree["auto"])]
    examples += [("cell", cell) for cell in written("cells.json").values()]
    for name, value in examples:
        assert faults(json_schema(name), value, json_schema(name)) == []
    assert faults(json_schema("results"), broken(tree, "methods/erm/repeats", "5"), json_schema("results"))
    assert faults(json_schema("results"), broken(tree, "methods/erm/more", 5), json_schema("results"))


def test_a_method_needs_no_more_than_what_is_measured() -> None:
    schema = json_schema("results")["$defs"]["MethodResult"]
    fields = {name for name, field in MethodResult.model_fields.items() if field.is_required()}
    assert set(schema["required"]) == fields


if __name__ == "__main__":  # write the shipped files anew
    for name in WRITTEN:
        with resources.as_file(SCHEMAS) as folder:
            (folder / f"{name}.schema.json").write_text(
                json.dumps(json_schema(name), indent=2) + "\n", encoding="utf-8"
            )
