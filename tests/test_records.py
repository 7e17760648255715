from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exmap.errors import DataError
from exmap.records import Explained, Groups, GroupTable, Heatmaps, Outputs, Progress, silent


def heatmaps(n: int = 4, **changes: np.ndarray) -> Heatmaps:
    fields = {
        "values": np.arange(n * 12, dtype=np.float32).reshape(n, 3, 2, 2),
        "target": np.zeros(n, dtype=np.int64),
        "conservation_error": np.arange(n, dtype=np.float32),
        "finite": np.ones(n, dtype=bool),
        "zero": np.zeros(n, dtype=bool),
    }
    return Heatmaps(**{**fields, **changes})


def table(accuracy: list[float], count: list[int], share: list[float] | None = None) -> GroupTable:
    values = np.array(accuracy)
    names = tuple(f"g{i}" for i in range(len(accuracy)))
    train_share = None if share is None else np.array(share)
    return GroupTable(names, values, np.array(count), values - 0.1, values + 0.1, train_share)


def test_outputs_predict_the_largest_logit_of_three_classes() -> None:
    logits = np.array([[0, 2, 1], [3, 2, 1], [-3, -2, -1]], dtype=np.float32)
    assert Outputs(np.zeros((3, 5), dtype=np.float32), logits).predicted.tolist() == [1, 0, 2]


def test_outputs_of_two_lengths_are_refused_with_both() -> None:
    with pytest.raises(DataError) as caught:
        Outputs(np.zeros((2, 5), dtype=np.float32), np.zeros((3, 4), dtype=np.float32))
    assert str(caught.value) == "the arrays of outputs must have one length, got {'features': 2, 'logits': 3}"


def test_records_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        heatmaps().target = np.ones(4)  # type: ignore[misc]


def test_heatmaps_of_a_wrong_shape_or_length_are_refused() -> None:
    with pytest.raises(DataError, match=r"heatmaps must have shape \(N, C, h, w\), got \(4, 12\)"):
        heatmaps(values=np.zeros((4, 12), dtype=np.float32))
    with pytest.raises(DataError, match=r"arrays of heatmaps must have one length, got .*'zero': 5"):
        heatmaps(zero=np.zeros(5, dtype=bool))


def test_heatmaps_flatten_one_vector_per_image() -> None:
    maps = heatmaps(4)
    assert len(maps) == 4
    assert maps.flat().shape == (4, 12)
    assert np.array_equal(maps.flat()[2], maps.values[2].ravel())


def test_the_health_of_heatmaps_leaves_maps_that_are_not_finite_out_of_the_quantiles() -> None:
    error = np.array([0.0, 1.0, 2.0, np.nan], dtype=np.float32)
    finite, share = np.array([True, True, True, False]), np.array([0.25, 0.75, 1.25, 9.0], dtype=np.float32)
    zero = np.array([True, False, False, False])
    health = heatmaps(conservation_error=error, finite=finite, zero=zero, input_share=share).health()
    assert health == {
        "images": 4.0,
        "share_not_finite": 0.25,
        "share_all_zero": 0.25,
        "input_share_median": 0.75,
        "constant_share_median": 0.25,
        "conservation_error_median": 1.0,
        "conservation_error_p95": pytest.approx(1.9),
    }


def test_the_health_of_no_or_no_finite_heatmaps_has_nan_quantiles() -> None:
    assert np.isnan(heatmaps(2, finite=np.zeros(2, dtype=bool)).health()["conservation_error_median"])
    empty = heatmaps(0).health()
    assert (empty["images"], empty["share_not_finite"], empty["share_all_zero"]) == (0, 0, 0)


def test_what_constants_hold_is_not_known_without_a_sum_or_input_shares() -> None:
    promising_no_sum = heatmaps(
        conservation_error=np.full(4, np.nan, dtype=np.float32), input_share=np.full(4, 0.5, dtype=np.float32)
    ).health()
    assert promising_no_sum["input_share_median"] == 0.5
    assert np.isnan(promising_no_sum["constant_share_median"])
    assert np.isnan(heatmaps().health()["input_share_median"])  # of an older version
    assert np.isnan(heatmaps().health()["constant_share_median"])


def test_input_shares_and_channels_have_one_row_per_heatmap() -> None:
    for name, array in (("input_share", np.zeros(3)), ("channels", np.zeros((5, 2)))):
        with pytest.raises(DataError, match=f"arrays of heatmaps must have one length, got .*'{name}': {len(array)}"):
            heatmaps(**{name: array.astype(np.float32)})


def test_groups_count_their_samples_and_print_the_unassigned() -> None:
    groups = Groups(np.array([0, 2, 2, -1, 0, -1]), ("a", "b", "c"), "exmap", ("class labels",))
    assert groups.counts().tolist() == [2, 0, 2]
    assert len(groups) == 6
    assert str(groups).splitlines() == [
        "exmap: 3 groups of 6 samples",
        "  a, n = 2",
        "  b, n = 0",
        "  c, n = 2",
        "  unassigned, n = 2",
    ]


@pytest.mark.parametrize("index", [[0, 3], [-2, 1]])
def test_group_numbers_outside_the_names_are_refused(index: list[int]) -> None:
    with pytest.raises(DataError) as caught:
        Groups(np.array(index), ("a", "b", "c"), "exmap", ())
    assert str(caught.value) == (
        f"group numbers must lie in [-1, 2], got {index[0]} to {index[1]}; give one name per group"
    )


@pytest.mark.parametrize(("what", "numbers"), [("class", {"classes": (0,)}), ("part", {"parts": (0, 1, 2)})])
def test_classes_and_parts_are_one_for_each_group(what: str, numbers: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(DataError, match=f"groups must have one {what} each, got . for 2 groups"):
        Groups(np.array([0, 1]), ("a", "b"), "exmap", (), **numbers)


GROUPINGS = st.builds(
    lambda index, names, source, kind: Groups(np.array(index, dtype=kind), names, source, ("class labels",)),
    st.lists(st.integers(-1, 1), max_size=3),
    st.sampled_from([("a", "b"), ("b", "a")]),
    st.sampled_from(["exmap", "mine"]),
    st.sampled_from([np.int64, np.int32]),
)


@given(GROUPINGS, GROUPINGS)
def test_groups_are_equal_by_what_they_say_and_equal_ones_have_one_hash(one: Groups, other: Groups) -> None:
    said = [(groups.index.tolist(), groups.names, groups.source) for groups in (one, other)]
    assert (one == other) == (said[0] == said[1])
    assert one != other or hash(one) == hash(other)
    assert len({one, other}) == 2 - (one == other)


def test_groups_are_a_frame_of_a_row_each() -> None:
    groups = Groups(np.array([0, 1, 1, -1]), ("a", "b"), "exmap", (), classes=(0, 1), parts=(2, 0))
    frame = groups.to_frame()
    assert frame.to_dict("list") == {"group": ["a", "b"], "samples": [1, 2], "class": [0, 1], "part": [2, 0]}
    assert [*Groups(groups.index, groups.names, "mine", ()).to_frame()] == ["group", "samples"]


# An explained split


def explained(n: int = 4, *, maps: bool = True) -> Explained:
    logits = np.eye(3, dtype=np.float32)[np.arange(n) % 3]
    outputs = Outputs(np.arange(n * 5, dtype=np.float32).reshape(n, 5), logits)
    channels = {"channels": np.zeros((n, 2), np.float32), "input_share": np.ones(n, np.float32)}
    ids = tuple(f"val/{number}" for number in range(n))
    return Explained(
        "val", ids, np.zeros(n, np.int64), ("a", "b", "c"), outputs, heatmaps(n, **channels) if maps else None
    )


def test_an_explained_split_says_what_the_classifier_does() -> None:
    split = explained()
    assert split.predicted.tolist() == [0, 1, 2, 0]
    assert split.correct.tolist() == [True, False, False, True]
    assert split.features is split.outputs.features
    assert len(split) == 4


def test_some_images_of_an_explained_split_keep_all_but_what_else_was_given() -> None:
    some = explained().with_given(choice=1).rows(np.array([3, 1]))
    assert (some.ids, some.given, some.split) == (("val/3", "val/1"), {}, "val")
    assert some.predicted.tolist() == [0, 1]
    assert some.features[:, 0].tolist() == [15, 5]
    maps = some.maps()
    assert maps.values.shape == (2, 3, 2, 2)
    assert maps.conservation_error.tolist() == [3, 1]
    assert maps.channels is not None
    assert len(maps.channels) == 2
    assert explained(maps=False).rows(np.array([0])).heatmaps is None


def test_what_is_given_is_added_and_the_split_stays_as_it_is() -> None:
    split = explained()
    one = split.with_given(choice=1)
    assert one.with_given(twins=2).given == {"choice": 1, "twins": 2}
    assert (one.given, split.given) == ({"choice": 1}, {})


def test_a_split_without_heatmaps_says_so_and_one_of_two_lengths_is_refused() -> None:
    with pytest.raises(DataError, match="split val has no heatmaps, which are needed here; explain it first"):
        explained(maps=False).maps()
    with pytest.raises(DataError, match=r"the arrays of split val must have one length, got .*'ids': 4, 'labels': 3"):
        dataclasses.replace(explained(), labels=np.zeros(3, np.int64))


# Tables


def test_a_table_names_its_worst_group_and_its_means() -> None:
    found = table([0.5, 0.9, 1.0], [10, 80, 10], [0.1, 0.2, 0.7])
    assert (found.worst, found.worst_group) == (0.5, "g0")
    assert found.mean == pytest.approx((5 + 72 + 10) / 100)
    assert found.weighted_mean == pytest.approx(0.05 + 0.18 + 0.7)


def test_an_empty_group_is_nan_and_counts_for_nothing() -> None:
    found = table([np.nan, 0.9, 0.8], [0, 30, 10], [0.5, 0.25, 0.25])
    assert (found.worst, found.worst_group) == (0.8, "g2")
    assert found.mean == pytest.approx(35 / 40)
    assert found.weighted_mean == pytest.approx(0.85)
    assert "nan" in str(found)


def test_a_table_without_samples_or_training_shares_is_nan_and_not_zero() -> None:
    empty = table([np.nan, np.nan], [0, 0], [0.5, 0.5])
    assert np.isnan([empty.worst, empty.mean, empty.weighted_mean]).all()
    assert empty.worst_group == ""
    assert np.isnan(table([0.5], [3]).weighted_mean)


def test_a_table_prints_one_line_per_group_and_a_summary() -> None:
    lines = str(table([0.5, 1.0], [10, 30])).splitlines()
    assert len(lines) == 4
    assert lines[1].split() == ["g0", "50.0%", "40.0%-", "60.0%", "10"]
    assert lines[-1] == "worst group 50.0% (g0), mean 87.5%"


def test_a_table_of_two_lengths_is_refused() -> None:
    with pytest.raises(DataError, match="arrays of a group table must have one length"):
        GroupTable(("a",), np.zeros(2), np.ones(2, dtype=np.int64), np.zeros(2), np.zeros(2))


def test_the_silent_listener_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    silent(Progress("train", 1, 2))
    assert capsys.readouterr() == ("", "")


def test_tables_in_a_notebook_hold_every_group_and_escape_its_name() -> None:
    name = "<script>alert(1)</script> & co"
    table = GroupTable(
        (name, "empty"), np.array([0.5, np.nan]), np.array([1200, 0]), np.array([0.4, np.nan]), np.array([0.6, np.nan])
    )
    shown = table._repr_html_()
    cells = "&lt;script&gt;alert(1)&lt;/script&gt; &amp; co"
    assert f"<caption>worst group 50.0% ({cells}), mean 50.0%</caption>" in shown
    assert "40.0% to 60.0%" in shown
    assert ">1,200</td>" in shown
    assert "none to none" in shown
    groups = Groups(np.array([0, 0, 1, -1]), (name, "b"), "exmap", ("class labels",))
    shown += groups._repr_html_()
    assert "exmap: 2 groups of 4 samples; labels used: class labels" in shown
    assert "<td>unassigned</td>" in shown
    assert "<script" not in shown
    assert shown.count("<tr>") == shown.count("</tr>") == 7
