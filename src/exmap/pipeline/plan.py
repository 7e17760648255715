"""The first steps of every graph: the data, the classifier, its heatmaps and what it says of the test split."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import nn

from exmap.data import Task
from exmap.model import build_model, initial_model, load_weights
from exmap.pipeline import files
from exmap.pipeline.disk import digest_of_file
from exmap.pipeline.extraction import in_shards
from exmap.pipeline.facts import load_task, save_task
from exmap.pipeline.graph import DATA, Graph, Step, Work, seed_of
from exmap.pipeline.provenance import identity_part, options_in_use, setting
from exmap.pipeline.steps import explain_by_shards, explain_share, outputs_share, train_share
from exmap.pipeline.trained_on import forget_training, training_here
from exmap.records import Groups, Outputs
from exmap.registry import EXPLAINERS
from exmap.runtime import in_processes
from exmap.settings import Settings

__all__ = ["TEST", "TRAIN", "Plan", "explained_name"]

TRAIN, TEST = "train", "test"


def explained_name(split: str) -> str:
    """Return the name of the step that explains a split."""
    return f"explain-{split}"


class Plan:
    """The steps of a run, added with all that they need.

    Parameters
    ----------
    settings : Settings
    task : Task or None
        For labels and true groups; images are not read. None where the graph is only looked at.
    inputs : mapping of str to str
        Digests of the files that the data were read from.
    explainer, clusterer : object, optional
        In the place of those that the settings name.
    start : torch.nn.Module, optional
        What whole networks are trained from; by default the classifier as its own training began.
    earlier : mapping of str to Groups, optional
        The chosen groups of the round before, by split; by default those of the run folder ``groups.earlier``.
    """

    def __init__(
        self,
        settings: Settings,
        task: Task | None,
        inputs: Mapping[str, str],
        *,
        explainer: Any = None,
        clusterer: Any = None,
        start: nn.Module | None = None,
        earlier: Mapping[str, Groups] | None = None,
    ) -> None:
        self.settings, self.task, self.split = settings, task, settings.groups.split
        self.explainer, self.clusterer, self.start, self.earlier = explainer, clusterer, start, earlier
        self.tree = identity_part(settings)
        self.steps: dict[str, Step] = {}
        self._data(inputs)
        self._train()
        self.explained = self.explain(self.split)
        self._test()

    @property
    def cross_fitted(self) -> bool:
        """Whether what is fitted to some of the grouped images is measured on the others."""
        return self.task is not None and self.task.cross_fitted

    def images_of(self, split: str) -> str:
        """Return what a split is called where people read it: with one labelled set there is none to speak of."""
        data = self.settings.data
        if not data.one_set:
            return f"the {split} split"
        return "the second set" if split == TEST and data.test is not None else "the images"

    def graph(self) -> Graph:
        """Return the steps that were added."""
        return Graph(self.steps.values())

    def add(self, name: str, stage: str, title: str, make: Callable[[Work], Any], **more: Any) -> str:
        """Add a step once, and return its name; the arguments are those of :class:`~exmap.pipeline.graph.Step`."""
        more["needs"] = tuple(dict.fromkeys(more.get("needs", ())))
        self.steps.setdefault(name, Step(name, stage, title, make, **more))
        return name

    def settings_of(self, *names: str) -> dict[str, Any]:
        """Return sections, or values as ``section.key``, of the settings that decide what is computed."""
        return {name: setting(self.tree, name) for name in names}

    def most_images(self, name: str, *splits: str) -> dict[str, Any]:
        """Return the setting `name`, where it allows fewer images than a split has; elsewhere it decides nothing."""
        found = self.settings_of(name)
        if self.task is None or all(len(self.task.split(split)) <= found[name] for split in splits):
            return {}
        return found

    def _data(self, inputs: Mapping[str, str]) -> None:
        self.add(
            DATA,
            "data",
            "data",
            lambda work: work.task,
            save=lambda _, task, folder: save_task(task, folder),
            load=lambda _, folder: load_task(folder),
            settings={**self.settings_of("data", "images"), "inputs": dict(inputs)},
        )

    def _train(self) -> None:
        settings = self.settings

        def make(work: Work) -> None:
            task, model = work.task, self.begin(work)
            training = settings.train
            if settings.model.trained:
                training = training.model_copy(update={"epochs": 0})
            share = partial(
                train_share,
                train=task.train,
                val=task.val,
                settings=training,
                seed=seed_of(work, "train"),
                folder=work.folder,
                listen=work.listen,
            )
            trained_on = training_here(model, task.train, training, settings.runtime, work.folder)
            runtime = settings.runtime.model_copy(update={"precision": trained_on.precision})
            work.measured |= in_processes(runtime, share, model)
            forget_training(work.folder)
            if training.epochs:
                work.measured["trained_on"] = trained_on.model_dump()

        self.add(
            TRAIN,
            "train",
            "classifier" if settings.train.epochs else "classifier (taken as it is)",
            make,
            load=lambda _, folder: self.network(folder),
            needs=(DATA,),
            settings=self.training,
            shared=True,
            images=True,
        )

    @cached_property
    def training(self) -> dict[str, Any]:
        """All that a training depends on beside the data: settings, and the content of a file of weights."""
        weights = self.settings.model.weights
        given: dict[str, Any] = {} if weights is None else {"weights": digest_of_file(weights)}
        if self.settings.model.trained:
            given["trained"] = True
        return {**self.settings_of("seed", "model", "train", "runtime"), **given}

    def begin(self, work: Work) -> nn.Module:
        """Return what a training of all weights starts from."""
        if self.start is not None:
            return self.start
        return initial_model(self.settings.model, work.task.n_classes, seed=seed_of(work, "model"))

    def network(self, folder: Path | None = None) -> Any:
        """Return the classifier, with the weights in a folder, in evaluation mode."""
        assert self.task is not None
        model = build_model(self.settings.model, self.task.n_classes, seed=0)
        if folder is not None:
            load_weights(model, folder / "model.safetensors")
        return model.eval()

    def explain(self, split: str) -> str:
        """Add the step that explains a split, and return its name."""

        def make(work: Work) -> Any:
            if in_shards(work.runtime):
                measured, whole = explain_by_shards(
                    work[TRAIN],
                    work.task.split(split),
                    self.settings.explain,
                    work.runtime,
                    explainer=self.explainer,
                    folder=work.folder,
                    listen=work.listen,
                )
                work.measured |= measured
                return whole if work.folder is None else None
            share = partial(  # the split in it: no frozen record may be launched with
                explain_share,
                split=work.task.split(split),
                settings=self.settings.explain,
                explainer=self.explainer,
                folder=work.folder,
                listen=work.listen,
            )
            measured, found = in_processes(work.runtime, share, work[TRAIN])
            work.measured |= measured
            return found

        return self.add(
            explained_name(split),
            "explain",
            f"heatmaps of {self.images_of(split)}",
            make,
            load=lambda work, folder: files.load_explained(work.task.split(split), folder),
            needs=(DATA, TRAIN),
            settings={
                **self.settings_of("explain"),
                "options": options_in_use(EXPLAINERS, self.settings.explain.explainer, self.settings.explain.options),
            },
            shared=True,
            images=True,
        )

    def _test(self) -> None:
        same = self.cross_fitted

        def computed(work: Work) -> Outputs:
            if same:
                found: Outputs = work[self.explained].outputs
                return found
            if in_shards(work.runtime):
                test, folder = work.task.test, work.folder
                _, whole = explain_by_shards(work[TRAIN], test, None, work.runtime, folder=folder, listen=work.listen)
                return whole.outputs
            share = partial(outputs_share, split=work.task.test, move=work.folder is not None, listen=work.listen)
            return in_processes(work.runtime, share, work[TRAIN])

        def make(work: Work) -> Outputs | None:
            found = computed(work)
            if work.folder is None:
                return found
            if len(found.logits) == len(work.task.test):  # the other processes of a run have none
                files.save_outputs(found, work.folder)
            return None

        self.add(
            TEST,
            "explain",
            f"outputs of {self.images_of(TEST)}",
            make,
            load=lambda work, folder: files.load_outputs(folder, len(work.task.test)),
            needs=(DATA, TRAIN, *([self.explained] if same else [])),
            shared=not same,
            images=not same,
        )
