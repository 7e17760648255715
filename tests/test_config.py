from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from exmap.errors import SettingsError
from exmap.plain_yaml import dump_yaml, parse_yaml
from exmap.registry import CLUSTERERS, EXPLAINERS, LEARNERS
from exmap.settings import Settings, change_settings, dump_settings, load_settings, parse_settings, preset_names
from exmap.settings.section import ChoosingSection, Section


def refusal(source: str | Path, *overrides: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(source, overrides)
    return str(caught.value)


@pytest.mark.parametrize("name", preset_names())
def test_every_shipped_preset_loads_and_survives_a_round_trip(name: str) -> None:
    settings = load_settings(name)
    assert settings.preset == name
    assert parse_settings(dump_settings(settings)) == settings


def test_the_shipped_presets_are_the_documented_ones() -> None:
    from exmap.data import dataset_names

    assert preset_names() == sorted([*dataset_names(), "cmnist-paper", "audit"])
    for name in set(preset_names()) - {"audit"}:
        settings = load_settings(name)
        assert settings.data.name == name.removesuffix("-paper")
        assert settings.preset == name
    paper, plain, digits = (load_settings(name) for name in ("cmnist-paper", "cmnist", "digits"))
    assert (paper.model.stem, paper.runtime.precision, paper.data.correlation) == ("3x3", "auto", 0.99)
    assert (plain.model.stem, plain.data.name, plain.data.correlation) == ("imagenet", "cmnist", 0.99)
    assert (digits.data.name, digits.data.correlation, digits.train.epochs) == ("digits", 0.9, 6)


def test_an_unknown_preset_is_answered_with_the_closest_one() -> None:
    said = refusal("cmist")
    assert said.startswith(
        "unknown preset 'cmist' (did you mean 'cmnist'?); choose one of: audit, celeba, cmnist, cmnist-10"
    )
    assert said.endswith("webdataset, or the path of a YAML file")


def test_a_missing_settings_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    assert refusal(path) == f"settings file {path} does not exist; give an existing YAML file or a preset's name"


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("data.corelation=0.5", "'data.correlation'?); choose one of: data.classes, data.correlation, "),
        ("dta.correlation=0.5", "'data'?); choose one of: auto, cluster, data, "),
        ("sed=1", "'seed'?); choose one of: auto, cluster, data, "),
    ],
)
def test_an_unknown_setting_or_section_is_answered_with_the_closest_one(override: str, hint: str) -> None:
    name = override.partition("=")[0]
    message = refusal("digits", override)
    assert message.startswith("unknown setting '")
    assert name.startswith(message.split("'")[1])
    assert f"(did you mean {hint}" in message


def test_a_value_inside_a_value_is_refused() -> None:
    assert refusal("digits", "preset.x=1") == "unknown setting 'preset.x': 'preset' is a value, not a section"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.correlation=0.04", "setting data.correlation: input should be greater than or equal to 0.1, got 0.04"),
        ("data.correlation=1.1", "setting data.correlation: input should be less than or equal to 1, got 1.1"),
        ("train.epochs=-1", "setting train.epochs: input should be greater than or equal to 0, got -1"),
        ("train.momentum=1", "setting train.momentum: input should be less than 1, got 1"),
        ("seed=-1", "setting seed: input should be greater than or equal to 0, got -1"),
        ("images.crop=300", "setting images: images.crop must be at most images.resize, 256, got 300"),
        (
            "images.random_crop=[0.9, 0.2]",
            "setting images: images.random_crop must be two shares, 0 < least <= largest <= 1, got (0.9, 0.2)",
        ),
        (
            "model={pretrained: true, stem: 3x3}",
            "setting model: model.pretrained needs model.stem=imagenet and no model.weights; set one of them otherwise",
        ),
        ("model.stem=5x5", "setting model.stem: input should be 'imagenet' or '3x3', got '5x5'"),
    ],
)
def test_a_value_out_of_its_range_is_refused_with_the_range(override: str, message: str) -> None:
    assert refusal("digits", override) == message


@pytest.mark.parametrize("value", [0.5, 0.75, 0.99, 1.0])
def test_the_correlation_may_be_anything_from_a_half_to_one(value: float) -> None:
    assert load_settings("digits", [f"data.correlation={value}"]).data.correlation == value


def test_overrides_are_yaml_and_the_last_one_wins() -> None:
    settings = load_settings("digits", ["seed=1", "seed=2", "cluster.n_clusters=null", "retrain.strengths=[1, 0.5]"])
    assert (settings.seed, settings.cluster.n_clusters, settings.retrain.strengths) == (2, None, (1.0, 0.5))
    assert settings.train.batch_size == 32


def test_keyword_changes_come_after_overrides_and_none_changes_nothing() -> None:
    settings = load_settings("digits", ["seed=1", "train.epochs=3"], seed=5, train__epochs=None, runtime__devices=2)
    assert (settings.seed, settings.train.epochs, settings.runtime.devices) == (5, 3, 2)


def test_an_override_must_have_a_value_that_is_yaml() -> None:
    assert refusal("digits", "seed") == (
        "an override must be written section.key=value, got 'seed'; for example seed=1"
    )
    assert refusal("digits", "retrain.strengths=[1").startswith(
        "the value of 'retrain.strengths' must be plain YAML, but in line 1, column 3 it cannot be parsed: "
    )
    assert "must not be a comment, got '#1'; put it in quotes" in refusal("digits", "data.label_column=#1")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: [", "must be plain YAML, but in line 1, column 5 it cannot be parsed: "),
        ("- 1\n", "must hold a mapping of settings, got a list"),
        ("just words", "must hold a mapping of settings, got a str"),
    ],
)
def test_a_file_that_is_no_yaml_mapping_is_refused(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert f"{path} {part}" in refusal(path)


def test_a_binary_file_is_refused_as_no_yaml(tmp_path: Path) -> None:
    path = tmp_path / "picture.yaml"
    path.write_bytes(b"\x89PNG\r\n\x1a\n\xff\x00")
    assert f"{path} must be a YAML file" in refusal(path)


def test_a_settings_file_starts_from_the_preset_it_names(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("preset: cmnist-paper\ntrain: {epochs: 3}\n")
    settings = load_settings(path, ["seed=4"])
    assert (settings.preset, settings.seed, settings.model.stem) == ("cmnist-paper", 4, "3x3")
    assert (settings.train.epochs, settings.train.batch_size) == (3, 128)


def test_a_settings_file_without_a_preset_starts_from_the_defaults_and_is_named_after_its_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("data: {correlation: 0.75}\n")
    settings = load_settings(path)
    assert settings == Settings.model_validate({"preset": "mine", "data": {"correlation": 0.75}})
    path.write_text("")
    assert load_settings(path) == Settings(preset="mine")


def test_a_settings_file_that_names_an_unknown_preset_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("preset: cmist\n")
    assert "did you mean 'cmnist'?" in refusal(path)


def test_settings_are_frozen_at_every_level() -> None:
    settings = load_settings("digits")
    with pytest.raises(ValidationError, match="frozen"):
        settings.seed = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        settings.data.correlation = 0.5  # type: ignore[misc]


@pytest.mark.parametrize("target", ["predicted", "true", "2"])
def test_the_explained_class_can_be_set_from_the_command_line(target: str) -> None:
    expected = int(target) if target.isdigit() else target
    found = load_settings("digits", [f"explain.target={target}"]).explain.target
    assert found == expected
    assert type(found) is type(expected)


def test_a_wrong_explained_class_is_refused_under_the_name_of_its_setting() -> None:
    message = refusal("digits", "explain.target=tru")
    assert message.startswith("setting explain.target: ")


# Any settings


def limited(kind: type, rules: Sequence[Any]) -> st.SearchStrategy[Any]:
    """Return numbers within the limits of a field."""
    limits = {key: getattr(rule, key) for rule in rules for key in ("ge", "gt", "le", "lt") if hasattr(rule, key)}
    low, high = limits.get("ge", limits.get("gt", 0)), limits.get("le", limits.get("lt", 1000))
    if kind is int:
        return st.integers(low + ("gt" in limits), high - ("lt" in limits))
    return st.floats(low, high, exclude_min="gt" in limits, exclude_max="lt" in limits)


def valid(annotation: Any, rules: Sequence[Any] = ()) -> st.SearchStrategy[Any]:
    """Return values that a field takes, by its type."""
    inner = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return valid(inner[0], [each for rule in inner[1:] for each in getattr(rule, "metadata", [rule])])
    if get_origin(annotation) is Literal:
        return st.sampled_from(inner)
    if get_origin(annotation) in (Union, UnionType):
        return st.one_of(*(st.none() if part is type(None) else valid(part, rules) for part in inner))
    if get_origin(annotation) is tuple:
        return st.lists(st.text("abc_", min_size=1) if inner[0] is str else valid(inner[0]), max_size=3, unique=True)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return tree_of(annotation)
    plain = {
        bool: st.booleans(),
        str: st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8),
        Path: st.sampled_from(["here", "some where/ünd.txt"]),
    }
    return plain[annotation] if annotation in plain else limited(annotation, rules)


def tree_of(section: type[BaseModel]) -> st.SearchStrategy[dict[str, Any]]:
    """Return mappings of some values of a section; where values must go together, of those that do."""
    fields = {
        name: valid(info.annotation, info.metadata)
        for name, info in section.model_fields.items()
        if f"{section.__name__}.{name}" not in TOGETHER
    }
    own = {key.split(".")[1]: value for key, value in TOGETHER.items() if key.split(".")[0] == section.__name__}
    return st.fixed_dictionaries({}, optional={**fields, **{k: v for k, v in own.items() if v is not None}})


TOGETHER: dict[str, st.SearchStrategy[Any] | None] = {
    "Settings.edits": None,
    "ModelSettings.pretrained": st.just(False),
    "ImageSettings.resize": st.integers(224, 1000),  # the crop that is usual must fit
    "ImageSettings.crop": st.one_of(st.none(), st.integers(1, 224)),
    "ImageSettings.normalize": st.sampled_from(["imagenet", "none", [[0.5] * 3, [0.25] * 3]]),
    "ImageSettings.random_crop": st.one_of(st.none(), st.just([0.25, 0.5])),
    "ExplainSettings.target": st.one_of(st.sampled_from(["predicted", "true", "margin"]), st.integers(0, 9)),
    "RetrainSettings.learner": st.sampled_from(LEARNERS.names()),
    "ClusterSettings.method": st.sampled_from(CLUSTERERS.names()),
    "ExplainSettings.explainer": st.sampled_from(EXPLAINERS.names()),
}


@given(tree_of(Settings))
def test_any_settings_survive_being_written_and_read(tree: dict[str, Any]) -> None:
    settings = parse_settings(tree)
    written = parse_yaml(dump_yaml(dump_settings(settings)), "what was written")
    assert parse_settings(written) == settings
    assert change_settings(settings) == settings
    for name, value in tree.items():
        if not isinstance(value, dict):
            assert dump_settings(settings)[name] == value


@given(
    st.sampled_from(["", *(name for name, info in Settings.model_fields.items() if isinstance(info.default, Section))]),
    st.from_regex(r"[a-z]{1,9}", fullmatch=True),
)
def test_any_unknown_setting_is_refused_with_the_allowed_names(section: str, key: str) -> None:
    there = getattr(Settings(), section) if section else Settings()
    known = set(type(there).model_fields)
    if isinstance(there, ChoosingSection):
        known |= set(there.registry.options(getattr(there, there.choice)))
    if key in known:
        return
    with pytest.raises(SettingsError) as caught:
        change_settings(Settings(), [f"{section}.{key}=1".lstrip(".")])
    said = str(caught.value)
    assert "unknown setting" in said or "unknown option of" in said
    assert f"{key!r}" in said or f"{section}.{key}" in said
    (allowed,) = re.findall(r"; choose one of: (.*)", said)
    assert {name.rpartition(".")[2] for name in allowed.split(", ")} >= known - {"edits", "preset"} or "did you" in said
