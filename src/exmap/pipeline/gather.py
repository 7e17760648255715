"""Gather what a chain has made into an analysis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from exmap.analysis import Analysis, GroupsBySource
from exmap.data.missing import MissingImages
from exmap.groups import OracleGroups
from exmap.groups.source import TRUE_LABELS
from exmap.pipeline.outcome import TRUST, described_name
from exmap.pipeline.plan import TEST, TRAIN
from exmap.records import Groups
from exmap.results import Results
from exmap.trusted import under_this_rule

if TYPE_CHECKING:
    from exmap.pipeline.chain import Chain
    from exmap.pipeline.runner import Runner, StepWork

__all__ = ["gathered"]


def gathered(
    work: StepWork, runner: Runner, chain: Chain, *, made_by: Mapping[str, str], results: Results | None, grouping: str
) -> Analysis:
    """Return all that was made as an analysis; nothing is made for it.

    Parameters
    ----------
    work : StepWork
        Whose records are asked for.
    runner : Runner
    chain : Chain
    made_by, results, grouping
        As in :class:`~exmap.analysis.Analysis`.
    """
    settings, task = runner.settings, work.task
    split = task.split(settings.groups.split)
    oracle = None
    if split.truth is not None:
        truth = split.true_groups()
        oracle = Groups(truth.index, truth.names, OracleGroups.name, (TRUE_LABELS,))
    images = split.images
    inferred: dict[str, Groups] = {
        source: work[step] for source, step in chain.groups.items() if runner.is_finished(step)
    }
    described = {source: described_name(source) for source in inferred}
    return Analysis(
        settings,
        task,
        work[chain.explained],
        work[TEST],
        GroupsBySource({source: found for source, found in inferred.items() if TRUE_LABELS not in found.labels_used}),
        network=under_this_rule(lambda: work[TRAIN]),
        oracle=oracle,
        fits={name: fit for step in chain.fits if runner.is_finished(step) for name, fit in work[step].items()},
        results=results,
        trust=work[TRUST] if runner.is_finished(TRUST) else None,
        descriptions={
            source: work[step]
            for source, step in described.items()
            if step in runner.graph and runner.is_finished(step)
        },
        made_by=made_by,
        grouping=grouping,
        no_images=f"the data are not at hand: they {images.why}" if isinstance(images, MissingImages) else "",
    )
