"""Composites as data: which rule goes to convolutions, linear layers, the first of them, softmax and ReLU.

zennit's composites keep their names and meaning.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from exmap.errors import SettingsError, unknown_name
from exmap.explain.maps import AlphaBeta, Box, Epsilon, Flat, Gamma, MapRule

__all__ = ["COMPOSITES", "DEFAULT", "DEFAULT_ATTENTION", "Composite", "composite_names", "make_composite"]

DEFAULT = "symmetric_gamma"  # for networks of convolutions: the paper's
DEFAULT_ATTENTION = "symmetric_gamma"  # for networks that weigh tokens by a softmax


@dataclass(frozen=True)
class Composite:
    """Which rule goes on which kind of operation; what it does not name is as in :data:`RULES`.

    Attributes
    ----------
    name : str
    convolution, linear : MapRule
    first : MapRule or None
        For the first convolution or linear layer, in place of the above.
    softmax : "held" or "gradient"
        Attention probabilities take no relevance (Ali et al., 2022), or by their gradient (Achtibat et al., 2024).
    relu : "gradient", "guided", "deconvnet" or "smooth"
    times_input : bool
        False for composites that change gradients and whose maps are such a gradient.
    """

    name: str
    convolution: MapRule = Epsilon()
    linear: MapRule = Epsilon()
    first: MapRule | None = None
    softmax: Literal["held", "gradient"] = "held"
    relu: Literal["gradient", "guided", "deconvnet", "smooth"] = "gradient"
    times_input: bool = True

    @property
    def exact(self) -> bool:
        """Whether relevance adds up to the logit: no rule has a stabiliser."""
        return self.first is None and all(
            isinstance(kind, (Epsilon, Gamma)) for kind in (self.convolution, self.linear)
        )

    @property
    def bounded(self) -> bool:
        """Whether the first rule needs pixels in [0, 1]."""
        return isinstance(self.first, Box)


COMPOSITES: dict[str, Composite] = {
    composite.name: composite
    for composite in (
        Composite("symmetric_gamma", convolution=Gamma(4.0)),
        Composite("epsilon"),
        Composite("attention_gamma", convolution=Gamma(0.25), linear=Gamma(0.05)),
        Composite("attnlrp", softmax="gradient"),
        Composite("attnlrp_gamma", convolution=Gamma(0.25), linear=Gamma(0.05), softmax="gradient"),
        Composite("epsilon_gamma_box", convolution=Gamma(0.25), first=Box()),
        Composite("epsilon_plus", convolution=AlphaBeta(1, 0)),
        Composite("epsilon_plus_flat", convolution=AlphaBeta(1, 0), first=Flat()),
        Composite("epsilon_alpha2_beta1", convolution=AlphaBeta(2, 1)),
        Composite("epsilon_alpha2_beta1_flat", convolution=AlphaBeta(2, 1), first=Flat()),
        Composite("excitation_backprop", convolution=AlphaBeta(1, 0), linear=AlphaBeta(1, 0)),
        Composite("guided_backprop", relu="guided", times_input=False),
        Composite("deconvnet", relu="deconvnet", times_input=False),
        Composite("beta_smooth", relu="smooth", times_input=False),
    )
}


def composite_names() -> list[str]:
    """Return the names of all composites."""
    return sorted(COMPOSITES)


def make_composite(name: str, *, gamma: float | None = None) -> Composite:
    """Return a composite by name.

    Parameters
    ----------
    name : str
    gamma : float, optional
        For ``symmetric_gamma`` alone: another strength than 4.

    Raises
    ------
    SettingsError
        For an unknown name.
    """
    if name not in COMPOSITES:
        raise SettingsError(unknown_name("composite", name, composite_names()))
    composite = COMPOSITES[name]
    if gamma is not None and name == "symmetric_gamma":
        return replace(composite, convolution=Gamma(gamma) if gamma else Epsilon())
    return composite
