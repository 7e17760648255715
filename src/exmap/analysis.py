"""What came of explaining a classifier on a split: explained images, groups by source, fits by method, results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from exmap.auto import AUTO, REPAIRED_BY
from exmap.cluster import embed
from exmap.data import Split, Task
from exmap.data.given import as_split
from exmap.data.missing import first_images_or_noise
from exmap.errors import DataError, unknown_name
from exmap.evaluation.before_after import Comparison, compare_predictions
from exmap.groups import EDITED, ExMapGroups
from exmap.model import collect_outputs, find_last_layer, replace_head
from exmap.records import Explained, Groups, IntArray, Listener, Outputs, silent
from exmap.results import ClassHarm, Findings, RepairTrial, Results, StrategyDescription, Trust
from exmap.retrain import Head
from exmap.runtime import child_seed, generator
from exmap.settings import Settings

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Analysis", "Fit", "GroupsBySource", "reported_groups"]


@dataclass(frozen=True, eq=False, repr=False)
class Fit:
    """What came of fitting a method: a repaired classifier, and what it says of the test images.

    Attributes
    ----------
    predicted : ndarray of int64, shape (R, N)
        Predicted class of each test image by each of R repeats.
    heads : tuple of Head
        The last layer of every repeat, for learners of the last layer.
    network : torch.nn.Module or None
        The whole network, for learners of that.
    notes : tuple of str
        What a reader should know.
    epoch : int or None
        The epoch that was kept of a whole network.
    left_alone : str
        Why the classifier was left as it is; empty where it was not.
    harm : tuple of ClassHarm
        Classes that retraining makes worse, and those without an image to retrain on.
    first_line : str
        What must be read before any figure: which classes these are, and what was done; empty where there are none.
    seconds : float
        Spent on the fit.
    repairs : tuple of RepairTrial
        Where a repair was chosen among several: all of them, the cheapest first.
    """

    predicted: IntArray
    heads: tuple[Head, ...] = ()
    network: nn.Module | None = None
    notes: tuple[str, ...] = ()
    epoch: int | None = None
    left_alone: str = ""
    harm: tuple[ClassHarm, ...] = ()
    first_line: str = ""
    seconds: float = 0.0
    repairs: tuple[RepairTrial, ...] = ()

    def repaired(self, model: nn.Module, split: Split) -> nn.Module:
        """Return the repaired classifier; of several repeats the first.

        Parameters
        ----------
        model : torch.nn.Module
            The classifier as it was; stays as it is.
        split : Split
            Some of whose images a model is run on, to see where its last layer is.
        """
        if self.network is not None:
            return self.network
        if self.left_alone or not self.heads:
            return model
        last = find_last_layer(model, first_images_or_noise(split))
        return replace_head(model, last, self.heads[0].weight, self.heads[0].bias)

    def __repr__(self) -> str:
        kind = f"{len(self.heads)} last layers" if self.heads else "whole network"
        said = f"{self.first_line} " if self.first_line else ""
        return f"{said}Fit({kind}, {self.predicted.shape[1]:,} test images)"


class GroupsBySource(dict[str, Groups]):
    """Groups by the name of their source."""

    def to_frame(self) -> Any:
        """Return a pandas DataFrame, a row per group of each source: source, name, class, part and number of images."""
        import pandas as pd

        return pd.concat([found.to_frame().assign(source=source) for source, found in self.items()], ignore_index=True)


@dataclass(frozen=True, eq=False, repr=False)
class Analysis:
    """A classifier explained on some images, and all that came of it.

    Attributes
    ----------
    settings : Settings
    task : Task
        Labels and ids of all splits; images where they are at hand (`no_images` says why they are not).
    explained : Explained
        The split that was explained and grouped.
    test : Outputs
        What the classifier says of the test split.
    groups : GroupsBySource
        Of the explained split, by the name of their source. The true groups are not among them.
    oracle : Groups or None
        The true groups of the explained split, where they are known: for showing them beside the others.
    fits : mapping of str to Fit
        By method, for example ``exmap+dfr``.
    results : Results or None
        None before evaluation.
    trust : Trust or None
        How far heatmaps and groups can be trusted.
    descriptions : mapping of str to tuple of StrategyDescription
        How the images of each group differ from the others of their class, by the source of the groups.
    network : callable
        Returns the classifier that was explained.
    made_by : mapping of str to str
        Versions, commit and machine.
    grouping : str
        Identity of the clustering: what edits of the groups refer to.
    no_images : str
        Why images are not at hand; empty where they are.
    explainer : object or None
        What explained in place of the explainer that the settings name.
    """

    settings: Settings
    task: Task
    explained: Explained
    test: Outputs
    groups: GroupsBySource
    network: Callable[[], nn.Module]
    oracle: Groups | None = None
    fits: Mapping[str, Fit] = field(default_factory=dict)
    results: Results | None = None
    trust: Trust | None = None
    descriptions: Mapping[str, tuple[StrategyDescription, ...]] = field(default_factory=dict)
    made_by: Mapping[str, str] = field(default_factory=dict)
    grouping: str = ""
    no_images: str = ""
    explainer: Any = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", GroupsBySource(self.groups))

    @property
    def grouped(self) -> Split:
        """The split that was explained and grouped, with its images where they are at hand."""
        return self.task.split(self.explained.split)

    @property
    def pseudo_groups(self) -> Groups:
        """The pseudo-groups of ExMap."""
        return self.groups[ExMapGroups.name]

    def method_of(self, source: str) -> str | None:
        """Return the method that was given a source's groups, to fit on or to choose by; None where there is none.

        For the chosen groups it is the repair that was chosen among several, if one was.
        """
        if source == AUTO and REPAIRED_BY in self.fits:
            return REPAIRED_BY
        return next((name for name in self.fits if source in _sources_in(name)), None)

    @property
    def method(self) -> str | None:
        """The method that repairs the classifier by ExMap's groups; None before retraining."""
        return self.method_of(ExMapGroups.name) or next(iter(self.fits), None)

    @property
    def last_word(self) -> str | None:
        """The method whose repaired classifier counts: that on edited groups, else on chosen ones, else on ExMap's."""
        found = (self.method_of(source) for source in (EDITED, AUTO, ExMapGroups.name))
        return next((name for name in found if name is not None), self.method)

    @cached_property
    def coordinates(self) -> NDArray[np.float32]:
        """The heatmaps in the plane, shape (N, 2); NaN where a heatmap is not finite."""
        maps = self.explained.maps()
        plane = np.full((len(maps), 2), np.nan, dtype=np.float32)
        plane[maps.finite] = embed(maps.flat()[maps.finite], seed=child_seed(self.settings.seed, "embedding"))
        return plane

    def fit(self, method: str | None = None) -> Fit:
        """Return the fit of a method, by default of :attr:`last_word`.

        Raises
        ------
        DataError
            If nothing was fitted, or this method was not.
        """
        name = method or self.last_word
        if name is None:
            raise DataError("nothing was retrained in this analysis; bring it as far as retraining first")
        if name not in self.fits:
            raise DataError(unknown_name("method", name, self.fits))
        return self.fits[name]

    def repair(self, method: str | None = None) -> nn.Module:
        """Return the repaired classifier: a module of the same class as the explained one, which stays as it is.

        If the test for a shortcut left the classifier alone, the classifier itself is returned.

        Parameters
        ----------
        method : str, optional
            A key of `fits`; by default :attr:`last_word`.
        """
        return self.fit(method).repaired(self.network(), self.grouped)

    def findings(self) -> Findings:
        """Return the verdict and its evidence, as findings.json holds them.

        Raises
        ------
        DataError
            If no test for a shortcut was made.
        """
        from exmap.report.findings import findings_of

        return findings_of(self)

    def compare(self, model: nn.Module, images: Any, groups: Groups | None = None) -> Comparison:
        """Compare the explained classifier with another one on other labelled images.

        Parameters
        ----------
        model : torch.nn.Module
            The other one, for example the repaired classifier.
        images : Split, data set, DataLoader or (images, labels)
            As :func:`exmap.analyze` takes them, preferably images that nothing was fitted to.
        groups : Groups, optional
            Groups of these images to compare by. By default their true groups, or their classes if they have none.

        Raises
        ------
        DataError
            For images or a model that do not fit the classes.
        """
        split = as_split(images, name="test", class_names=self.explained.class_names)
        index, names = reported_groups(split) if groups is None else (groups.index, groups.names)
        predicted = [collect_outputs(each, split).predicted for each in (self.network(), model)]
        rng = generator(self.settings.seed, "compare")
        return compare_predictions(predicted[0], predicted[1], split.labels, index, names, rng=rng)

    def report(self, path: str | Path, *, listen: Listener = silent) -> Path:
        """Write the report page: one self-contained HTML file.

        Parameters
        ----------
        path : path
        listen : Listener
        """
        from exmap.report.compose import write_page

        write_page(self, Path(path), listen=listen)
        return Path(path)

    def to_frame(self) -> Any:
        """Return a pandas DataFrame, a row per explained image: id, class, prediction, and group by source."""
        import pandas as pd

        explained, names = self.explained, np.array([*self.explained.class_names], dtype=object)
        columns: dict[str, Any] = {
            "id": explained.ids,
            "class": names[explained.labels],
            "predicted": explained.predicted_names,
            "correct": explained.correct,
        }
        for source, groups in self.groups.items():
            columns[f"group ({source})"] = np.array([*groups.names, "unassigned"], dtype=object)[groups.index]
        return pd.DataFrame(columns)

    def __repr__(self) -> str:
        of = "" if self.task.cross_fitted else f" of the {self.explained.split} split"
        images, sources = f"{len(self.explained):,} images{of}", ", ".join(self.groups)
        return f"Analysis({self.task.name}, {images}, groups by {sources}; {len(self.fits)} fits)"

    def __str__(self) -> str:
        """Return what was found, as the report begins."""
        from exmap.report.outcome import accuracy_by_group, headline, remarks

        before = accuracy_by_group(self, self.explained.predicted, "before")
        return "\n".join([headline(self, before), *remarks(self), repr(self)])

    def _repr_html_(self) -> str:
        from exmap.report.notebook import analysis_html

        return analysis_html(self)


def _sources_in(method: str) -> tuple[str, str]:
    """Return the sources that a method names, before ``+`` and after ``@``, without their options."""
    before, _, after = method.rpartition("+")
    return before.partition("[")[0], after.partition("@")[2].partition("[")[0]


def reported_groups(split: Split) -> tuple[IntArray, tuple[str, ...]]:
    """Return the groups that results are reported by, and their names: the true ones, or classes without those."""
    return (split.labels, split.class_names) if split.truth is None else (split.truth.index, split.truth.names)
