from __future__ import annotations

import csv
import io
import re
from typing import Any

import pytest

from exmap.bench.paper import PAPER
from exmap.bench.tables import Row, cells_to_csv, summarise, to_csv
from exmap.bench.typeset import to_latex, to_markdown
from exmap.errors import DataError
from exmap.evaluation import Difference

NASTY = "50% & $x$ #1_{a}~b^c\\d|e<f>`g` *h* [i](j)\nk"


def cell(method: str = "exmap+dfr", seed: int = 0, worst: float | None = 0.5, **changes: Any) -> dict[str, Any]:
    return {
        "format": 1,
        "dataset": "dominoes",
        "method": method,
        "label": None,
        "seed": seed,
        "status": "done",
        "reason": None,
        "worst_group_accuracy": worst,
        "worst_group": "coat, digit 1",
        "mean_accuracy": 0.9,
        "weighted_mean_accuracy": 0.95,
        "std": 0.012,
        "repeats": 5,
        "labels_used": {
            "training": ["class labels"],
            "fitting": ["exmap groups"],
            "selection": [],
            "evaluation": ["true groups"],
        },
        "seconds": {"shared": 340.0, "groups": 1.0, "fit": 19.0},
        **changes,
    }


def failed(method: str = "exmap+dfr", seed: int = 0, reason: str = "too few images") -> dict[str, Any]:
    return {
        "dataset": "dominoes",
        "method": method,
        "label": None,
        "seed": seed,
        "status": "failed",
        "reason": reason,
    }


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def table_of(markdown: str, number: int = 0) -> list[list[str]]:
    tables = [block for block in markdown.split("\n\n") if block.startswith("| method")]
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in tables[number].splitlines()]
    assert len({len(line) for line in lines}) == 1
    return [[text.strip() for text in line] for line in lines]


def column(markdown: str, name: str) -> list[str]:
    header, _, *lines = table_of(markdown)
    return [line[header.index(name)] for line in lines]


def one(*cells: dict[str, Any], **given: Any) -> Row:
    (row,) = summarise(cells, **given)
    return row


def test_mean_and_sample_deviation_are_taken_over_seeds() -> None:
    row = one(
        cell(seed=0, worst=0.5, seconds={"shared": 100.0, "groups": 1.0, "fit": 2.0}),
        cell(seed=1, worst=0.7, seconds={"shared": 900.0, "groups": 2.0, "fit": 5.0}),
        cell(seed=4, worst=0.9, seconds={"shared": 0.0, "groups": 3.0, "fit": 8.0}),
    )
    assert row.worst == pytest.approx((0.7, 0.2))
    assert row.mean == pytest.approx((0.9, 0.0))
    assert row.weighted_mean == pytest.approx((0.95, 0.0))
    assert row.seconds == pytest.approx((7.0, 4.0))
    assert row.seeds == (0, 1, 4)
    assert row.worst_by_seed == {0: 0.5, 1: 0.7, 4: 0.9}
    assert (row.fitting, row.selection) == ("exmap groups", "none")


def test_one_seed_has_no_deviation() -> None:
    row = one(cell())
    assert row.worst == (0.5, None)
    assert column(to_markdown([row], reference={}), "worst group") == ["50.0"]
    assert read(to_csv([row]))[0]["worst_group_std"] == ""


@pytest.mark.parametrize("nothing", [None, float("nan")])
def test_values_that_are_missing_are_left_out(nothing: float | None) -> None:
    row = one(
        cell(seed=0, worst=nothing, weighted_mean_accuracy=nothing, gaps={"background": nothing}),
        cell(seed=1, worst=0.5, weighted_mean_accuracy=nothing, gaps={"background": nothing}),
    )
    assert row.worst == (0.5, None)
    assert row.weighted_mean is None
    assert row.gaps == {"background": None}
    assert row.worst_by_seed == {0: None, 1: 0.5}
    assert column(to_markdown([row], reference={}), "weighted mean") == [""]
    text = to_csv([row]) + cells_to_csv([cell(worst=nothing)]) + to_markdown([row], reference={})
    assert "nan" not in text
    assert "None" not in text


def test_groups_gaps_and_clusters_are_summarised_where_there_are_any() -> None:
    inference = {"ari": 0.5, "nmi": 0.4, "minority_precision": 0.8, "minority_recall": 0.6}
    cells = [
        cell(seed=0, gaps={"a": -0.1, "a + b": -0.2}, group_inference=inference, n_clusters=[2]),
        cell(seed=1, gaps={"a": -0.3, "a + b": -0.2}, group_inference=inference | {"ari": 0.7}, n_clusters=[2, 3]),
        cell("erm"),
    ]
    row, erm = summarise(cells)
    assert row.ari == pytest.approx((0.6, 0.1 * 2**0.5))
    assert (row.minority_precision, row.minority_recall) == ((0.8, 0.0), (0.6, 0.0))
    assert row.gaps["a"] == pytest.approx((-0.2, 0.1 * 2**0.5))
    assert row.n_clusters == {0: (2,), 1: (2, 3)}
    assert (erm.ari, erm.gaps, erm.n_clusters) == (None, {}, {})
    text = to_markdown([row, erm], reference={})
    assert table_of(text, 1) == [
        ["method", "gap: a", "gap: a + b"],
        ["---"] * 3,
        ["exmap+dfr", "-20.0 ± 14.1", "-20.0 ± 0.0"],
        ["erm", "", ""],
    ]
    assert column(text, "groups' ARI") == ["0.600 ± 0.141", ""]
    assert column(text, "minority precision / recall") == ["0.800 ± 0.000 / 0.600 ± 0.000", ""]
    first, second = read(to_csv([row, erm]))
    assert float(first["gap: a_std"]) == pytest.approx(0.1 * 2**0.5)
    assert first["n_clusters"] == "2;2+3"
    assert second["gap: a"] == ""


def test_without_gaps_there_is_no_gap_table() -> None:
    rows = summarise([cell()])
    assert "gap" not in to_markdown(rows, reference={}).split("## ")[1]
    assert to_latex(rows, reference={}).count(r"\begin{tabular}") == 2


def test_rows_come_in_the_order_of_their_first_cell() -> None:
    cells = [
        cell("oracle+dfr"),
        cell("erm", dataset="waterbirds"),
        cell("erm"),
        cell("oracle+dfr", 1),
        cell("bpa", dataset="waterbirds"),
    ]
    rows = summarise(cells)
    keys = [("dominoes", "oracle+dfr"), ("waterbirds", "erm"), ("dominoes", "erm"), ("waterbirds", "bpa")]
    assert [(row.dataset, row.method) for row in rows] == keys
    text = to_markdown(rows, reference={})
    assert re.findall("^## (.*)$", text, re.MULTILINE) == ["Side by side", "dominoes", "waterbirds"]
    side_by_side, dominoes, _ = ([line[0] for line in table_of(text, number)] for number in range(3))
    assert side_by_side == ["method", "---", "erm"]
    assert dominoes == ["method", "---", "*oracle+dfr*", "erm"]
    assert [line["method"] for line in read(to_csv(rows))] == [method for _, method in keys]


def test_a_cell_given_twice_is_refused() -> None:
    with pytest.raises(DataError, match=r"exmap\+dfr on dominoes with seed 0 twice"):
        summarise([cell(), failed()])


def test_a_failed_cell_is_told_with_its_reason() -> None:
    cells = [cell(seed=0), failed(seed=1, reason="a | b"), failed("jtt", seed=0, reason="no\nmemory")]
    row, jtt = summarise(cells)
    assert (row.seeds, row.failed) == ((0,), {1: "a | b"})
    assert (jtt.worst, jtt.seeds, jtt.fitting) == (None, (), "")
    text = to_markdown([row, jtt], reference={})
    assert "Failed:\n\n- exmap+dfr, seed 1: a \\| b\n- jtt, seed 0: no memory\n" in text
    assert column(text, "seeds") == ["0", ""]
    assert "Failed: exmap+dfr, seed 1: a \\textbar{} b" in to_latex([row, jtt], reference={})
    lines = read(cells_to_csv(cells))
    assert [(line["status"], line["reason"]) for line in lines] == [
        ("done", ""),
        ("failed", "a | b"),
        ("failed", "no memory"),
    ]
    assert lines[1]["mean_accuracy"] == ""
    assert [line["failed"] for line in read(to_csv([row, jtt]))] == ["1", "0"]


def test_differences_are_shown_in_points_with_their_interval() -> None:
    comparisons = {
        ("dominoes", "erm"): Difference(-0.052, -0.081, -0.02, (-0.052,)),
        ("dominoes", "jtt"): Difference(-0.0001, -0.02, 0.031, (-0.0001,)),
    }
    rows = summarise([cell("erm"), cell("jtt"), cell("exmap+dfr"), cell("lff")], comparisons)
    text = to_markdown(rows, reference={"dominoes": "exmap+dfr"})
    shown = ["-5.2 [-8.1, -2.0]", "≈ +0.0 [-2.0, +3.1]", "reference", ""]
    assert column(text, "vs reference") == shown
    latex = to_latex(rows, reference={"dominoes": "exmap+dfr"})
    assert "& $-$5.2 {[}$-$8.1, $-$2.0{]} &" in latex
    assert r"$\approx$ +0.0" in latex
    lines = read(to_csv(rows))
    assert [line["within_noise"] for line in lines] == ["False", "True", "", ""]
    assert lines[0]["difference_low"] == "-0.081"


def test_the_paper_stands_beside_ours_only_where_it_has_a_figure() -> None:
    rows = summarise([cell("erm"), cell("exmap+dfr", dataset="waterbirds"), cell("jtt", dataset="waterbirds")])
    ours, theirs = (
        to_markdown([row for row in rows if row.dataset == name], reference={}) for name in ("dominoes", "waterbirds")
    )
    assert "paper" not in table_of(ours)[0]
    assert column(theirs, "paper") == ["92.5 ± 0.1 / 96.0 ± 0.3", ""]
    assert read(to_csv(rows))[1]["paper_worst_group"] == "0.925"
    assert one(cell("erm", dataset="waterbirds"), paper={}).paper is None


def test_the_paper_s_figures_are_those_it_prints() -> None:
    assert (PAPER["urbancars-bg", "george+dfr"].worst, PAPER["urbancars-bg", "george+dfr"].mean_std) == (0.691, 0.01)
    assert (PAPER["celeba", "bpa"].worst, PAPER["celeba", "bpa"].worst_std) == (0.833, None)
    assert not [key for key in PAPER if key[0] == "cmnist"]
    assert len(PAPER) == 17


def test_oracles_are_marked_and_labels_stand_for_methods() -> None:
    used = {"fitting": ["true groups"], "selection": ["true groups"]}
    row = one(cell("oracle+dfr", label="DFR, true groups", labels_used=used))
    text = to_markdown([row], reference={})
    assert row.oracle
    assert column(text, "method") == ["*DFR, true groups*"]
    assert column(text, "fit with") == ["true groups (oracle)"]
    assert r"\textit{DFR, true groups}" in to_latex([row], reference={})
    assert read(to_csv([row]))[0]["oracle"] == "True"
    assert one(cell("jtt@oracle")).oracle
    assert not one(cell("jtt@exmap")).oracle


def test_methods_of_several_data_sets_stand_side_by_side() -> None:
    cells = [
        cell("erm", worst=0.25),
        cell(worst=0.5),
        cell("exmap+subg[epochs=100]", worst=0.75, label="exmap+subg"),
        cell("a", label="one of two"),
        cell("b", label="one of two"),
        cell("erm", worst=0.125, dataset="cmnist_"),
        cell("exmap+subg[epochs=20]", worst=1.0, label="exmap+subg", dataset="cmnist_"),
        cell("a", label="one of two", dataset="cmnist_"),
        failed() | {"dataset": "cmnist_"},
        cell("exmap+dfr", worst=0.5, dataset="third"),
    ]
    near = {("dominoes", "exmap+subg[epochs=100]"): Difference(0.25, -0.1, 0.3, (0.25,))}
    rows = summarise(cells, near)
    text = to_markdown(rows, reference={"dominoes": "exmap+dfr", "cmnist_": "erm"})
    assert table_of(text) == [
        ["method", "dominoes", "cmnist\\_", "third"],
        ["---"] * 4,
        ["erm", "25.0 / 90.0", "12.5 / 90.0", ""],
        ["exmap+dfr", "50.0 / 90.0", "failed", "50.0 / 90.0"],
        ["exmap+subg", "≈ 75.0 / 90.0", "100.0 / 90.0", ""],
    ]
    assert text.index("## Side by side") < text.index("## dominoes")
    assert "noise of that of the reference, exmap+dfr or erm.\n" in text
    first, *others = to_latex(rows, reference={}).split("\\begin{table}")[1:]
    assert r"exmap+subg & $\approx$ 75.0 / 90.0 & 100.0 / 90.0 &  \\" in first
    assert len(others) == 3


def test_one_data_set_has_nothing_beside_it() -> None:
    rows = summarise([cell("erm"), cell()])
    assert "Side by side" not in to_markdown(rows, reference={})
    assert to_latex(rows, reference={}).count("\\begin{table}") == 1


def test_csv_keeps_every_digit_and_one_line_for_each_row() -> None:
    cells = [
        cell(seed=0, worst=1 / 3, dataset=NASTY, worst_group=NASTY, label='a "b", c\r\nd', gaps={"x\ny": -2 / 3}),
        cell(seed=1, worst=1 / 3, dataset=NASTY),
    ]
    for text in (to_csv(summarise(cells)), cells_to_csv(cells)):
        assert "\r" not in text
        first, *rest = read(text)
        assert len(text.splitlines()) == 2 + len(rest)
        assert first["dataset"] == NASTY.replace("\n", " ")
        assert first["label"] == 'a "b", c  d'
        assert float(first["gap: x y"]) == -2 / 3
    assert float(read(to_csv(summarise(cells)))[0]["worst_group"]) == 1 / 3
    line = read(cells_to_csv(cells))[0]
    assert (line["worst_group_accuracy"], line["std"], line["seconds_shared"]) == (repr(1 / 3), "0.012", "340.0")
    assert (line["labels_training"], line["labels_selection"]) == ("class labels", "")


def test_nothing_gives_headers_alone() -> None:
    assert to_csv([]).startswith("dataset,method,label,oracle,seeds,failed,")
    assert to_csv([]).count("\n") == cells_to_csv([]).count("\n") == 1
    assert to_markdown([], reference={}).startswith("Test accuracy in %")
    assert to_latex([], reference={}) == ""


def test_markdown_escapes_what_names_hold() -> None:
    rows = summarise([cell(dataset=NASTY, label=NASTY, gaps={NASTY: 0.1}), failed("error_set+dfr", reason=NASTY)])
    text = to_markdown(rows, reference={})
    assert column(text, "method") == [r"50% & \$x\$ \#1\_{a}\~b^c\\d\|e\<f\>\`g\` \*h\* [i\](j) k"]
    assert table_of(text, 1)[0][1].startswith(r"gap: 50% & \$x\$")
    assert "- error_set+dfr, seed 0: 50%" in text
    assert "- error_set+dfr, seed 0: 50%" in to_markdown(
        summarise([failed("error_set+dfr", reason="50%")]), reference={}
    )


def test_latex_escapes_what_names_hold_and_stays_balanced() -> None:
    cells = [
        cell("oracle+dfr", dataset=NASTY, label=NASTY, gaps={NASTY: -0.1}),
        cell("[a]", dataset=NASTY),
        failed(reason=NASTY),
    ]
    text = to_latex(summarise(cells), reference={})
    escaped = (
        r"50\% \& \$x\$ \#1\_\{a\}\textasciitilde{}b\textasciicircum{}c\textbackslash{}d\textbar{}e\textless{}f"
        r"\textgreater{}`g` {*}h{*} {[}i{]}(j) k"
    )
    assert f"\\textit{{{escaped}}} & " in text
    assert f"\\caption{{{escaped}: " in text
    assert f"gap: {escaped} \\\\" in text
    bare = re.sub(r"\\[\\&%$#_{}]", "", text)
    depth = 0
    for character in bare:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    assert bare.count("$") % 2 == 0
    assert not set("%#^~_") & set(bare)
    for name in ("table", "tabular"):
        assert text.count(f"\\begin{{{name}}}") == text.count(f"\\end{{{name}}}") > 0
    for tabular in re.findall(r"\\begin\{tabular\}\{(l+)\}\n(.*?)\\end\{tabular\}", text, re.DOTALL):
        lines = [line for line in tabular[1].splitlines() if line.endswith("\\\\")]
        assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in lines} == {len(tabular[0])}
        assert not any(line.startswith(("[", "*")) for line in lines)


def test_every_tabular_has_rules() -> None:
    text = to_latex(summarise([cell(), cell("erm", dataset="waterbirds")]), reference={})
    for rule in ("toprule", "midrule", "bottomrule"):
        assert text.count(f"\\{rule}") == text.count(r"\begin{tabular}") == 4
