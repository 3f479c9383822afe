"""Which extra brings what, read from the distribution's own metadata."""

import pytest

from wildflower.extras import EXTRAS, Extra, extra_of, find_extras

LINES = (
    "numpy<3,>=2",
    'torch==2.13.0; extra == "train"',
    'torch_pruning>=1; extra == "server"',
    "wildflower[train]; extra == 'server'",
    'uvloop<1,>=0.21; sys_platform != "win32" and extra == "server"',
    'ray==2; extra == "simulation"',
    'wildflower[server]; extra == "simulation"',
    "!!!",
)


def test_an_extra_misses_what_those_it_takes_over_miss() -> None:
    found = find_extras(LINES, is_installed=lambda name: name == "uvloop")
    assert found == (
        Extra("train", ("torch",)),
        Extra("server", ("torch", "torch-pruning")),
        Extra("simulation", ("ray", "torch", "torch-pruning")),
        Extra("data", ()),
    )


def test_where_everything_is_installed_nothing_is_missing() -> None:
    assert find_extras() == tuple(Extra(name, ()) for name in EXTRAS)


def test_what_is_not_installed_is_missing() -> None:
    (train, *_) = find_extras(['no-such-distribution; extra == "train"'])
    assert train == Extra("train", ("no-such-distribution",))


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("torch", "train"),
        ("torch_pruning.utils", "server"),
        ("sklearn", "data"),
        ("numpy", ""),
        ("nowhere", ""),
    ],
)
def test_a_module_is_brought_by_the_smallest_extra(module: str, extra: str) -> None:
    assert extra_of(module) == extra
