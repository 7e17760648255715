from __future__ import annotations

import pytest

from exmap.bench.methods import Method, Part, parse_method
from exmap.errors import SettingsError
from exmap.retrain import LEARNERS


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
        ("exmap[representation=channels,size=7]+dfr", "representation=channels clusters none, got"),
        ("", "a method is written [SOURCE+]LEARNER[@SOURCE]"),
        ("a+b+c", "a method is written"),
        ("exmap+", "a method is written"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(text: str, said: str) -> None:
    with pytest.raises(SettingsError) as error:
        parse_method(text)
    assert said in str(error.value)


@pytest.mark.parametrize("name", sorted(LEARNERS))
def test_every_learner_can_be_written_and_the_truth_stands_in_its_name(name: str) -> None:
    kind = LEARNERS[name]
    text = f"exmap+{name}" if kind.fits_groups else name
    method = parse_method(text)
    assert method.learner == Part(name)
    assert method.whole_network == (kind.part == "whole network")
    assert all(part is None or part.name != "oracle" for part in (method.source, method.selection))


def test_the_classifier_itself_is_no_whole_network_learner() -> None:
    assert not Method(Part("erm")).whole_network
