"""How the steps fit methods: last layers and whole networks, and what is made of what harms a class."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from torch import nn

from exmap.analysis import Fit
from exmap.cluster.sampling import sample_images, sample_said
from exmap.data import Split, Task
from exmap.data.missing import first_images_or_noise
from exmap.errors import DataError
from exmap.methods import Method, Part
from exmap.model import LastLayer, collect_outputs, find_last_layer
from exmap.records import Groups, IntArray, Listener, Outputs, Progress
from exmap.registry import LEARNERS
from exmap.retrain import Cheapest, Head, Selection, WholeNetwork
from exmap.retrain import LastLayer as LastLayerLearner
from exmap.retrain.balance import parts_of
from exmap.retrain.batches import in_words
from exmap.retrain.harm import Verdict, judge_head
from exmap.retrain.head import finite_part
from exmap.retrain.learner import own_head
from exmap.runtime import child_seed, generator
from exmap.settings import Settings
from exmap.threads import usable_cores

__all__ = ["fit_last_layer", "fit_whole_network", "harm_of_repair", "repair_network"]

WORTH_PROCESSES = 1_000_000  # feature values; below, a last layer is fitted more quickly than processes start


def fit_last_layer(
    method: Method,
    settings: Settings,
    model: nn.Module,
    grouped: Split,
    features: Outputs,
    groups: Groups | None,
    tested: Outputs | None,
    *,
    left_alone: str = "",
    listen: Listener,
) -> Fit:
    """Fit the last layer of every repeat.

    Parameters
    ----------
    method : Method
    settings : Settings
        Number of repeats, the learner's options and the seed.
    model : torch.nn.Module
        The trained classifier; stays as it is.
    grouped : Split
        Whose labels are learned.
    features : Outputs
        Of the grouped split.
    tested : Outputs or None
        Of the test split; None where the grouped images are all there are, and parts of them are predicted by heads
        that were fitted to the others (``evaluate.folds``).
    groups : Groups or None
        Of the grouped split, for learners that take groups.
    left_alone : str
        Why the classifier is to be left as it is; a classifier without a last linear layer is left so, too.
    listen : Listener

    Notes
    -----
    Of more than ``retrain.most_images`` images a sample stands for all where heads are fitted and judged; predicted are
    all.
    """
    start = time.perf_counter()
    last, reason = _last_layer(model, grouped)
    why = left_alone or reason
    own = None if last is None else own_head(last)
    if why:
        heads = [_untouched(own, grouped.n_classes, why)]
        predicted = np.stack([head.predict((tested or features).features) for head in heads])
        return Fit(predicted, tuple(heads), None, heads[0].notes, left_alone=why, seconds=_since(start))
    drawn, said = _drawn(settings, method, grouped, features, groups, listen)
    sample = _sample(features.features, grouped.labels, groups, drawn)
    used, labels, given, left_out = finite_part(*sample, [grouped.ids[row] for row in drawn.tolist()])
    repeats = settings.retrain.repeats
    learners = [_learner(method, settings, child_seed(settings.seed, "retrain", n)) for n in range(repeats)]
    parts = []
    if tested is None:
        parts = parts_of(grouped.labels, groups, settings.evaluate.folds, generator(settings.seed, "folds"))
    left = [None, *(np.flatnonzero(np.isin(drawn, rows)) for rows in parts)]
    asked = [(learner, rows) for rows in left for learner in learners]
    if isinstance(learners[0], LastLayerLearner):
        seconds = len(asked) * learners[0].expected_seconds(used, labels, given)
        if seconds:
            note = f"{method}: all fits take about {in_words(seconds)}"
            listen(Progress("retrain", 0, len(asked), "heads", note, at_once=True))
    # Processes, not threads: a fit is many small steps of Python.
    workers = usable_cores() if sample[0].size > WORTH_PROCESSES else 1
    fits = Parallel(min(workers, len(asked)), return_as="generator")(
        delayed(_fit_head)(learner, *sample, rows, grouped.n_classes, own) for learner, rows in asked
    )
    made = []
    for head in fits:
        made.append(head)
        listen(Progress("retrain", len(made), len(asked), "heads", str(method)))
    # What retraining does to the classes is looked at once; every repeat is of the same kind.
    verdict = Verdict()
    if isinstance(learners[0], LastLayerLearner):
        verdict = judge_head(
            learners[0],
            made[0],
            used,
            labels,
            given,
            own=own,
            class_names=grouped.class_names,
            by_heart=grouped.name == "train",
        )
    made = [verdict.applied(head, own, used) for head in made]
    heads = made[:repeats]
    if tested is None:
        predicted = np.empty((repeats, len(grouped)), dtype=np.int64)
        for number, rows in enumerate(parts, start=1):
            for repeat, head in enumerate(made[number * repeats : (number + 1) * repeats]):
                predicted[repeat, rows] = head.predict(features.features[rows])
    else:
        predicted = np.stack([head.predict(tested.features) for head in heads])
    return Fit(
        predicted,
        tuple(heads),
        None,
        (*heads[0].notes, *left_out, *said),
        left_alone=verdict.left_alone,
        harm=verdict.classes,
        first_line=verdict.first_line,
        seconds=_since(start),
    )


def _drawn(
    settings: Settings, method: Method, grouped: Split, features: Outputs, groups: Groups | None, listen: Listener
) -> tuple[IntArray, tuple[str, ...]]:
    """Return the images that heads are fitted to, and the sentence that says how many were drawn, if not all were.

    Where there are too many, images without a group are not drawn.
    """
    n, most = len(grouped), settings.retrain.most_images
    if n <= most or (groups is not None and len(groups) != n):  # the latter is refused later
        return np.arange(n, dtype=np.int64), ()
    rows = np.arange(n) if groups is None else np.flatnonzero(groups.index >= 0)
    rng = generator(settings.seed, "retrain", "sample")
    drawn = rows[sample_images(grouped.labels[rows], features.predicted[rows], most, rng)]
    if len(drawn) == len(rows):
        return drawn, ()
    listen(Progress("sample", len(drawn), len(rows), note=f"for the last layers of {method}", at_once=True))
    return drawn, (sample_said(len(drawn), len(rows), "Last layers were fitted", "retrain.most_images"),)


def _sample(
    features: NDArray[np.float32], labels: IntArray, groups: Groups | None, rows: IntArray
) -> tuple[NDArray[np.float32], IntArray, Groups | None]:
    """Return some rows of arrays and groups, or these themselves where all are asked for."""
    if len(rows) == len(features):
        return features, labels, groups
    return features[rows], labels[rows], None if groups is None else _rows_of(groups, rows)


def _rows_of(groups: Groups, rows: IntArray) -> Groups:
    return replace(groups, index=groups.index[rows], clusters=None)


def _since(start: float) -> float:
    return round(time.perf_counter() - start, 3)


def _fit_head(
    learner: Any,
    features: NDArray[np.float32],
    labels: IntArray,
    groups: Groups | None,
    left_out: IntArray | None,
    n_classes: int,
    own: Head | None,
) -> Head:
    """Fit a head to all images but some."""
    if left_out is not None:
        kept = np.setdiff1d(np.arange(len(labels)), left_out)
        features, labels = features[kept], labels[kept]
        groups = None if groups is None else _rows_of(groups, kept)
    features, labels, groups, _ = finite_part(features, labels, groups)
    head: Head = learner.fit_head(features, labels, groups, n_classes=n_classes, head=own)
    return head


def _last_layer(model: nn.Module, split: Split) -> tuple[LastLayer | None, str]:
    """Return the classifier's last linear layer, or None and why it has none."""
    try:
        return find_last_layer(model, first_images_or_noise(split)), ""
    except DataError as error:
        return None, str(error)


def _untouched(own: Head | None, n_classes: int, why: str) -> Head:
    """Return the last layer of the classifier as it is; where there is none, one that leaves the logits as they are."""
    if own is not None:
        return replace(own, notes=(why,))
    return Head(np.eye(n_classes, dtype=np.float32), np.zeros(n_classes, dtype=np.float32), notes=(why,))


def _learner(method: Method, settings: Settings, seed: int) -> Any:
    """Return a learner with the options of the settings that it has, and with those of the method."""
    name = method.learner.name
    known = LEARNERS.options(name)
    options = {key: value for key, value in settings.retrain.options.items() if key in known}
    return LEARNERS.build(
        name,
        {**options, **dict(method.learner.options)},
        seed=seed,
        train=settings.train.model_copy(update={"select": "worst_class"}),
        runtime=settings.runtime,
    )


def fit_whole_network(
    methods: Sequence[Method],
    settings: Settings,
    begin: Callable[[], nn.Module],
    task: Task,
    groups: Groups | None,
    selections: Mapping[Part, Groups],
    *,
    classifier: nn.Module,
    tested: Outputs,
    listen: Listener,
) -> dict[str, Fit]:
    """Train a whole network once, and choose an epoch for each method.

    Parameters
    ----------
    methods : sequence of Method
        They differ in their selection alone.
    settings : Settings
    begin : callable
        Returns the model that the classifier's own training began with.
    task : Task
    groups : Groups or None
        Of the training split, for learners that fit them.
    selections : mapping of Part to Groups
        Groups of the validation split, by the source that a method names.
    classifier : torch.nn.Module
        The trained one, that is to be repaired; learners with ``start="classifier"`` begin with it.
    tested : Outputs
        What it says of the test split.
    listen : Listener
    """
    start = time.perf_counter()
    learner = _learner(methods[0], settings, child_seed(settings.seed, "learner", methods[0].learner.name))
    train, val = (replace(split, truth=None) for split in (task.train, task.val))
    wanted = [Selection(val, selections[method.selection]) for method in methods if method.selection is not None]
    model = classifier if getattr(learner, "start", "initial") == "classifier" else begin()
    networks = learner.fit_choices(model, train, groups, wanted, listen=listen)
    fits = [_network_fit(learner, number, network, task.test, start, listen) for number, network in enumerate(networks)]
    if wanted and isinstance(learner, WholeNetwork):
        before = collect_outputs(classifier, val, listen=listen).predicted
        pairs = zip(fits, wanted, strict=True)
        fits = [_judged(fit, learner, selection, before, tested, listen) for fit, selection in pairs]
    fits = [_last_layer_alone(fit, learner, number) for number, fit in enumerate(fits)]
    return {str(method): fit for method, fit in zip(methods, fits, strict=True)}


def _judged(
    fit: Fit, learner: WholeNetwork, selection: Selection, before: IntArray, tested: Outputs, listen: Listener
) -> Fit:
    """Return a network's fit with what it does to the classes; where that is harm, the classifier as it was."""
    assert fit.network is not None
    verdict = learner.judged(before, fit.network, selection, listen=listen)
    notes = (*filter(None, [verdict.first_line]), *fit.notes)
    fit = replace(fit, notes=notes, harm=verdict.classes, first_line=verdict.first_line)
    if not verdict.left_alone:
        return fit
    return replace(fit, predicted=tested.predicted[None], network=None, epoch=None, left_alone=verdict.left_alone)


def _network_fit(learner: Any, number: int, network: nn.Module, test: Split, start: float, listen: Listener) -> Fit:
    """Return what came of one choice from a training that began at `start`."""
    epoch = max((row["epoch"] for row in learner.history_[number] if row["kept"]), default=None)
    predicted = collect_outputs(network, test, listen=listen).predicted[None]
    tried = learner.tried_[number] if isinstance(learner, Cheapest) else ()
    notes = learner.notes_of(number) if isinstance(learner, WholeNetwork) else tuple(learner.notes_)
    return Fit(predicted, (), network, notes, epoch=epoch, seconds=_since(start), repairs=tried)


def _last_layer_alone(fit: Fit, learner: Any, number: int) -> Fit:
    """Return the fit of one choice without its network, where the last layer is all that was retrained."""
    head = learner.heads_[number] if isinstance(learner, Cheapest) else None
    return fit if head is None or fit.network is None else replace(fit, network=None, heads=(head,))


def harm_of_repair(settings: Settings) -> Any:
    """Return the option ``harm`` of :func:`repair_network`: that of the learner of the settings, where it is given."""
    return settings.retrain.options.get("harm", "keep")


def repair_network(
    settings: Settings,
    task: Task,
    groups: Groups,
    selection: Groups,
    *,
    classifier: nn.Module,
    tested: Outputs,
    listen: Listener,
) -> Fit:
    """Try repairs of more than the last layer, and keep the cheapest that suffices (:class:`~exmap.retrain.Cheapest`).

    Parameters
    ----------
    settings : Settings
    task : Task
    groups, selection : Groups
        Of the training and of the validation split.
    classifier : torch.nn.Module
        The trained one, that is to be repaired.
    tested : Outputs
        What it says of the test split.
    listen : Listener
    """
    start = time.perf_counter()
    learner = Cheapest(
        train=settings.train.model_copy(update={"select": "worst_class"}),
        runtime=settings.runtime,
        seed=child_seed(settings.seed, "repair"),
        harm=harm_of_repair(settings),
    )
    train, val = (replace(split, truth=None) for split in (task.train, task.val))
    chosen = Selection(val, selection)
    (network,) = learner.fit_choices(classifier, train, groups, [chosen], listen=listen)
    fit = _network_fit(learner, 0, network, task.test, start, listen)
    before = collect_outputs(classifier, val, listen=listen).predicted
    return _last_layer_alone(_judged(fit, learner, chosen, before, tested, listen), learner, 0)
