"""All that is asked of a classifier about changed images, in one pass: what it follows, whom that harms, what warns.

And which images look mislabelled, which is asked of the images as well.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import nn

from exmap.auto.against import reactions
from exmap.auto.exchange import Exchanges, measure_exchanges
from exmap.auto.mislabelled import doubtful_labels
from exmap.auto.properties import image_properties
from exmap.auto.warning import property_warnings
from exmap.data import Split
from exmap.exchange import Looks, Predict, exchangeable
from exmap.records import Explained, Listener, silent
from exmap.runtime import child_seed, generator

__all__ = ["experiment"]

MOST_WARNED = 1_000  # images whose properties are read


def experiment(
    split: Split,
    explained: Explained,
    model: nn.Module | Predict,
    *,
    seed: int = 0,
    listen: Listener = silent,
) -> Exchanges:
    """Exchange properties between images, and ask the classifier again.

    Parameters
    ----------
    split : Split
        The explained split, with its images.
    explained : Explained
    model : torch.nn.Module, or callable
        The classifier that was explained, or a function from its input to logits.
    seed : int
    listen : Listener

    Returns
    -------
    Exchanges
        Empty where images are smaller than 8 pixels, or have other than 1 or 3 channels.
    """
    if not exchangeable(split.images.shape):
        return Exchanges()
    looks = Looks.of(split, model)
    found = measure_exchanges(looks, explained, seed=child_seed(seed, "exchange"), listen=listen)
    doubtful = doubtful_labels(explained, pixels=looks.reduced, seed=child_seed(seed, "mislabelled"), listen=listen)
    found = replace(found, mislabelled=doubtful)
    if not found.measured:
        return found
    reacting = reactions(looks, found, explained, seed=child_seed(seed, "intervene"), listen=listen)
    found = replace(found, reactions=reacting)
    return replace(found, warnings=_warnings(looks, split, explained, seed))


def _warnings(looks: Looks, split: Split, explained: Explained, seed: int) -> tuple[str, ...]:
    """Return what warns of shortcuts that hardly any image goes against, a sentence each."""
    rows = np.sort(generator(seed, "warning", "rows").permutation(len(split))[:MOST_WARNED]).astype(np.int64)
    part = explained.rows(rows)
    found = property_warnings(
        image_properties(split.rows(rows)),
        part.labels,
        part.outputs.predicted,
        pixels=lambda some: looks.pixels(rows[some]),
        predict=looks.predict,
        heatmaps=part.maps().values if part.heatmaps is not None else None,
        seed=child_seed(seed, "warning"),
    )
    return tuple(each.why for each in found if each.warned)
