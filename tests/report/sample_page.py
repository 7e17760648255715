"""A report page of made-up images for tests: two classes, three groups, and names that would do harm unescaped."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from exmap.records import Heatmaps
from exmap.report.cards import ClusterCard, Comparison, Interval, Sample, Strategy
from exmap.report.choice_card import ChoiceCard
from exmap.report.page import Page
from exmap.report.points import Points
from exmap.report.sprites import heat_sheet, heat_tiles, picture_sheet, picture_tiles
from exmap.report.trust_card import TrustCard
from exmap.results import (
    AutoRecord,
    ClassFinding,
    ClusterFit,
    DataCurvePoint,
    GradientAgreement,
    LastLayerVerdict,
    Reliance,
    Rerun,
    ScoredGrouping,
    Trust,
)

HOSTILE = "<img src=x onerror=alert(1)>.png"
BREAKS_OUT = "</script><script>alert(2)</script><!-- \u2028"
SIZES = (120, 30, 150)  # of the groups
GROUPS = ("class cat / cluster 0", "class cat / cluster 1", "class dog / cluster 0")


def sample_page(*, hostile: bool = False, with_pictures: bool = True, **changes: Any) -> Page:
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(3), SIZES)
    n = len(group)
    label = (group == 2).astype(np.int64)
    wrong = (group == 1) & (np.arange(n) % 2 == 0)
    predicted = np.where(wrong, 1 - label, label)
    centres = np.array([[0.0, 0.0], [8.0, 0.0], [4.0, 6.0]])
    places = (centres[group] + rng.normal(0, 0.6, (n, 2))).astype(np.float32)
    images = rng.random((n, 3, 8, 8)).astype(np.float32)
    maps = rng.normal(0, 0.4, (n, 3, 8, 8)).astype(np.float32)
    ids = [f"val/{i}.png" for i in range(n)]
    classes, truths = ["cat", "dog"], ["cat, red", "cat, blue", "dog, red"]
    names = list(GROUPS)
    if hostile:
        ids = [f"{i} {HOSTILE}" for i in range(n)]
        classes = ["cat", BREAKS_OUT]
        truths[0] = HOSTILE
        names[2] = f"class {BREAKS_OUT} / cluster 0"
    strategies = [
        Strategy(
            g,
            names[g],
            classes[int(g == 2)],
            SIZES[g],
            SIZES[g] / 150,
            Interval(before, before - 0.04, min(before + 0.04, 1)),
            Interval(0.95, 0.9, 0.99),
            g,
            *(
                [Sample(int(i), ids[i], classes[predicted[i]], int(i)) for i in rows[:4]]
                for rows in (
                    np.flatnonzero(group == g),
                    np.flatnonzero(group == g)[4:],
                    np.flatnonzero((group == g) & wrong),
                )
            ),
            made_of=[(truths[g], SIZES[g])],
        )
        for g, before in ((1, 0.5), (0, 1.0), (2, 0.98))
    ]
    page = Page(
        title="exmap report: pets, seed 0",
        headline=f"Class {classes[0]} splits into 2 groups of heatmaps: on 30 of its 150 images half are right.",
        remarks=(),
        comparisons=[
            Comparison(f"Worst group: {truths[0]}", Interval(0.52, 0.47, 0.6), Interval(0.88, 0.8, 0.93)),
            Comparison("All test images", Interval(0.9, 0.88, 0.92), Interval(0.94, 0.92, 0.95)),
        ],
        labels_used={"training": ["class labels"], "groups": ["class labels"], "evaluation": ["true groups"]},
        split="validation",
        class_names=classes,
        truth_names=truths,
        strategies=strategies,
        points=Points(places, group, label, predicted, label, group, np.arange(n), ids, n, "UMAP"),
        pictures=picture_sheet(picture_tiles(images)) if with_pictures else None,
        heats=heat_sheet(heat_tiles(maps)),
        means=heat_sheet(heat_tiles(maps[:3])),
        clusterings=[ClusterCard("All classes together", sample_fit(n), "relative", 0.21)],
        trust=TrustCard(sample_maps(rng.random(n), 1e-6 * rng.random(n), zero=np.arange(n) == 0), sample_trust()),
        provenance=[("seed", "0"), ("torch", "2.4")],
        settings="seed: 0\n",
        seconds={"train": 100.0, "explain": 7.25},
        command="exmap run digits --seed 0",
        grouping="f" * 64,
    )
    return replace(page, **changes)


def as_it_is(page: Page) -> Page:
    """Return a page of the same before anything was retrained."""
    return replace(
        page,
        points=replace(page.points, repaired=np.full(len(page.points.repaired), -1)),
        comparisons=[replace(row, after=None) for row in page.comparisons],
        strategies=[replace(strategy, after=None) for strategy in page.strategies],
    )


def sample_fit(n_samples: int) -> ClusterFit:
    return ClusterFit(
        samples_of="all",
        n_samples=n_samples,
        n_clusters=2,
        note="2 clusters: ...",
        eigenvalues=(0, 0.001, 0.02, 0.03),
        graph_components=1,
    )


def sample_maps(
    shares: np.ndarray | None, errors: np.ndarray, *, finite: bool = True, zero: np.ndarray | None = None
) -> Heatmaps:
    """Return heatmaps of one pixel of which only this is known: what they hold of the logit, and what is missing."""
    n = len(errors)
    return Heatmaps(
        np.zeros((n, 1, 1, 1), dtype=np.float32),
        np.zeros(n, dtype=np.int64),
        errors.astype(np.float32),
        np.full(n, finite),
        np.zeros(n, dtype=np.bool_) if zero is None else zero,
        None if shares is None else shares.astype(np.float32),
    )


def sample_trust(**changes: Any) -> Trust:
    fields: dict[str, Any] = {
        "images": 300,
        "not_finite": 0,
        "all_zero": 1,
        "explained_by": "lrp with symmetric_gamma, of the predicted class",
        "is_gradient": False,
        "input_share": None,
        "conservation_error": None,
        "rerun_share": 0.8,
        "reruns": (Rerun(images=240, groups=3, ari=0.97), Rerun(images=240, groups=3, ari=1)),
        "gradient": GradientAgreement(images=300, ari=0.55, own_ari=0.99),
    }
    return Trust(**(fields | changes))


def sample_choice(*, hostile: bool = False, found: bool = True) -> ChoiceCard:
    """Return what a choice of groups says: a shortcut in the first of three classes, or in none."""
    worst = Comparison(f"Worst group: {HOSTILE if hostile else 'cat, red'}", Interval(0.5, 0.4, 0.6), Interval(0.9))
    return ChoiceCard(sample_record(hostile=hostile, found=found), [worst] if found else ())


def sample_record(*, hostile: bool = False, found: bool = True) -> AutoRecord:
    name, why = (BREAKS_OUT, HOSTILE) if hostile else ("dog", "Its heatmaps form no cluster that stands apart.")
    cat = ClassFinding(
        found=found,
        p_value=0.00001 if found else 0.2,
        effect=0.64,
        effect_low=0.48,
        images=30,
        conductance=0.001,
        candidate="exmap[size=3,scope=local,gap=relative]",
        why="20 of 30 images in a cluster that stands apart are classified wrong, 3 of the other 120.",
    )
    return AutoRecord(
        chosen="exmap[size=3,scope=local,gap=relative]",
        runner_up="exmap[size=3,scope=global,n_clusters=2]",
        confidence=0.8,
        judged_on="held-out halves",
        reliance=Reliance(classifier=1.3, chosen=0.2),
        candidates=(
            grouping("exmap[size=3,scope=local,gap=relative]", 3, -0.2, 1.0, also=("exmap[size=7]",)),
            grouping("exmap[size=3,scope=global,n_clusters=2]", 4, -0.5, 0.4),
            grouping("classes", 2, -1.1, 0.0),
            grouping("error_set", 4, -0.1, 0.3, eligible=False),
        ),
        shortcut={
            "cat": cat,
            name: ClassFinding.nothing(False, why),
            "cow": ClassFinding.nothing(None, "not tested"),
        },
        repair=LastLayerVerdict(
            last_layer_suffices=True, before=0.5, after=0.9, group="a", images=20, why="It is right in 18 of 20."
        ),
        data_curve=(point(30, 1, 0.5, 0.1), point(150, 7, 0.7, 0.04), point(300, 15, 0.8, 0.02)),
        repaired=found,
        why="exmap[size=3,scope=local,gap=relative] was chosen of 4 groupings.",
        remarks=("The choice is uncertain.",),
    )


def grouping(
    name: str, groups: int, score: float, like_chosen: float, *, also: tuple[str, ...] = (), eligible: bool = True
) -> ScoredGrouping:
    return ScoredGrouping(name=name, also=also, groups=groups, score=score, like_chosen=like_chosen, eligible=eligible)


def point(images: int, smallest_group: float, worst: float, spread: float) -> DataCurvePoint:
    return DataCurvePoint(images=images, smallest_group=smallest_group, worst_group_accuracy=worst, spread=spread)
