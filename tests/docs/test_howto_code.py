"""The code that how-to guides show is whole, and keeps what exmap asks of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from exmap.registry import DATASETS
from exmap.testing import check_dataset, check_explainer

CODE = Path(__file__).parents[2] / "docs" / "howto" / "code"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(CODE))


def test_the_explainer() -> None:
    check_explainer("my_explainer:Shifted", weight=0.5)


def test_the_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DATASETS, "_own", {**DATASETS._registered()})  # what is registered here is gone afterwards
    check_dataset("my_data:ENTRY")
