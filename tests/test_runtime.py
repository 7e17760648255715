from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch

from exmap.errors import SettingsError
from exmap.runtime import (
    child_seed,
    generator,
    launched,
    launched_runtime,
    make_fabric,
    process_number,
    processes_here,
    torch_seed,
)
from exmap.settings import RuntimeSettings


def test_child_seeds_stay_the_same_from_version_to_version() -> None:
    assert [child_seed(0), child_seed(0, "train"), child_seed(7, "epoch", 3, 1)] == [2968811710, 1550685491, 2101794939]


def test_child_seeds_differ_by_seed_name_number_and_depth() -> None:
    names = [(), ("order",), ("epoch",), ("epoch", 0), ("epoch", 1), (0, "epoch"), ("epoch", 0, 0), ("epoch0",)]
    seeds = [child_seed(seed, *path) for seed, path in itertools.product(range(50), names)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_a_generator_gives_the_same_draws_for_the_same_name_only() -> None:
    first, again, other = (generator(3, name).random(5) for name in ("order", "order", "noise"))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_torch_seed_gives_reproducible_draws_and_restores_the_callers_state() -> None:
    before = torch.get_rng_state()
    with torch_seed(5):
        first = torch.rand(4)
    assert torch.equal(torch.get_rng_state(), before)
    with torch_seed(5):
        assert torch.equal(torch.rand(4), first)
    with torch_seed(6):
        assert not torch.equal(torch.rand(4), first)


def test_torch_seed_restores_the_callers_state_after_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(KeyError), torch_seed(5):
        raise KeyError("inside")
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_here_touches_the_global_generators() -> None:
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    child_seed(0, "a")
    generator(0, "a").random()
    make_fabric(RuntimeSettings(accelerator="cpu"))
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert torch.equal(torch.get_rng_state(), states[2])


def test_a_cpu_fabric_computes_on_the_cpu_in_one_process() -> None:
    fabric = make_fabric(RuntimeSettings(accelerator="cpu"))
    assert (fabric.device.type, fabric.world_size) == ("cpu", 1)


def test_several_cpu_processes_are_spawned() -> None:
    fabric = make_fabric(RuntimeSettings(accelerator="cpu", devices=2))
    assert fabric.strategy.num_processes == 2
    assert type(fabric.strategy).__name__ == "DDPStrategy"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("devices", [1, 2])
def test_an_accelerator_that_is_not_there_is_a_settings_error_that_says_what_to_do(devices: int) -> None:
    with pytest.raises(SettingsError) as caught:
        make_fabric(RuntimeSettings(accelerator="cuda", devices=devices))
    message = str(caught.value)
    assert message.startswith(f"runtime.accelerator=cuda with runtime.devices={devices} cannot be used here: ")
    assert message.endswith("Set runtime.accelerator=cpu or lower runtime.devices")


LAUNCHED = {  # what torchrun says to the last of three processes on the second of two hosts
    "TORCHELASTIC_RUN_ID": "a",
    "WORLD_SIZE": "6",
    "LOCAL_WORLD_SIZE": "3",
    "GROUP_WORLD_SIZE": "2",
    "RANK": "5",
    "LOCAL_RANK": "2",
    "GROUP_RANK": "1",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE must be a whole number of at least 1, got 'abc'"),
        ({"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE must be a whole number of at least 1, got '0'"),
        ({"RANK": "-1"}, "RANK must be a whole number of at least 0, got '-1'"),
        ({"RANK": "9" * 5000}, "RANK must be a whole number of at least 0, got '9999"),
        ({"RANK": "6"}, "RANK must be below WORLD_SIZE, got 6 and 6"),
        ({"LOCAL_RANK": "3"}, "LOCAL_RANK must be below LOCAL_WORLD_SIZE, got 3 and 3"),
        ({"GROUP_WORLD_SIZE": "4"}, "WORLD_SIZE is 6; LOCAL_WORLD_SIZE is 3; GROUP_WORLD_SIZE is 4"),
        ({"RANK": None, "MASTER_PORT": None}, "TORCHELASTIC_RUN_ID is set, but RANK and MASTER_PORT not"),
        ({**dict.fromkeys(LAUNCHED), "LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE must be a whole number of at least 1"),
    ],
)
def test_a_launch_that_is_not_told_as_torchrun_tells_it_is_refused(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, str | None], why: str
) -> None:
    for name, value in {**LAUNCHED, **changes}.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    for ask in (launched, process_number, processes_here, lambda: launched_runtime(RuntimeSettings())):
        with pytest.raises(SettingsError) as caught:
            ask()
        assert why in str(caught.value)
        assert str(caught.value).endswith("; start them with torchrun, or unset its variables")


def test_processes_are_launched_only_where_torchrun_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = RuntimeSettings(devices=3)
    assert (launched(), process_number(), launched_runtime(settings)) == (False, 0, settings)
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    assert (launched(), process_number()) == (True, 5)
    found = launched_runtime(settings)
    assert (found.devices, found.num_nodes, found.processes) == (3, 2, 6)
    with pytest.raises(SettingsError, match=r"must be the processes that were started, got 6; start as many"):
        make_fabric(settings)


def test_several_hosts_need_torchrun() -> None:
    with pytest.raises(SettingsError, match=r"^runtime.num_nodes=2 needs torchrun on every host, or fabric run, to"):
        make_fabric(RuntimeSettings(accelerator="cpu", num_nodes=2))
