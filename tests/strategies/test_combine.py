"""Verdicts on combinations: every pair's is frozen, and all follow from what options declare."""

import contextlib
import itertools
import json
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wildflower.strategies.combine import (
    MAX_TEXT,
    Verdict,
    find,
    judge,
    parse,
    require,
    sort_of,
    together,
)
from wildflower.strategies.errors import CombinationError, OptionError
from wildflower.strategies.option import Exposure, Fact, Kind, Level, Option
from wildflower.strategies.options import OPTIONS

GOLDEN = Path(__file__).parents[1] / "goldens" / "combinations.json"
SEVERITY = [Level.OK, Level.WARNING, Level.REFUSED]
PAIRS = [(a, b) for a, b in itertools.combinations(OPTIONS.values(), 2) if a.kind is not b.kind]
"""Two options of one kind are no combination; see test_two_options_of_one_kind_are_refused."""


def named(verdict: Verdict) -> str:
    return "+".join(verdict.options)


def written(verdict: Verdict) -> str:
    return ": ".join(filter(None, (verdict.level.value, verdict.reason)))


def any_combination() -> st.SearchStrategy[tuple[Option, ...]]:
    by_kind = [[None, *(o for o in OPTIONS.values() if o.kind is kind)] for kind in Kind]
    chosen = st.tuples(*(st.sampled_from(options) for options in by_kind))
    return chosen.map(lambda options: tuple(o for o in options if o is not None))


def test_the_verdict_on_every_pair_is_the_frozen_one(update_goldens: bool) -> None:
    made = {named(verdict): written(verdict) for verdict in map(judge, PAIRS)}
    for a, b in itertools.combinations(OPTIONS.values(), 2):
        if a.kind is b.kind:
            made[f"{a.name}+{b.name}"] = f"refused: both are a choice of {a.kind}"
    if update_goldens:
        GOLDEN.write_text(json.dumps(made, indent=1, sort_keys=True) + "\n")
    assert len(made) == len(OPTIONS) * (len(OPTIONS) - 1) // 2
    assert json.loads(GOLDEN.read_text()) == made


@pytest.mark.parametrize("kind", Kind)
def test_two_options_of_one_kind_are_refused(kind: Kind) -> None:
    one, two, *_ = [option for option in OPTIONS.values() if option.kind is kind]
    with pytest.raises(OptionError, match=f"{one.name} and {two.name} are both a choice of {kind}"):
        together([one, two])


LIES = [
    ("secagg", "krum"),
    ("secagg", "fedmedian"),
    ("one-shot", "trimmed-mean"),
    ("he", "bulyan"),
    ("grouped", "multikrum"),
    ("secagg", "q-fedavg"),
    ("he", "fedxgb-bagging"),
    ("central", "by-examples"),
    ("distributed", "by-examples"),
    ("local", "by-examples"),
    ("ftrl", "by-examples"),
    ("plain", "distributed"),
    ("grouped", "distributed"),
    ("he", "distributed"),
    ("central", "krum"),
    ("central", "grouped"),
    ("ftrl", "grouped"),
    ("central-adaptive", "fedmedian"),
    ("ftrl", "trimmed-mean"),
    ("local", "q-fedavg"),
    ("dpsgd", "q-fedavg"),
    ("dpsgd", "fedxgb-cyclic"),
    ("ftrl", "all"),
]
HALF_TRUTHS = [
    ("plain", "central"),
    ("central", "fixed"),
    ("central", "all"),
    ("ftrl", "fedadam"),
    ("local", "krum"),
    ("dpsgd", "by-examples"),
    ("fedmedian", "by-examples"),
]
SOUND = [
    *(("secagg", name) for name in ("fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi")),
    ("plain", "krum"),
    ("grouped", "fedmedian"),
    ("grouped", "trimmed-mean"),
    ("grouped", "fedadam"),
    ("grouped", "local", "equal"),
    ("secagg", "distributed", "fedadam", "poisson", "equal"),
    ("one-shot", "distributed", "poisson", "equal"),
    ("secagg", "central", "fedavg", "poisson", "equal"),
    ("he", "fedavg", "by-examples"),
    ("plain", "local", "fedavg", "equal"),
    ("secagg", "ftrl", "fedavgm", "fixed", "equal"),
    ("secagg", "ftrl", "fedavg", "poisson", "equal"),
    ("secagg", "distributed", "fedavg", "fixed", "equal"),
    ("secagg", "dpsgd", "fedavg", "equal"),
]


@pytest.mark.parametrize("names", LIES)
def test_a_combination_that_would_lie_is_refused_and_says_what_to_use(
    names: tuple[str, ...],
) -> None:
    with pytest.raises(CombinationError, match="is refused: ") as found:
        require(*names)
    assert found.value.hint.startswith("Use ")


@pytest.mark.parametrize("names", HALF_TRUTHS)
def test_a_combination_that_promises_less_than_it_seems_to_is_a_warning(
    names: tuple[str, ...],
) -> None:
    verdict = require(*names)
    assert verdict.level is Level.WARNING
    assert verdict.reason


@pytest.mark.parametrize("names", SOUND)
def test_a_sound_combination_has_nothing_to_say(names: tuple[str, ...]) -> None:
    verdict = require(*names)
    assert (verdict.level, verdict.reason, verdict.alternatives) == (Level.OK, "", ())


@given(any_combination())
def test_a_verdict_is_the_worst_verdict_on_its_pairs(options: tuple[Option, ...]) -> None:
    pairs = [judge(pair).level for pair in itertools.combinations(options, 2)]
    assert judge(options).level is max(pairs, key=SEVERITY.index, default=Level.OK)


@given(any_combination(), st.randoms(use_true_random=False))
def test_the_order_of_options_changes_nothing(options: tuple[Option, ...], random: Random) -> None:
    shuffled = list(options)
    random.shuffle(shuffled)
    assert judge(shuffled) == judge(options)


@given(any_combination().filter(lambda options: len(options) >= 1))
def test_a_verdicts_options_are_a_text_that_parses_to_them(options: tuple[Option, ...]) -> None:
    assert parse(named(judge(options))) == together(options)


@given(any_combination())
def test_every_alternative_is_better_and_reveals_no_more(options: tuple[Option, ...]) -> None:
    verdict = judge(options)
    revealed = frozenset[Exposure]().union(*(option.reveals for option in options))
    for text in verdict.alternatives:
        other = parse(text)
        assert SEVERITY.index(judge(other).level) < SEVERITY.index(verdict.level)
        assert frozenset[Exposure]().union(*(option.reveals for option in other)) <= revealed
        assert len(set(other) - set(options)) == 1
    sorts = [frozenset(map(sort_of, parse(text))) for text in verdict.alternatives]
    assert len(sorts) == len(set(sorts))


@pytest.mark.parametrize("names", LIES)
def test_a_refused_pair_has_an_alternative(names: tuple[str, ...]) -> None:
    assert judge(map(find, names)).alternatives


def test_equal_declarations_have_equal_verdicts() -> None:
    for a, b in itertools.combinations(OPTIONS.values(), 2):
        if sort_of(a) == sort_of(b):
            for other in OPTIONS.values():
                if other.kind is not a.kind:
                    assert judge([a, other]).level is judge([b, other]).level


def test_every_fact_that_is_needed_is_offered_and_every_exposure_limited_is_revealed() -> None:
    options = OPTIONS.values()
    for option in options:
        for need in option.needs:
            offered = {fact for o in options if o.kind is need.of for fact in o.offers}
            assert need.fact in offered, (option.name, need.fact)
            assert need.of is not option.kind
        for limit in option.limits:
            assert any(limit.exposure in other.reveals for other in options), option.name
    assert {need.fact for o in options for need in o.needs} == set(Fact)


def test_what_is_called_instead_exists() -> None:
    for option in OPTIONS.values():
        texts = [need.instead for need in option.needs]
        for text in texts + [limit.instead for limit in option.limits]:
            words = text.replace(",", " ").split()
            assert any(word in OPTIONS for word in words), f"{option.name}: {text}"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("krm", "krum"), ("secag", "secagg"), ("FedAdm", "fedadam"), ("oneshot", "one-shot"),
     ("qfedavg", "q-fedavg"), ("median", "fedmedian"), ("poison", "poisson")],
)  # fmt: skip
def test_an_unknown_option_is_refused_with_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(OptionError, match=f"no option '{typed.lower()}'") as found:
        parse(f"fixed+{typed}")
    assert found.value.hint == f"Did you mean '{meant}'?"


def test_a_name_like_nothing_lists_what_there_is() -> None:
    with pytest.raises(OptionError) as found:
        parse("zzzzzz")
    assert "krum" in found.value.hint


@pytest.mark.parametrize("text", ["", "x" * (MAX_TEXT + 1), "+", "secagg+", "secagg+secagg"])
def test_a_text_that_is_no_combination_is_refused(text: str) -> None:
    with pytest.raises(OptionError) as found:
        parse(text)
    assert ("1 to 200 characters" in str(found.value)) == (len(text) in {0, MAX_TEXT + 1})


def test_a_text_may_be_as_long_as_it_says() -> None:
    assert parse("secagg".ljust(MAX_TEXT)) == parse("secagg")


@given(st.text(max_size=MAX_TEXT + 20))
def test_no_text_does_more_than_be_refused(text: str) -> None:
    chosen: tuple[Option, ...] = ()
    with contextlib.suppress(OptionError):
        chosen = parse(text)
    assert set(chosen) <= set(OPTIONS.values())


def test_spaces_and_capitals_do_not_matter() -> None:
    assert parse(" SecAgg + FedAvg ") == parse("fedavg+secagg")
