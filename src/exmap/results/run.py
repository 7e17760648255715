"""The whole of results.json: what a run found, method by method."""

from __future__ import annotations

from html import escape
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, field_validator

from exmap.results.choice import AutoRecord
from exmap.results.measured import GroupInference, MethodResult
from exmap.results.part import Number, Part, Share
from exmap.results.trust import Trust

__all__ = ["ClusterFit", "HeatmapCheck", "HeatmapHealth", "Results", "TrainedOn"]

WEIGHTED_MEAN_IS = "test accuracy of each group, weighted by the group's frequency in the training split"


class ClusterFit(Part):
    """What one clustering says of itself."""

    samples_of: str = Field(description="Which images were clustered together: all, or class and its number.")
    n_samples: int = Field(ge=0, description="How many images.")
    n_clusters: int = Field(ge=0, description="How many clusters came out.")
    note: str = Field(description="Why so many, in words; empty where the number was given.")
    eigenvalues: tuple[float, ...] | None = Field(
        None, description="The smallest eigenvalues of the graph's Laplacian, rising; spectral clustering alone."
    )
    graph_components: int | None = Field(None, ge=1, description="Connected components of the graph of neighbours.")
    residual: float | None = Field(None, description="How far the eigenvalue iteration converged.")


class HeatmapCheck(Part):
    """What was found of the first images, one by one, before all others were explained."""

    explainer: str = Field(description="Name of the explainer, for example lrp.")
    composite: str | None = Field(None, description="The set of relevance rules; lrp alone.")
    images: int | None = Field(None, ge=0, description="Images whose sum was checked; lrp alone.")
    error: float | None = Field(
        None, ge=0, description="Largest share of the explained logit that was unaccounted for; lrp alone."
    )
    layer: str | None = Field(description="The inner layer whose channels are kept; null where none is.")


class HeatmapHealth(Part):
    """What heatmaps hold, and how many are broken."""

    images: int = Field(ge=0, description="How many there are.")
    share_not_finite: Share = Field(description="Share with NaN or infinity, which are left out of clustering.")
    share_all_zero: Share = Field(description="Share that is zero everywhere.")
    input_share_median: Number = Field(description="What the pixels hold of the explained logit, as a share; median.")
    constant_share_median: Number = Field(
        description="What biases and other constants hold of it; null where the explainer promises no sum."
    )
    conservation_error_median: Number = Field(
        description="What is unaccounted for, as a share of the largest of logit, input and constants; median."
    )
    conservation_error_p95: Number = Field(description="The same: 95 % of the heatmaps have at most this.")
    check: HeatmapCheck | None = Field(None, description="What was found of the first images; absent in old folders.")

    @field_validator("check", mode="before")
    @classmethod
    def _none_in_old_folders(cls, value: Any) -> Any:
        return value or None


class TrainedOn(Part):
    """How the classifier was trained on the machine that was found."""

    device: str = Field(description="Name of the processor or GPU, as its maker calls it.")
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = Field(description="What training computed in.")
    why: str = Field(description="Why it was this precision, as the end of a sentence.")
    threads: int = Field(ge=1, description="Threads of torch in each process.")


class Results(Part):
    """All that a run found, as results.json holds it.

    Examples
    --------
    Worst-group accuracy of a method::

        results = Results.from_json(json.loads(Path("runs/digits/results.json").read_text()))
        results.methods["exmap+dfr"].worst_group_accuracy
        results.to_frame()
    """

    format: Literal[1] = Field(1, description="Format of the file.")
    first_lines: tuple[str, ...] = Field(
        (), description="What must be read before any figure, method by method: classes that retraining makes worse."
    )
    dataset: str = Field(description="Name of the data set.")
    preset: str = Field(description="Name of the settings that the run began with.")
    seed: int = Field(ge=0, description="The run's seed.")
    grouped_split: str = Field(description="The split that was explained, grouped and retrained on: val or train.")
    skipped_images: dict[str, str] = Field(description="Images that were left out, each with the reason.")
    data_notes: tuple[str, ...] = Field(
        (), description="What was done about the data: images left out, copies, spellings, the order of the classes."
    )
    methods: dict[str, MethodResult] = Field(
        description="What was measured on the test split, by method: erm, the classifier as it is, and SOURCE+LEARNER."
    )
    group_inference: dict[str, GroupInference] = Field(
        description="How well groups follow the true ones, by source; empty where true groups are not known."
    )
    clusters: dict[str, tuple[ClusterFit, ...]] = Field(
        description="What each clustering says of itself, by source; one with global scope, one per class with local."
    )
    heatmaps: HeatmapHealth = Field(description="What the heatmaps hold, and how many are broken.")
    weighted_mean_is: str = Field(WEIGHTED_MEAN_IS, description="What weighted_mean_accuracy is, in words.")
    auto: AutoRecord | None = Field(None, description="In runs that choose their groups: the choice, and why.")
    trust: Trust | None = Field(None, description="What says whether to believe heatmaps and groups.")
    seconds: dict[str, NonNegativeFloat] = Field({}, description="Seconds by stage, and their total.")
    images_per_second: dict[str, Number] = Field(
        {}, description="Images per second of the stages that run the classifier; null for a single batch."
    )
    peak_memory_mib: NonNegativeFloat | None = Field(
        None, description="Largest resident size of any step's process, in MiB."
    )
    trained_on: TrainedOn | None = Field(
        None, description="How the classifier was trained; absent where it came trained, and in old folders."
    )

    @property
    def left_alone(self) -> str:
        """Why the repair on the chosen groups left the classifier as it was; empty where it did not, or is none."""
        repairs = [row.left_alone for name, row in self.methods.items() if name.startswith("auto+")]
        return "" if "" in repairs else next(iter(repairs), "")

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} {row.worst_group_accuracy:.1%}" for name, row in self.methods.items())
        said = "".join(f"{line}\n" for line in self.first_lines)
        return f"{said}Results({self.dataset}, seed {self.seed}; worst group: {shown or 'no method'})"

    __str__ = __repr__

    def to_frame(self) -> Any:
        """Return a pandas DataFrame, a row per method, with accuracies as shares.

        Its columns are the worst-group accuracy, its standard deviation over repeats, the worst group, mean and
        weighted mean accuracy, the number of repeats, and the labels that groups were inferred and tuned by.
        """
        import pandas as pd

        rows = [
            {
                "method": name,
                "worst_group_accuracy": row.worst_group_accuracy,
                "std": row.std,
                "worst_group": row.worst_group,
                "mean_accuracy": row.mean_accuracy,
                "weighted_mean_accuracy": row.weighted_mean_accuracy,
                "repeats": row.repeats,
                "labels_used": _labels_of(row),
            }
            for name, row in self.methods.items()
        ]
        return pd.DataFrame(rows)

    def _repr_html_(self) -> str:
        titles = ("method", "worst group", "mean", "labels used")
        rows = [
            (name, f"{row.worst_group_accuracy:.1%}", f"{row.mean_accuracy:.1%}", _labels_of(row))
            for name, row in self.methods.items()
        ]
        head = "".join(f"<th>{title}</th>" for title in titles)
        body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        said = "".join(f"<p><strong>{escape(line)}</strong></p>" for line in self.first_lines)
        caption = escape(f"{self.dataset}, seed {self.seed}: accuracy on the test split")
        return f"{said}<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _labels_of(row: MethodResult) -> str:
    """Return the labels of every step but evaluation, each once."""
    used = dict.fromkeys(label for step, labels in row.labels_used.items() if step != "evaluation" for label in labels)
    return ", ".join(used)
