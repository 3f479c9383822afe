"""A grouped round: a secure round in each of several groups, and a robust rule over their means.

The groups go through their four trips at the same time, each in a session of its own, and fail each
by itself: a group that cannot be unmasked is left out, and the round goes on with the others as
long as the rule can compare them. See `secagg.grouped` for what this withstands and reveals.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Final

from flwr.serverapp import Grid

from wildflower.strategies.errors import RoundAbortedError
from wildflower.strategies.round_request import RoundRequest, RoundResult, refuse_noise
from wildflower.strategies.secagg import keys
from wildflower.strategies.secagg.grouped import Grouping, combine, divide
from wildflower.strategies.trips import secure_round

AT_ONCE: Final = 16
"""Groups that go through their trips at the same time; each holds a vector of the model's size."""


def grouped_round(  # noqa: PLR0913  the shape of every kind of round, and the grouping
    grid: Grid,
    nodes: Sequence[int],
    request: RoundRequest,
    *,
    is_gone: Callable[[int], bool],
    entropy: bytes,
    ca_pem: bytes,
    grouping: Grouping,
    evaluate_only: bool = False,
    on_stage: Callable[[str], None] = lambda _: None,
) -> RoundResult:
    """Have devices train, and learn the sum of each group and nothing else.

    Args:
        grid: Reaches the nodes; used from several threads.
        nodes: Node ids of the cohort.
        request: What to do; its quorum is that of all groups together.
        is_gone: Tells whether a node lost its connection since the round began.
        entropy: 32 or more secret random bytes, for this call only.
        ca_pem: The enrolment CA whose devices may take part, PEM.
        grouping: How the cohort is divided and what becomes of the group means.
        evaluate_only: The devices do not train; only statistics are added up.
        on_stage: Is told the name of each stage when the first group begins it.

    Returns:
        The sum as `secagg.grouped.combine` says; stages last as long as in the slowest group.

    Raises:
        RoundAbortedError: Too few devices, groups or survivors are left.
        CombinationError: The request's noise is made in parts.
        LinkError: The grid lost its SuperLink.
    """
    refuse_noise(request, "a group's sum holds a part of it only")
    groups = divide(nodes, grouping, entropy=keys.derive(entropy, b"", b"grouped/division"))
    tell = _once(on_stage)

    def run(number: int) -> RoundResult | RoundAbortedError:
        try:
            return secure_round(
                grid,
                groups[number],
                replace(request, min_clients=grouping.min_group),
                is_gone=is_gone,
                entropy=keys.derive(entropy, b"", b"grouped/%d" % number),
                ca_pem=ca_pem,
                evaluate_only=evaluate_only,
                on_stage=tell,
            )
        except RoundAbortedError as error:
            return error

    with ThreadPoolExecutor(min(AT_ONCE, len(groups)), "group") as pool:
        outcomes = list(pool.map(run, range(len(groups))))
    return _joined(groups, outcomes, request, grouping)


def _joined(
    groups: Sequence[tuple[int, ...]],
    outcomes: Sequence[RoundResult | RoundAbortedError],
    request: RoundRequest,
    grouping: Grouping,
) -> RoundResult:
    results: list[RoundResult] = []
    refusals: dict[int, str] = {}
    failures: list[str] = []
    for group, outcome in zip(groups, outcomes, strict=True):
        if isinstance(outcome, RoundResult):
            results.append(outcome)
            refusals |= outcome.refusals
        else:
            failures.append(str(outcome))
            refusals |= dict.fromkeys(group, f"its group came to nothing: {outcome}")
    survivors = tuple(sorted(node for result in results for node in result.survivors))
    reasons = "; ".join(sorted(set(failures))[:3])
    if len(survivors) < request.min_clients:
        raise RoundAbortedError(
            f"{len(survivors)} devices are in the sums of {len(results)} groups, at least"
            f" {request.min_clients} are needed" + (f" ({reasons})" if reasons else ""),
            hint="See which devices are connected, or lower the quorum.",
        )
    try:
        total = combine([result.total for result in results], grouping)
    except RoundAbortedError as error:
        raise RoundAbortedError(f"{error} ({reasons})", hint=error.hint) from error
    return RoundResult(total, survivors, refusals, _slowest(results))


def _slowest(results: Sequence[RoundResult]) -> Mapping[str, float]:
    return {name: max(result.stages[name] for result in results) for name in results[0].stages}


def _once(on_stage: Callable[[str], None]) -> Callable[[str], None]:
    """Return a function that passes each stage's name on once, whichever thread it comes from."""
    turn, told = threading.Lock(), set[str]()

    def tell(stage: str) -> None:
        with turn:
            if stage not in told:
                told.add(stage)
                on_stage(stage)

    return tell
