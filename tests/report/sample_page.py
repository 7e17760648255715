"""A report page of made-up images for tests: two classes, three strategies, and names that would do harm unescaped."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from exmap.report.page import (
    Amount,
    Choice,
    Comparison,
    Finding,
    Fit,
    Interval,
    Page,
    Points,
    Sample,
    Strategy,
    Trust,
    Weighed,
)
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
        trust=Trust(
            rng.random(n).astype(np.float32),
            1e-6 * rng.random(n).astype(np.float32),
            n,
            0,
            1,
            [(240, 3, 0.97), (240, 3, 1.0)],
            0.8,
            (300, 0.55, 0.99),
            "lrp with symmetric_gamma, of the predicted class",
        ),
        provenance=[("seed", "0"), ("torch", "2.4")],
        settings="seed: 0\n",
        seconds={"train": 100.0, "explain": 7.25},
        command="exmap run digits --seed 0",
        grouping="f" * 64,
    )
    return replace(page, **changes)


def sample_choice(*, hostile: bool = False, found: bool = True) -> Choice:
    """Return what a choice of groups says: a shortcut in the first of two classes, or in none."""
    name = BREAKS_OUT if hostile else "dog"
    apart = "20 of 30 images in a cluster that stands apart are classified wrong, 3 of the other 120."
    worst = Comparison(f"Worst group: {HOSTILE if hostile else 'cat, red'}", Interval(0.5, 0.4, 0.6), Interval(0.9))
    return Choice(
        "A shortcut was found in class cat (1 of 2 classes)." if found else "No shortcut was found.",
        [
            Finding("cat", found, 0.00001 if found else 0.2, 0.64, 0.48, apart),
            Finding(name, False, 1.0, None, None, "Its heatmaps form no cluster that stands apart."),
            Finding("cow", None, None, None, None, HOSTILE if hostile else "not tested"),
        ],
        "exmap[size=3,scope=local,gap=relative] was chosen of 4 groupings.",
        "Other images of the same kind would choose it 80% of the time.",
        [
            Weighed("exmap[size=3,scope=local,gap=relative]", ["exmap[size=7]"], 3, -0.2, 1.0, True, "chosen"),
            Weighed("exmap[size=3,scope=global,n_clusters=2]", [], 4, -0.5, 0.4, True, "runner-up"),
            Weighed("classes", [], 2, -1.1, 0.0, True),
            Weighed("error_set", [], 4, -0.1, 0.3, False),
        ],
        -1.3,
        "Retraining the last layer is enough.",
        "More labelled images are likely to help.",
        [Amount(30, 1, 0.5, 0.1), Amount(150, 7, 0.7, 0.04), Amount(300, 15, 0.8, 0.02)],
        ["The choice is uncertain."],
        [worst] if found else (),
    )
