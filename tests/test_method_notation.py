from __future__ import annotations

import itertools
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from exmap.errors import SettingsError
from exmap.methods import Method, Part, expand_methods, method_with, parse_method, parse_part, text_of
from exmap.registry import LEARNERS, SOURCES


@pytest.mark.parametrize(
    ("text", "source", "learner", "selection"),
    [
        ("erm", None, "erm", None),
        ("exmap+dfr", "exmap", "dfr", "exmap"),
        ("class_balanced", None, "class_balanced", None),
        ("afr", None, "afr", "classes"),
        ("afr@exmap", None, "afr", "exmap"),
        ("jtt", None, "jtt", "classes"),
        ("jtt@oracle", None, "jtt", "oracle"),
        ("lff", None, "lff", "classes"),
        ("xrm+group_dro", "xrm", "group_dro", "xrm"),
        ("exmap+group_dro@oracle", "exmap", "group_dro", "oracle"),
        ("exmap+subg@classes", "exmap", "subg", "classes"),
        ("bpa", "george[method=kmeans,n_clusters=8]", "bpa", "classes"),
        ("exmap+bpa", "exmap", "bpa", "exmap"),
        ("exmap[method=kmeans,n_clusters=2,size=7]+dfr", "exmap[method=kmeans,n_clusters=2,size=7]", "dfr", None),
        ("exmap[representation=channels]+dfr", "exmap[representation=channels]", "dfr", None),
        ("jtt[up_weight=20]@exmap[size=7]", None, "jtt[up_weight=20]", "exmap[size=7]"),
    ],
)
def test_a_method_is_read_and_written_alike(text: str, source: str, learner: str, selection: str) -> None:
    method = parse_method(text)
    assert str(method) == text
    assert (None if method.source is None else str(method.source)) == source
    assert str(method.learner) == learner
    if selection is not None:
        assert str(method.selection) == selection
    assert parse_method(str(method)) == method


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("exmap + dfr", "exmap+dfr"),
        ("exmap[size=7,method=kmeans]+dfr", "exmap[method=kmeans,size=7]+dfr"),
        ("jtt@classes", "jtt"),
        ("exmap+rwg@exmap", "exmap+rwg"),
        ("exmap[]+dfr", "exmap+dfr"),
        ("exmap[n_clusters=null,gap=absolute]+dfr", "exmap[gap=absolute,n_clusters=null]+dfr"),
    ],
)
def test_what_goes_without_saying_is_left_out(text: str, canonical: str) -> None:
    assert str(parse_method(text)) == canonical


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("exmapp+dfr", "unknown group source 'exmapp' (did you mean 'exmap'?)"),
        ("exmap+dfrr", "unknown learner 'dfrr' (did you mean 'dfr'?)"),
        ("ermm", "unknown learner 'ermm' (did you mean 'erm'?)"),
        ("jtt@orcle", "did you mean 'oracle'?"),
        ("dfr", "dfr needs groups to fit on, got 'dfr'; write, for example, exmap+dfr"),
        ("group_dro", "group_dro needs groups to fit on"),
        ("exmap+jtt", "jtt is not fitted on groups, got 'exmap+jtt'; write jtt@exmap"),
        ("exmap+lff", "write lff@exmap"),
        ("exmap+class_balanced", "write class_balanced"),
        ("exmap+dfr@oracle", "dfr is tuned by the groups it is fitted on alone"),
        ("class_balanced@oracle", "class_balanced is tuned by classes alone"),
        ("exmap+erm", "erm is the classifier as it is"),
        ("exmap[sise=7]+dfr", "unknown option of the group source exmap 'sise' (did you mean 'size'?)"),
        ("classes[k=2]+dfr", "the group source classes has no options, got 'k'"),
        ("jtt[up_wait=2]", "did you mean 'up_weight'?"),
        ("jtt[seed=2]", "unknown option of the learner jtt 'seed'"),
        ("exmap[size]+dfr", "options are written key=value, each once, got 'size'"),
        ("exmap[size=7,size=5]+dfr", "each once"),
        ("george[representation=channels]+dfr", "unknown option of the group source george 'representation'"),
        ("jtt[up_weight=much]", "option up_weight of the learner jtt: "),
        ("", "a method is written [SOURCE+]LEARNER[@SOURCE]"),
        ("a+b+c", "a method is written"),
        ("exmap+", "a method is written"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(text: str, said: str) -> None:
    with pytest.raises(SettingsError) as error:
        parse_method(text)
    assert said in str(error.value)


@pytest.mark.parametrize("value", ["@", "*a", "%", "!!set", "{7"])
def test_a_value_that_cannot_be_read_is_refused_in_one_sentence(value: str) -> None:
    with pytest.raises(SettingsError) as error:
        parse_method(f"exmap[size={value}]+dfr")
    assert f"got 'size={value}' in 'exmap[size={value}]'" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_path_to_something_else_is_no_learner() -> None:
    with pytest.raises(SettingsError, match=r"a learner must say what it trains .* json:loads has none"):
        parse_method("exmap+json:loads")


@pytest.mark.parametrize("name", LEARNERS.names())
def test_every_learner_can_be_written_and_the_truth_stands_in_its_name(name: str) -> None:
    kind = LEARNERS[name]
    text = f"exmap+{name}" if kind.fits_groups else name
    method = parse_method(text)
    assert method.learner == Part(name)
    assert method.whole_network == (kind.part == "whole network")
    assert all(part is None or part.name != "oracle" for part in (method.source, method.selection))
    assert method_with(Part(name), Part("exmap")).learner == Part(name)


def test_the_classifier_itself_is_no_whole_network_learner() -> None:
    assert not Method(Part("erm")).whole_network


@pytest.mark.parametrize(
    ("text", "grouped", "wanted"),
    [
        ("exmap+dfr", "val", [("exmap", "val"), ("exmap", "val")]),
        ("exmap+dfr", "train", [("exmap", "train"), ("exmap", "train")]),
        ("afr@george", "train", [("george", "train")]),
        ("exmap+group_dro@oracle", "val", [("exmap", "train"), ("oracle", "val")]),
        ("jtt", "train", [("classes", "val")]),
        ("class_balanced", "val", []),
        ("erm", "val", []),
    ],
)
def test_a_method_says_which_split_is_grouped_by_what(text: str, grouped: str, wanted: list[tuple[str, str]]) -> None:
    assert parse_method(text).groupings(grouped) == [(Part(name), split) for name, split in wanted]


# Whatever can be written


LEARNER_NAMES, SOURCE_NAMES = LEARNERS.names(), SOURCES.names()
WORDS = st.from_regex(r"[a-h][a-h_.-]{0,8}", fullmatch=True).filter(lambda text: yaml.safe_load(text) == text)
NUMBERS = st.integers(0, 10**6) | st.floats(1e-12, 1e12) | st.booleans() | st.none()
OPTIONS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "exmap": {
        "n_clusters": st.integers(2, 50) | st.none(),
        "gap": st.sampled_from(["relative", "absolute"]),
        "scope": st.sampled_from(["local", "global"]),
        "method": st.sampled_from(["kmeans", "spectral", "umap_kmeans"]),
        "size": st.integers(1, 400) | st.none(),
    },
    "eiil": {"steps": st.integers(1, 10**6), "learning_rate": st.floats(1e-12, 1e12)},
    "dfr": {"smallest_group": st.integers(1, 100), "subsamples": st.integers(1, 100)},
    "jtt": {"up_weight": st.integers(1, 1000)},
}


@st.composite
def parts(draw: st.DrawFn, names: list[str]) -> str:
    name = draw(st.sampled_from(names))
    known = OPTIONS.get(name, {})
    chosen = draw(st.lists(st.sampled_from(sorted(known)), unique=True)) if known else []
    space = draw(st.sampled_from(["", " "]))
    inside = f",{space}".join(f"{key}={text_of(draw(known[key]))}" for key in chosen)
    return f"{name}[{inside}]" if inside else name


@st.composite
def methods(draw: st.DrawFn) -> str:
    learner = draw(parts(LEARNER_NAMES))
    kind = LEARNERS.get(learner.partition("[")[0])
    whole = kind.part == "whole network"
    source = draw(parts(SOURCE_NAMES)) if kind.fits_groups else None
    chosen = kind.tunes_groups and (whole or not kind.fits_groups)
    selection = draw(st.none() | parts(SOURCE_NAMES)) if chosen else None
    return f"{source}+" * (source is not None) + learner + f"@{selection}" * (selection is not None)


@given(methods())
def test_what_a_method_is_written_as_is_read_as_the_same_method(text: str) -> None:
    method = parse_method(text)
    again = parse_method(str(method))
    assert again == method
    assert str(again) == str(method)
    assert hash(again) == hash(method)


@given(st.lists(st.tuples(WORDS, NUMBERS | WORDS), unique_by=lambda pair: pair[0], max_size=4))
def test_a_part_is_read_as_it_is_written(options: list[tuple[str, Any]]) -> None:
    part = Part("exmap", tuple(sorted(options, key=lambda pair: pair[0])))
    assert parse_part(str(part)) == part


@given(st.lists(st.lists(st.integers(0, 99).map(str), min_size=1, max_size=3, unique=True), max_size=3))
def test_alternatives_in_braces_are_all_combinations_each_once(choices: list[list[str]]) -> None:
    text = "+".join("{" + ",".join(choice) + "}" for choice in choices)
    assert expand_methods(text) == ["+".join(each) for each in itertools.product(*choices)]
