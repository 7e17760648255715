"""Choose among groupings without group labels: by what every other grouping says of the model each one repairs.

A head that has unlearned a shortcut is as sure of an image whichever strategy's group it lies in. So each candidate's
head is fitted on one half of the images, and its *reliance* on each other candidate's groups is read off the other:
how far below its class's mean margin the worst group lies, in standard deviations of the class. The candidate with the
least mean reliance is chosen. Margins, unlike accuracies, still tell heads apart where a group has ten images and none
of them is wrong; a head's own groups have no say, for every head does well by those.

Features follow the prediction, so their clusters often hold little but the classifier's errors. Only groups of heatmaps
judge, therefore, and a grouping of features that restates the errors is not chosen, as the error set itself is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from exmap.auto.against import exchange_candidates, find_by_exchanges, verified_names
from exmap.auto.candidates import AUTO, Candidate, Candidates, find_candidates
from exmap.auto.effort import Effort
from exmap.auto.exchange import Exchanges
from exmap.auto.margins import Images, all_margins, margins_of
from exmap.auto.mislabelled import doubtful_labels, doubtful_rows, known_rows
from exmap.auto.ranking import Ranking, rank
from exmap.auto.repair import data_curve, judge_last_layer
from exmap.auto.shortcut import ShortcutTest, find_shortcuts
from exmap.cluster.sampling import sample_images, sample_said
from exmap.groups import ClassGroups
from exmap.records import Explained, Groups, Listener, Progress, silent
from exmap.results import AutoRecord, ClassFinding, Reliance, ScoredGrouping
from exmap.runtime import child_seed, generator
from exmap.settings import AutoSettings

__all__ = ["JUDGED", "AutoChoice", "choose_groups"]

FEWEST_IN_CLASS = 20  # images with a finite heatmap that a class needs for halves to be fitted and judged
UNCERTAIN = 0.5  # confidence below which a remark says so
JUDGED = "auto-judged"  # source of the chosen grouping of images that were only judged


@dataclass(frozen=True)
class AutoChoice:
    """What was chosen, and why.

    Attributes
    ----------
    groups : Groups
        The chosen grouping of the split that is retrained on, with source ``auto``; the classes where nothing was
        chosen.
    judged : Groups
        The same grouping of the images that were judged; `groups` itself where they are the same images.
    repair : bool
        Whether the last layer is to be retrained on them. False leaves the model alone.
    record : AutoRecord
        What results.json holds under ``auto``.
    """

    groups: Groups
    judged: Groups
    repair: bool
    record: AutoRecord


def choose_groups(
    explained: Explained,
    *,
    judged: Explained | None = None,
    exchanges: Exchanges | None = None,
    settings: AutoSettings | None = None,
    effort: Effort | None = None,
    seed: int = 0,
    listen: Listener = silent,
) -> AutoChoice:
    """Choose a grouping, say whether there is a shortcut at all, and whether the last layer can be repaired.

    Images that look mislabelled (:mod:`exmap.auto.mislabelled`) are left out of all of this: they are in no group, and
    the record names them. So are images without finite logits and features. Of more than ``most_images`` images a
    sample stands for all; the others are in no group, and the record says how many were drawn.

    Where a class has too few images to be halved, or the classifier is no better than chance, nothing is chosen: the
    groups are the classes, and the record's ``why`` says so.

    Parameters
    ----------
    explained : Explained
        The split that is retrained on, with heatmaps.
    judged : Explained, optional
        Other images than those, to judge heads by: needed where the model was trained on the split that is retrained
        on, for it is right there. By default halves of the one split are judged by heads of the other.
    exchanges : Exchanges, optional
        What predictions follow, measured on the images that are judged. With them a shortcut is found by experiment
        (:mod:`exmap.auto.against`), and a property's images for and against it are a grouping, too; without, by
        clusters of heatmaps that stand apart (:mod:`exmap.auto.shortcut`).
    settings : AutoSettings, optional
    effort : Effort, optional
        How many groupings, fits and draws; by default as the settings have it.
    seed : int
    listen : Listener

    Raises
    ------
    DataError
        If either split lacks heatmaps.
    """
    settings, judge = settings or AutoSettings(), judged or explained
    effort = effort or Effort.of(settings)
    doubtful = exchanges.mislabelled if exchanges is not None else None
    if doubtful is None:
        doubtful = doubtful_labels(judge, seed=child_seed(seed, "mislabelled"), listen=listen)
    kept, said = _drawn(known_rows(judge) & ~doubtful_rows(doubtful, judge), judge, settings, seed, listen)
    fitted = kept
    if judged is not None:
        fitted, also = _drawn(known_rows(explained), explained, settings, seed, listen)
        said = tuple(dict.fromkeys((*also, *said)))
    if kept.all() and fitted.all():
        return _choose(explained, judged, exchanges, settings, effort, seed, listen)
    choice = _choose(
        explained.rows(np.flatnonzero(fitted)),
        None if judged is None else judged.rows(np.flatnonzero(kept)),
        None if exchanges is None else exchanges.rows(np.flatnonzero(kept)),
        settings,
        effort,
        seed,
        listen,
    )
    remarks = (*said, *(each.why for each in doubtful), *choice.record.remarks)
    return AutoChoice(
        _spread(choice.groups, fitted),
        _spread(choice.judged, kept),
        choice.repair,
        choice.record.changed(mislabelled=doubtful, remarks=remarks),
    )


def _drawn(
    members: NDArray[np.bool_], explained: Explained, settings: AutoSettings, seed: int, listen: Listener
) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """Return which images a choice is made by, and the sentence that says how many were drawn, if not all were."""
    rows, most = np.flatnonzero(members), settings.most_images
    if len(rows) <= most:
        return members, ()
    rng = generator(seed, "auto", "sample", explained.split)
    drawn = rows[sample_images(explained.labels[rows], explained.predicted[rows], most, rng)]
    listen(Progress("sample", len(drawn), len(rows), note="for the choice of a grouping", at_once=True))
    kept = np.zeros(len(members), dtype=np.bool_)
    kept[drawn] = True
    return kept, (sample_said(len(drawn), len(rows), "The grouping was chosen", "auto.most_images"),)


def _spread(groups: Groups, members: NDArray[np.bool_]) -> Groups:
    """Return groups of some images as groups of all; the others are unassigned."""
    index = np.full(len(members), -1, dtype=np.int64)
    index[members] = groups.index
    return replace(groups, index=index, clusters=None)


def _choose(
    explained: Explained,
    judged: Explained | None,
    exchanges: Exchanges | None,
    settings: AutoSettings,
    effort: Effort,
    seed: int,
    listen: Listener,
) -> AutoChoice:
    """Choose as :func:`choose_groups` does, with all labels as they are."""
    judge = judged or explained
    if (why := _cannot_say(explained, judge, exchanges)) is not None:
        return _nothing_chosen(why, explained, judged)
    known = find_candidates(judge, seed=child_seed(seed, "judges"), effort=effort, listen=listen)
    if exchanges is not None and judged is None:
        known = replace(known, each=(*known.each, *exchange_candidates(exchanges, judge)))
    made = known
    if judged is not None:
        made = find_candidates(explained, seed=child_seed(seed, "candidates"), effort=effort, listen=listen)
    pairs = _pairs(made, known)
    margins = all_margins(
        [(candidate.name, candidate.groups) for candidate, _ in pairs],
        Images.of(explained),
        None if judged is None else Images.of(judged),
        effort=effort,
        seed=seed,
        listen=listen,
    )
    own = margins_of(judge.outputs.logits, judge.labels)
    test = (
        find_by_exchanges(exchanges, judge, settings)
        if exchanges is not None and exchanges.measured
        else find_shortcuts(known, judge, settings)
    )
    verified = verified_names(test)
    ranking = rank([seen for _, seen in pairs], judge, margins, own, verified=verified, draws=effort.draws, seed=seed)
    chosen, seen = (replace(candidate.groups, source=AUTO) for candidate in pairs[ranking.best])
    other = None if judged is None else (judged, seen)
    record = _record([candidate for candidate, _ in pairs], ranking, test, settings)
    record = record.changed(
        exchanges=exchanges.reliances if exchanges is not None else (),
        warnings=exchanges.warnings if exchanges is not None else (),
        judged_on="held-out halves" if judged is None else "the validation split",
        repair=judge_last_layer(margins[ranking.best], own, judge.labels, seen),
        data_curve=data_curve(
            explained, chosen, other, draws=effort.curve_draws, seed=child_seed(seed, "curve"), listen=listen
        ),
    )
    return AutoChoice(chosen, chosen if judged is None else replace(seen, source=JUDGED), record.repaired, record)


def _pairs(made: Candidates, known: Candidates) -> list[tuple[Candidate, Candidate]]:
    """Return the candidates that both splits have: of the images that are fitted to, and of those that are judged."""
    if made is known:
        return [(candidate, candidate) for candidate in known.each]
    names = made.names()
    return [(names[candidate.name], candidate) for candidate in known.each if candidate.name in names]


def _classes(explained: Explained, source: str) -> Groups:
    """Return the classes as groups."""
    return replace(ClassGroups().infer(explained, seed=0), source=source)


def _cannot_say(explained: Explained, judge: Explained, exchanges: Exchanges | None) -> str | None:
    """Return why no grouping can be chosen, in one sentence, or None."""
    for part in (explained, judge):
        counts = np.bincount(part.labels[part.maps().finite], minlength=len(part.class_names))
        used = np.unique(part.labels)  # a class without images is an output that no label uses
        if (fewest := int(counts[used].min())) < FEWEST_IN_CLASS:
            name = part.class_names[used[counts[used].argmin()]]
            return (
                f"Nothing can be concluded: class {name} has {fewest} images with a heatmap to judge groupings by, and "
                f"at least {FEWEST_IN_CLASS} are needed; give more labelled images."
            )
    if exchanges is not None and any(each.relied_on for each in exchanges.reliances):
        return None  # a classifier that follows a shortcut alone is at chance where the shortcut says nothing
    right = [float(np.mean(judge.correct[judge.labels == label])) for label in np.unique(judge.labels)]
    chance = 1 / len(right)
    if np.mean(right) <= chance + 2 * np.sqrt(chance * (1 - chance) / len(judge)):
        return (
            f"Nothing can be concluded: the classifier is right in {np.mean(right):.0%} of its classes' images, which "
            "is no better than chance, so its heatmaps explain nothing; train it better first."
        )
    return None


def _nothing_chosen(why: str, explained: Explained, judged: Explained | None) -> AutoChoice:
    """Return a choice that was not made: the classes as groups, and the reason."""
    record = AutoRecord(
        chosen=None,
        runner_up=None,
        confidence=None,
        judged_on=None,
        reliance=None,
        candidates=(),
        shortcut={name: ClassFinding.nothing(None, "not tested") for name in explained.class_names},
        repair=None,
        data_curve=(),
        repaired=False,
        why=why,
        remarks=(why,),
    )
    classes = _classes(explained, AUTO)
    return AutoChoice(classes, classes if judged is None else _classes(judged, JUDGED), False, record)


def _record(
    candidates: Sequence[Candidate], ranking: Ranking, test: ShortcutTest, settings: AutoSettings
) -> AutoRecord:
    """Return the record of a choice, without what was measured of the repair."""
    before, after = ranking.as_is, float(ranking.reliance[ranking.best])
    name, second = candidates[ranking.best].name, ranking.runner_up
    return AutoRecord(
        chosen=name,
        runner_up=None if second is None else candidates[second].name,
        confidence=ranking.confidence,
        judged_on=None,
        reliance=Reliance(classifier=before, chosen=after),
        candidates=tuple(
            ScoredGrouping(
                name=candidates[n].name,
                also=candidates[n].also,
                score=-float(ranking.reliance[n]),
                groups=int((candidates[n].groups.counts() > 0).sum()),
                like_chosen=float(ranking.like_best[n]),
                eligible=bool(ranking.eligible[n]),
            )
            for n in ranking.order
        ),
        shortcut=test.classes,
        repair=None,
        data_curve=(),
        repaired=test.found or not settings.only_if_found,
        why=f"{name} was chosen of {len(candidates)} groupings because {_reason(name, test)}. After retraining on it, "
        f"on held-out images, the worst groups of all others lie {after:.2f} standard deviations below their class's "
        f"mean margin, against {before:.2f} for the classifier as it is.",
        remarks=tuple(_remarks(candidates, ranking, test.found, settings)),
    )


def _reason(name: str, test: ShortcutTest) -> str:
    """State what speaks for the chosen grouping."""
    if name in verified_names(test):
        return "the experiment found a shortcut in its groups"
    return "the classifier retrained on it relies least on the groups of all others"


def _remarks(candidates: Sequence[Candidate], ranking: Ranking, found: bool, settings: AutoSettings) -> Iterator[str]:
    """Yield what to know of a choice, a sentence each."""
    if sum(candidate.representation not in ("errors", "classes") for candidate in candidates) < 2:
        yield "All clusterings gave the same grouping, so there was nothing to choose between."
    if ranking.runner_up is not None and ranking.confidence < UNCERTAIN:
        yield "The choice is uncertain: another grouping may well repair more."
    if not found and settings.only_if_found:
        yield "No shortcut was found, so the model is left alone; the grouping is shown for inspection only."
