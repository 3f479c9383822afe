"""How a round made its model: it comes back as it was, or is refused."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.ota_fakes import NOON, release_of

from wildflower.ota.errors import FormatError
from wildflower.ota.release.method import Method
from wildflower.ota.release.provenance import RoundRecord
from wildflower.ota.release.statement import Provenance

METHOD = Method("fedavg", "secagg", "central", "device")
RECORD = RoundRecord("t1", 3, "ab" * 32, 8, 7, True, {"dp_epsilon": 2.5, "dp_delta": 1e-5}, NOON)


@pytest.mark.parametrize(
    ("method", "told"),
    [
        (METHOD, "secagg+central+fedavg"),
        (Method("fedmedian", "grouped"), "grouped+fedmedian"),
        (Method("fedavg", "one-shot", "dpsgd", "example"), "one-shot+dpsgd+fedavg"),
    ],
)
def test_a_method_comes_back_and_reads_as_a_combination(method: Method, told: str) -> None:
    assert Method.from_document(method.to_document()) == method
    assert str(method) == told


@pytest.mark.parametrize(
    "found",
    [
        None,
        [],
        {},
        {**METHOD.to_document(), "more": ""},
        {**METHOD.to_document(), "algorithm": ""},
        {**METHOD.to_document(), "algorithm": None},
        {**METHOD.to_document(), "protection": "SecAgg"},
        {**METHOD.to_document(), "protection": "a" * 65},
        {**METHOD.to_document(), "mechanism": "a+b"},
        {**METHOD.to_document(), "unit": ""},
        {**METHOD.to_document(), "unit": "fleet"},
        {**METHOD.to_document(), "mechanism": "none"},
    ],
)
def test_what_is_no_method_is_refused(found: Any) -> None:
    with pytest.raises(FormatError, match="method"):
        Method.from_document(found)


@given(
    st.recursive(
        st.none() | st.booleans() | st.text(max_size=5),
        lambda inner: st.dictionaries(
            st.sampled_from(["algorithm", "protection", "mechanism", "unit", "x"]),
            inner,
            max_size=5,
        ),
    )
)
def test_nothing_makes_the_parser_fail_otherwise_than_by_name(found: Any) -> None:
    try:
        method = Method.from_document(found)
    except FormatError:
        return
    assert Method.from_document(method.to_document()) == method


def test_records_and_statements_tell_the_method_and_those_before_it_are_still_read() -> None:
    release = release_of(b"model")
    old, new = RECORD, replace(RECORD, method=METHOD)
    assert b"method" not in old.to_bytes()
    for record in (old, new):
        assert RoundRecord.from_bytes(record.to_bytes()) == record
        statement = Provenance.of(release, record, {}, record.privacy)
        assert statement.method == record.method
        assert Provenance.from_bytes(statement.to_bytes()) == statement
    assert b"method" not in Provenance.of(release, old, {}).to_bytes()


def test_a_record_with_a_wrong_method_is_none() -> None:
    data = replace(RECORD, method=METHOD).to_bytes()
    with pytest.raises(FormatError, match="method"):
        RoundRecord.from_bytes(data.replace(b'"secagg"', b'"Secagg"'))
