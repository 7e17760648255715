from __future__ import annotations

import pytest

from exmap import errors
from exmap.errors import ExMapError, unknown_name


def test_a_near_miss_names_the_closest_name_and_all_allowed_ones_in_order() -> None:
    assert unknown_name("preset", "cmist", ["digits", "cmnist"]) == (
        "unknown preset 'cmist' (did you mean 'cmnist'?); choose one of: cmnist, digits"
    )


def test_a_name_like_none_of_them_gets_no_hint() -> None:
    assert unknown_name("method", "zzz", ["spectral", "umap"]) == "unknown method 'zzz'; choose one of: spectral, umap"


@pytest.mark.parametrize("name", ["data.corelation", "corelation", "train.correlation", "x.y.correlatin"])
def test_a_nested_name_is_also_compared_by_its_last_part(name: str) -> None:
    message = unknown_name("setting", name, ["seed", "data.correlation", "cluster.method"])
    assert message.startswith(f"unknown setting {name!r} (did you mean 'data.correlation'?)")


def test_allowed_names_may_come_from_a_generator() -> None:
    assert unknown_name("x", "a", (name for name in ("ab", "q"))).endswith("(did you mean 'ab'?); choose one of: ab, q")


@pytest.mark.parametrize("name", [name for name in errors.__all__ if name.endswith("Error") and name != "ExMapError"])
def test_every_error_can_be_caught_by_the_root_error_and_by_a_builtin_kind(name: str) -> None:
    kind = getattr(errors, name)
    assert issubclass(kind, ExMapError)
    assert issubclass(kind, ValueError | ArithmeticError | RuntimeError)
