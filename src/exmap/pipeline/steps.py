"""What the steps compute: functions of records, the same for a run, a bench and an analysis in a notebook."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from joblib import Parallel, cpu_count, delayed
from numpy.typing import NDArray
from torch import nn

from exmap.analysis import Fit
from exmap.auto import AUTO, AutoChoice, find_candidates
from exmap.data import Split, Task
from exmap.data.missing import first_images_or_noise
from exmap.errors import DataError
from exmap.explain import explain_split, reduce_heatmaps
from exmap.groups import ClassGroups, GroupSource
from exmap.methods import Method, Part
from exmap.model import LastLayer, collect_outputs, find_last_layer, fit, save_weights
from exmap.model.batches import is_first
from exmap.model.training import FileCheckpoint
from exmap.pipeline.disk import write_json
from exmap.pipeline.files import heatmap_file, save_explained
from exmap.records import Explained, Groups, IntArray, Listener, Outputs, Progress, silent
from exmap.registry import LEARNERS
from exmap.retrain import SUBG, Head, Selection
from exmap.retrain.balance import balanced_size
from exmap.retrain.learner import own_head
from exmap.runtime import child_seed, generator
from exmap.settings import ExplainSettings, Settings, TrainSettings

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = [
    "chosen_groups",
    "explain_share",
    "fit_last_layer",
    "fit_whole_network",
    "infer_groups",
    "repair_network",
    "train_share",
]

WORTH_PROCESSES = 1_000_000  # feature values; below, a last layer is fitted more quickly than processes start
MOST_EPOCHS = 100  # of a repair of the whole network


class Speed:
    """A listener that passes progress on, and measures how many images a second that was.

    Parameters
    ----------
    listen : Listener
    """

    def __init__(self, listen: Listener) -> None:
        self.listen = listen
        self._heard: list[tuple[float, int]] = []  # first and last: when, and how many images were done

    def __call__(self, progress: Progress) -> None:
        """Note the progress, and pass it on."""
        self._heard = [*self._heard[:1], (time.monotonic(), progress.done)]
        self.listen(progress)

    @property
    def images_per_second(self) -> float:
        """Images per second between the first and the last batch; NaN for fewer than two."""
        if len(self._heard) < 2:
            return math.nan
        (began, first), (ended, last) = self._heard
        return round((last - first) / max(ended - began, 1e-9), 1)


def train_share(
    fabric: Fabric,
    model: nn.Module,
    train: Split,
    val: Split,
    settings: TrainSettings,
    *,
    seed: int,
    folder: Path | None,
    listen: Listener,
) -> dict[str, float]:
    """Train in one of the run's processes; the first writes model.safetensors (the selected epoch) and history.json.

    state.safetensors is there while it trains, and an interrupted training continues from it.
    """
    if folder is None:
        raise ValueError("a classifier is trained into a folder; give one that is trained")
    first = is_first(fabric)
    checkpoint = FileCheckpoint(folder / "state.safetensors")
    speed = Speed(listen if first else silent)
    (history,), (weights,) = fit(
        model, train, val, settings, fabric=fabric, seed=seed, checkpoint=checkpoint, listen=speed
    )
    if first:
        model.load_state_dict(weights)
        write_json(folder / "history.json", history)
        save_weights(model, folder / "model.safetensors")
        checkpoint.path.unlink(missing_ok=True)
    return {"images_per_second": speed.images_per_second}


def explain_share(
    fabric: Fabric,
    model: nn.Module,
    split: Split,
    settings: ExplainSettings,
    *,
    explainer: Any = None,
    folder: Path | None,
    listen: Listener,
) -> tuple[dict[str, float], Explained | None]:
    """Explain a split in one of the run's processes; the first writes, batch by batch, or returns what was found."""
    first = is_first(fabric)
    if folder is not None:  # a model that was given stays where it is
        model = model.to(fabric.device if fabric.device.type != "mps" else "cpu")  # mps has no float64
    speed = Speed(listen if first else silent)
    allocate = None if folder is None else heatmap_file(folder)
    maps, outputs = explain_split(
        model, split, settings, explainer=explainer, allocate=allocate, fabric=fabric, listen=speed
    )
    measured = {"images_per_second": speed.images_per_second}
    if not first:
        return measured, None
    if folder is not None:
        save_explained(maps, outputs, split.ids, folder)
        return measured, None
    return measured, Explained(split.name, split.ids, split.labels, split.class_names, outputs, maps)


def outputs_share(fabric: Fabric, model: nn.Module, split: Split, *, move: bool, listen: Listener) -> Outputs:
    """Collect what a classifier says of a split in one of the run's processes; the first has all of it."""
    if move:
        model = model.to(fabric.device if fabric.device.type != "mps" else "cpu")
    return collect_outputs(model, split, fabric=fabric, listen=listen if is_first(fabric) else silent)


def infer_groups(source: GroupSource, explained: Explained, given: Mapping[str, Any], *, seed: int) -> Groups:
    """Return the groups that a source infers; its heatmaps are reduced first where it has a `size`.

    Parameters
    ----------
    source : GroupSource
    explained : Explained
    given : mapping
        What the source needs beyond, by name.
    seed : int
    """
    size = getattr(source, "size", None)
    if size is not None and explained.heatmaps is not None:
        values = explained.heatmaps.values
        small = reduce_heatmaps(values, size).reshape(len(values), values.shape[1], size, size)
        explained = replace(explained, heatmaps=replace(explained.heatmaps, values=small))
    return source.infer(explained.with_given(**given), seed=seed)


def chosen_groups(
    choice: AutoChoice, explained: Explained, grouped: str, judged: str, *, seed: int, listen: Listener
) -> Groups:
    """Return the chosen grouping of a split.

    Parameters
    ----------
    choice : AutoChoice
    explained : Explained
        The split: the grouped one, the judged one, or another, whose candidates are then made.
    grouped, judged : str
        Names of the splits that the choice was made for and judged on.

    Raises
    ------
    DataError
        If nothing of the kind can be made of the other split.
    """
    if explained.split == grouped:
        return choice.groups
    if explained.split == judged:
        return replace(choice.judged, source=AUTO)
    name = choice.record.chosen or ClassGroups.name
    known = find_candidates(explained, seed=child_seed(seed, AUTO, explained.split), listen=listen).names()
    if name.startswith("exchange["):  # made of images that were asked: of others, the next best is
        name = next((each.name for each in choice.record.candidates if each.eligible and each.name in known), name)
    if name not in known:
        raise DataError(
            f"the chosen grouping {name} cannot be made of the {explained.split} split, whose candidates are "
            f"{', '.join(sorted(known))}; give one of those as a source of its own"
        )
    return replace(known[name].groups, source=AUTO)


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
    """
    start = time.perf_counter()
    last, reason = _last_layer(model, grouped)
    why = left_alone or reason
    own = None if last is None else own_head(last)
    if why:
        heads = [_untouched(own, grouped.n_classes, why)]
        predicted = np.stack([head.predict((tested or features).features) for head in heads])
        return Fit(predicted, tuple(heads), None, heads[0].notes, left_alone=why, seconds=_since(start))
    repeats = settings.retrain.repeats
    learners = [_learner(method, settings, child_seed(settings.seed, "retrain", n)) for n in range(repeats)]
    parts = _parts(settings, grouped.labels, groups) if tested is None else []
    asked = [(learner, rows) for rows in (None, *parts) for learner in learners]
    # Processes, not threads: a fit is many small steps of Python.
    workers = cpu_count() if features.features.size > WORTH_PROCESSES else 1
    fits = Parallel(min(workers, len(asked)), return_as="generator")(
        delayed(_fit_head)(learner, features.features, grouped.labels, groups, rows, grouped.n_classes, own)
        for learner, rows in asked
    )
    made = []
    for head in fits:
        made.append(head)
        listen(Progress("retrain", len(made), len(asked), "heads", str(method)))
    heads = made[:repeats]
    if tested is None:
        predicted = np.empty((repeats, len(grouped)), dtype=np.int64)
        for number, rows in enumerate(parts, start=1):
            for repeat, head in enumerate(made[number * repeats : (number + 1) * repeats]):
                predicted[repeat, rows] = head.predict(features.features[rows])
    else:
        predicted = np.stack([head.predict(tested.features) for head in heads])
    return Fit(predicted, tuple(heads), None, heads[0].notes, seconds=_since(start))


def _since(start: float) -> float:
    return round(time.perf_counter() - start, 3)


def _parts(settings: Settings, labels: IntArray, groups: Groups | None) -> list[IntArray]:
    """Return the rows of each part of the images, all groups spread evenly over the parts."""
    rng, folds = generator(settings.seed, "folds"), settings.evaluate.folds
    kinds = labels if groups is None else labels * (len(groups.names) + 1) + groups.index
    order = np.lexsort((rng.permutation(len(kinds)), kinds))
    turn = np.empty(len(kinds), dtype=np.int64)
    turn[order] = np.arange(len(kinds)) % folds
    return [np.flatnonzero(turn == number) for number in range(folds)]


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
        groups = None if groups is None else replace(groups, index=groups.index[kept], clusters=None)
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
    model: nn.Module,
    task: Task,
    groups: Groups | None,
    selections: Mapping[Part, Groups],
    *,
    listen: Listener,
) -> dict[str, Fit]:
    """Train a whole network once, and choose an epoch for each method.

    Parameters
    ----------
    methods : sequence of Method
        They differ in their selection alone.
    settings : Settings
    model : torch.nn.Module
        As training begins with it.
    task : Task
    groups : Groups or None
        Of the training split, for learners that fit them.
    selections : mapping of Part to Groups
        Groups of the validation split, by the source that a method names.
    listen : Listener
    """
    start = time.perf_counter()
    learner = _learner(methods[0], settings, child_seed(settings.seed, "learner", methods[0].learner.name))
    train, val = (replace(split, truth=None) for split in (task.train, task.val))
    wanted = [Selection(val, selections[method.selection]) for method in methods if method.selection is not None]
    networks = learner.fit_choices(model, train, groups, wanted, listen=listen)
    return {
        str(method): _network_fit(learner, number, network, task.test, start, listen)
        for number, (method, network) in enumerate(zip(methods, networks, strict=True))
    }


def _network_fit(learner: Any, number: int, network: nn.Module, test: Split, start: float, listen: Listener) -> Fit:
    """Return what came of one choice from a training that began at `start`."""
    epoch = max((row["epoch"] for row in learner.history_[number] if row["kept"]), default=None)
    predicted = collect_outputs(network, test, listen=listen).predicted[None]
    seconds = round(time.perf_counter() - start, 3)
    return Fit(predicted, (), network, tuple(learner.notes_), epoch=epoch, seconds=seconds)


def repair_network(
    settings: Settings, model: nn.Module, task: Task, groups: Groups, selection: Groups, *, listen: Listener
) -> Fit:
    """Train the whole network on balanced groups of the training split (SUBG), for as many steps as it was trained.

    Parameters
    ----------
    settings : Settings
    model : torch.nn.Module
        As training begins with it.
    task : Task
    groups, selection : Groups
        Of the training and of the validation split.
    listen : Listener
    """
    start = time.perf_counter()
    learner = SUBG(train=settings.train, runtime=settings.runtime, seed=child_seed(settings.seed, "repair"))
    shown = balanced_size(groups.counts(), learner.smallest_group) * len(groups.names)
    learner.epochs = min(math.ceil(settings.train.epochs * len(task.train) / shown), MOST_EPOCHS)  # as many steps
    train, val = (replace(split, truth=None) for split in (task.train, task.val))
    network = learner.fit(model, train, groups, selection=Selection(val, selection), listen=listen)
    return _network_fit(learner, 0, network, task.test, start, listen)
