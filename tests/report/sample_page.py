"""A report page of made-up images for tests: two classes, three strategies, and names that would do harm unescaped."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from exmap.report.page import Comparison, Fit, Interval, Page, Points, Sample, Strategy, Trust
from exmap.report.sprites import heat_sheet, heat_tiles, picture_sheet, picture_tiles

HOSTILE = "<img src=x onerror=alert(1)>.png"
BREAKS_OUT = "</script><script>alert(2)</script><!-- \u2028"
SIZES = (120, 30, 150)  # of the strategies
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
        headline=f"Class {classes[0]} splits into 2 strategies: on 30 of its 150 images it is right half the time.",
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
        fits=[
            Fit("All classes together", n, 2, "2 clusters: ...", "relative", np.array([0, 0.001, 0.02, 0.03]), 1, 0.21)
        ],
        trust=Trust(rng.random(n).astype(np.float32), n, 0, 1, [(240, 3, 0.97), (240, 3, 1.0)], 0.8, (300, 0.55, 0.99)),
        provenance=[("seed", "0"), ("torch", "2.4")],
        settings="seed: 0\n",
        seconds={"train": 100.0, "explain": 7.25},
        command="exmap run digits --seed 0",
        grouping="f" * 64,
    )
    return replace(page, **changes)
