"""Whatever comes, a parser answers by name: with a value or with an error of its own."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fuzz import twists
from tests.fuzz.targets import targets


@pytest.mark.parametrize("name", targets())
def test_a_parser_understands_what_fuzzing_begins_with(name: str) -> None:
    target = targets()[name]
    for seed in target.seeds:
        if name != "answer to an enrolment":  # the seed is a refusal
            target.parse(seed)


@pytest.mark.parametrize("name", targets())
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_comes_a_parser_answers_by_name(name: str, data: st.DataObject) -> None:
    target = targets()[name]
    target.feed(data.draw(twists.of(data.draw(st.sampled_from(target.seeds)))))


@pytest.mark.parametrize("name", targets())
@pytest.mark.parametrize(
    "data", [b"", b"\0", b"[" * 100_000, b'{"a":' * 50_000, b"9" * 100_000, b"\xef\xbb\xbf{}"]
)
def test_what_no_parser_wants_is_refused_by_all(name: str, data: bytes) -> None:
    targets()[name].feed(data)
