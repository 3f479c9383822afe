"""The helper: what it opens, what it refuses, and that it answers a session once."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from tests.one_shot_fakes import OneShotPlay, make_helpers, make_one_shot_params
from tests.secagg_fakes import NOW, fleet

from wildflower.strategies.errors import ProtocolError
from wildflower.strategies.fixed_point import Residues
from wildflower.strategies.secagg import one_shot_keys
from wildflower.strategies.secagg.helper import Helper, MemoryClaims
from wildflower.strategies.secagg.one_shot_messages import SumRequest

DEVICES = fleet()[1]


class Table:
    """Eight devices and two helpers; the first helper is the one that is asked."""

    def __init__(self, *, min_cohort: int = 3, smallest: int = 3) -> None:
        self.helpers = make_helpers(2, min_cohort=min_cohort)
        params = make_one_shot_params(self.helpers)
        self.play = OneShotPlay(params, self.helpers, smallest=smallest)
        self.devices = sorted(self.play.answers)
        self.helper: Helper = self.helpers[0]

    def ask(self, devices: list[str]) -> Residues:
        return self.helper.sum(self.play.request(devices), now=NOW)

    def altered(self, change: Callable[[SumRequest], SumRequest]) -> Residues:
        return self.helper.sum(change(self.play.request(self.devices)), now=NOW)


@pytest.fixture
def table() -> Table:
    return Table()


def test_the_same_request_gets_the_same_sum_again(table: Table) -> None:
    first = table.ask(table.devices)
    assert np.array_equal(first, table.ask(table.devices))


def test_a_second_request_for_a_session_is_refused(table: Table) -> None:
    table.ask(table.devices)
    for fewer in (table.devices[:-1], table.devices[1:], table.devices[:3]):
        with pytest.raises(ProtocolError, match="answered already, to another request"):
            table.ask(fewer)
    assert table.ask(table.devices).size == table.play.params.encoding.length


def test_a_device_that_answered_twice_is_counted_with_one_answer_only(table: Table) -> None:
    table.ask(table.devices)
    first = DEVICES[0]
    table.play.answers[first.device_id] = table.play.answer(first, "again")
    with pytest.raises(ProtocolError, match="answered already"):
        table.ask(table.devices)


def test_a_session_of_another_name_has_its_own_answer(table: Table) -> None:
    table.ask(table.devices)
    other = OneShotPlay(replace(table.play.params, session=b"o" * 32), table.helpers)
    assert table.helper.sum(other.request(table.devices[:3]), now=NOW).size


def test_a_session_cannot_be_renamed(table: Table) -> None:
    with pytest.raises(ProtocolError, match="not signed by it"):
        table.altered(lambda asked: replace(asked, params=replace(asked.params, session=b"o" * 32)))


@pytest.mark.parametrize(
    ("min_cohort", "smallest", "enough"), [(3, 3, 3), (5, 3, 5), (3, 6, 6), (8, 7, 8)]
)
def test_the_largest_demand_counts(min_cohort: int, smallest: int, enough: int) -> None:
    table = Table(min_cohort=min_cohort, smallest=smallest)
    with pytest.raises(ProtocolError, match=f"{enough - 1} devices .*, {enough} are needed"):
        table.ask(table.devices[: enough - 1])
    assert table.ask(table.devices[:enough]).size  # what was refused has claimed nothing


def test_more_devices_than_the_session_is_for_are_refused(table: Table) -> None:
    params = make_one_shot_params(table.helpers, 4)
    wide = OneShotPlay(params, table.helpers)
    for device in DEVICES[4:6]:
        wide.updates[device.device_id] = wide.encoded(0)
        wide.answers[device.device_id] = wide.answer(device)
    with pytest.raises(ProtocolError, match="6 devices are in the sum, the session is for 4"):
        table.helper.sum(wide.request(wide.answers), now=NOW)


def flipped(request: SumRequest, place: int) -> SumRequest:
    """Return the request with a seal altered on the way; its signature no longer fits."""
    first = request.seeds[0]
    sealed = list(first.sealed)
    sealed[place] = sealed[place][:-1] + bytes([sealed[place][-1] ^ 1])
    return replace(request, seeds=(replace(first, sealed=tuple(sealed)), *request.seeds[1:]))


def test_an_altered_seal_is_refused(table: Table) -> None:
    for place in (0, 1):
        with pytest.raises(ProtocolError, match="not signed by it"):
            table.altered(lambda asked, place=place: flipped(asked, place))  # type: ignore[misc]


def test_a_seal_that_cannot_be_opened_is_told_with_its_device(table: Table) -> None:
    """As a device makes it that signs rubbish: the other devices' sum must not die of it."""
    bad = DEVICES[2]
    answer = table.play.answers[bad.device_id]
    unsigned = replace(answer.seeds, sealed=answer.seeds.sealed[::-1])
    signature = bad.sign(one_shot_keys.signed_bytes(table.play.params, unsigned))
    rubbish = replace(unsigned, signature=signature)
    request = SumRequest(table.play.params, (rubbish,))
    with pytest.raises(ProtocolError, match=f"the seed of {bad.device_id} cannot be opened"):
        table.helper.check(request, now=NOW)
    table.play.answers[bad.device_id] = replace(answer, seeds=rubbish)
    with pytest.raises(ProtocolError, match=bad.device_id):
        table.ask(table.devices)
    assert table.ask([each for each in table.devices if each != bad.device_id]).size


def test_a_helper_with_another_key_opens_nothing(table: Table) -> None:
    stranger = replace(table.helper, private=b"k" * 32)
    with pytest.raises(ProtocolError, match="cannot be opened"):
        stranger.sum(table.play.request(table.devices), now=NOW)


def test_a_helper_that_has_no_part_in_the_session_says_so(table: Table) -> None:
    outsider = next(each for each in make_helpers(3) if each.card not in table.play.params.helpers)
    with pytest.raises(ProtocolError, match="has no part in this session"):
        outsider.sum(table.play.request(table.devices), now=NOW)


def test_checking_claims_nothing(table: Table) -> None:
    for device in table.devices:
        table.helper.check(table.play.request([device]), now=NOW)
    assert table.ask(table.devices[:4]).size


def test_what_one_helper_tells_is_no_devices_mask(table: Table) -> None:
    """The difference of two sums would be: so there is one sum, and it is not any device's."""
    total = table.ask(table.devices)
    for device in table.devices:
        answer = table.play.answers[device].masked.vector(total.dtype)
        assert not np.array_equal(answer - total, table.play.updates[device])


def test_the_first_claim_wins() -> None:
    claims = MemoryClaims()
    assert claims.claim(b"s", b"one", now=NOW) == b"one"
    assert claims.claim(b"s", b"two", now=NOW) == b"one"
    assert claims.claim(b"t", b"two", now=NOW) == b"two"
