"""Published epsilons come out again."""

import warnings

import pytest

from wildflower.strategies.dp.anchors import Anchor, anchors


@pytest.fixture(scope="module")
def found() -> tuple[Anchor, ...]:
    return anchors()


def test_every_published_figure_is_reproduced(found: tuple[Anchor, ...]) -> None:
    assert [anchor for anchor in found if not anchor.is_reproduced] == []
    assert len(found) == 8


def test_the_published_figures_are_those_of_their_sources(found: tuple[Anchor, ...]) -> None:
    tutorials = [a for a in found if a.source.startswith("TF-privacy")]
    assert [a.published for a in tutorials] == [2.92, 9.74, 1.20]
    assert {a.tolerance for a in tutorials} == {0.003}
    assert [a.tolerance for a in found if a.published == 7.32911117143] == [1e-9]


def test_opacus_itself_says_the_same(found: tuple[Anchor, ...]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus.accountants import RDPAccountant
    accountant = RDPAccountant()
    accountant.history = [(1.5, 0.04, 2250)]
    ours = next(a for a in found if a.source == "Opacus tests, RDP")
    assert accountant.get_epsilon(1e-5) == pytest.approx(ours.found, rel=1e-9)


def test_a_figure_that_is_off_is_not_reproduced() -> None:
    assert not Anchor("a", "b", 1.0, 1.02, 0.01).is_reproduced
    assert Anchor("a", "b", 1.0, 0.995, 0.01).is_reproduced
