from __future__ import annotations

import numpy as np
import pytest
import torch

from exmap.errors import DataError, NumericalError
from exmap.groups import EIILGroups, ErrorSetGroups, XRMGroups
from exmap.groups.environments import invariance_gap, scale_gradients
from exmap.records import Explained, Groups, Outputs

CLASSES = ("cat", "dog", "cow")


def explained(labels: np.ndarray, logits: np.ndarray, **given: object) -> Explained:
    """A split whose classifier has these logits, and what a source asks for."""
    outputs = Outputs(np.zeros((len(labels), 2), dtype=np.float32), logits)
    return Explained("val", tuple(map(str, range(len(labels)))), labels, CLASSES, outputs, given=given)


def eiil(labels: np.ndarray, logits: np.ndarray, steps: int, seed: int = 0) -> Groups:
    """The environments between which these logits are least invariant; the classifier itself has none."""
    reference = Outputs(np.zeros((len(logits), 2), dtype=np.float32), logits)
    given = explained(labels, np.zeros((len(labels), 3)), reference=reference)
    return EIILGroups(steps=steps).infer(given, seed=seed)


def xrm(labels: np.ndarray, predicted: np.ndarray) -> Groups:
    return XRMGroups().infer(explained(labels, np.eye(3)[labels], twins=predicted), seed=0)


def planted(n: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits of a classifier that follows an attribute, which in a tenth of the samples is not the class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    minority = rng.random(n) < 0.1
    followed = np.where(minority, (labels + 1) % 3, labels)
    logits = rng.normal(0, 0.5, (n, 3)).astype(np.float32)
    logits[np.arange(n), followed] += 4
    return logits, labels, minority


@pytest.mark.parametrize("seed", range(3))
def test_gradients_are_those_of_the_scaled_cross_entropy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(0, 4, (20, 3)), rng.integers(0, 3, 20)
    scale = torch.ones(20, 1, dtype=torch.float64, requires_grad=True)
    torch.nn.functional.cross_entropy(
        scale * torch.from_numpy(logits), torch.from_numpy(labels), reduction="sum"
    ).backward()
    assert scale_gradients(logits, labels) == pytest.approx(scale.grad[:, 0].numpy())


def slow_penalty(assigned: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean penalty of both environments, by differentiating twice, as in the paper."""
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    losses = torch.nn.functional.cross_entropy(scale * logits, labels, reduction="none")
    penalties = []
    for chance in (torch.sigmoid(assigned), 1 - torch.sigmoid(assigned)):
        (gradient,) = torch.autograd.grad((chance * losses).mean(), scale, create_graph=True)
        penalties.append(gradient**2)
    return torch.stack(penalties).mean()


@pytest.mark.parametrize("seed", range(3))
def test_the_penalty_and_its_derivative_are_right(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits, labels, assigned = rng.normal(0, 3, (15, 3)), rng.integers(0, 3, 15), rng.normal(size=15)
    gradients = scale_gradients(logits, labels)
    penalty, derivative = invariance_gap(assigned, gradients)
    at = torch.from_numpy(assigned).requires_grad_()
    slow = slow_penalty(at, torch.from_numpy(logits), torch.from_numpy(labels))
    slow.backward()
    assert penalty == pytest.approx(float(slow.detach()))
    assert derivative == pytest.approx(at.grad.numpy())
    for sample in range(15):
        step = np.zeros(15)
        step[sample] = 1e-5
        rise = invariance_gap(assigned + step, gradients)[0] - invariance_gap(assigned - step, gradients)[0]
        assert derivative[sample] == pytest.approx(rise / 2e-5, rel=1e-4, abs=1e-9)


def test_steps_are_those_of_torchs_adam() -> None:
    logits, labels, _ = planted(40)
    gradients = scale_gradients(logits, labels)
    start = np.random.default_rng(5).standard_normal(40)
    assigned = torch.from_numpy(start.copy()).requires_grad_()
    adam = torch.optim.Adam([assigned], lr=0.01)
    for _ in range(50):
        adam.zero_grad()
        penalty = slow_penalty(assigned, torch.from_numpy(logits).double(), torch.from_numpy(labels))
        (-penalty).backward()
        adam.step()
    found = EIILGroups(50, 0.01)._soft(gradients, np.random.default_rng(5))
    assert np.abs(found - start).max() > 0.1
    assert found == pytest.approx(assigned.detach().numpy(), abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_minority_that_misleads_the_classifier_is_an_environment(seed: int) -> None:
    logits, labels, minority = planted(seed=seed)
    groups = eiil(labels, logits, 4000, seed)
    assert groups.names == tuple(f"class {c} / environment {e}" for c in CLASSES for e in range(2))
    assert np.mean((groups.index % 2 == 1) == minority) > 0.97  # environment 0 is the larger one
    assert np.array_equal(groups.index // 2, labels)
    assert (groups.source, groups.labels_used) == ("eiil", ("class labels",))


def test_the_same_seed_gives_the_same_environments() -> None:
    logits, labels, _ = planted()
    one, again, other = (eiil(labels, logits, 20, seed) for seed in (0, 0, 1))
    assert np.array_equal(one.index, again.index)
    assert not np.array_equal(one.index, other.index)


def test_a_classifier_that_fails_nowhere_alike_leaves_one_environment() -> None:
    labels = np.array([0, 1, 2] * 20)
    logits = 3.0 * np.eye(3)[labels]
    groups = eiil(labels, logits, 6000)
    assert groups.names == tuple(f"class {c} / environment 0" for c in CLASSES)
    assert groups.counts().tolist() == [20, 20, 20]


def test_logits_of_nothing_leave_the_environments_to_chance() -> None:
    labels = np.array([0, 1, 2] * 20)
    groups = eiil(labels, np.zeros((60, 3)), 50)
    assert groups.counts().sum() == 60
    assert len(groups.names) == 6


def test_logits_must_be_finite_and_those_of_the_split() -> None:
    logits, labels, _ = planted(30)
    for wrong in (logits[:29], logits[:, :2]):
        with pytest.raises(
            DataError, match=r"the eiil source needs logits of shape \(30, 3\), one row per sample, got"
        ):
            eiil(labels, wrong, 5)
    logits[4, 1], logits[7, 0] = np.nan, np.inf
    with pytest.raises(NumericalError, match="environments need finite logits, but those of 2 of 30 samples are NaN"):
        eiil(labels, logits, 5)


def test_cross_mistakes_split_each_class_as_the_error_set_does() -> None:
    labels, predicted = np.array([0, 0, 1, 1, 1, 2, 2]), np.array([0, 1, 1, 1, 1, 0, 1])
    groups = xrm(labels, predicted)
    errors = ErrorSetGroups().infer(explained(labels, np.eye(3)[predicted]), seed=0)
    assert (
        groups.names
        == errors.names
        == ("class cat / right", "class cat / wrong", "class dog / right", "class cow / wrong")
    )
    assert groups.index.tolist() == errors.index.tolist() == [0, 1, 2, 2, 2, 3, 3]
    assert (groups.source, groups.labels_used) == ("xrm", ("class labels",))


def test_cross_mistakes_must_be_those_of_the_split() -> None:
    with pytest.raises(DataError, match="the xrm source needs one prediction per sample, got 2 for 3 samples; use the"):
        xrm(np.array([0, 1, 2]), np.array([0, 1]))
