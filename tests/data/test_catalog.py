from __future__ import annotations

import numpy as np
import pytest

from exmap.config import DataSettings
from exmap.data import build_task, dataset_names
from exmap.errors import DataError, SettingsError


def test_the_catalogue_lists_what_the_settings_allow() -> None:
    assert dataset_names() == ["cmnist", "digits"]
    for name in dataset_names():
        assert DataSettings(name=name).name == name  # type: ignore[arg-type]


def test_digits_are_built_with_the_asked_correlation() -> None:
    task = build_task(DataSettings(name="digits", correlation=1.0))
    assert (task.name, len(task.train), len(task.val), len(task.test)) == ("digits", 897, 450, 450)
    groups = task.train.true_groups()
    assert np.flatnonzero(groups.counts()).tolist() == [1, 2]  # class 0 green, class 1 red


def test_an_unknown_data_set_is_answered_with_the_closest_one() -> None:
    settings = DataSettings.model_construct(name="cmist")  # type: ignore[arg-type]
    with pytest.raises(SettingsError) as caught:
        build_task(settings)
    assert str(caught.value) == ("unknown data set 'cmist' (did you mean 'cmnist'?); choose one of: cmnist, digits")


def test_cmnist_without_a_folder_says_how_to_name_one() -> None:
    with pytest.raises(DataError) as caught:
        build_task(DataSettings(name="cmnist"))
    assert str(caught.value) == (
        "C-MNIST needs the folder of MNIST's four IDX files, and none was given; name it with --data-dir"
    )
