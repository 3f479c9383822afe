"""What a person at a device reads, state by state, and that each bad word says four things:

what is wrong, by which rule, what goes on all the same, and what to do. The whole table lies in
`tests/goldens/device-messages.txt`, what commands refuse beside it in `device-errors.txt`, to be
read aloud when they change.
"""

import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest
from tests.client.test_agent import make
from tests.client_fakes import LONG_AGO, FakeServer, MemoryChannel, today
from tests.device_fakes import bundle, document, golden_of
from tests.slots_fakes import scaling_model
from tests.update_fakes import Kit, offer

from wildflower.cli import main
from wildflower.client.examination import examine
from wildflower.client.history import Happening, timeline
from wildflower.client.hold import Holds
from wildflower.client.owner import Owner, save_owner
from wildflower.client.policy import Policy, save_policy
from wildflower.doctor import Check, State
from wildflower.ota.device.journal import glance
from wildflower.ota.device.slots import Slots
from wildflower.ota.errors import OtaError, StorageError
from wildflower.ota.rollout.document import Order

GOLDEN: Final = Path(__file__).parents[1] / "goldens" / "device-messages.txt"
ERRORS: Final = GOLDEN.with_name("device-errors.txt")
GOES_ON: Final = re.compile(
    r"goes on|answers? (all the same|in its place)|nothing can answer|runs w|before it runs"
)
"""How it is said what stays: what runs, what answers in its place, or that nothing can."""
USUAL: Final = re.compile(
    r"^(device, linux-generic|does not run:|nobody holds|allowed now|valid until .* \((2|3)\d days|"
    r"\d+ MB free|neither paused|whole$|empty$|wherever|nothing is under|\d\d\d\d-.* UTC$)"
)
"""What nearly every device says; the agent of these ones does not run."""
SHIFTING: Final = (
    (r"127\.0\.0\.1:\d+", "HOST"),
    (r"\b[0-9a-f]{64}\b", "DIGEST"),
    (r"\b[0-9a-f]{12}\b", "RELEASE"),
    (r"\d{4}-\d\d-\d\d( \d\d:\d\d)?", "DATE"),
    (r"\(\d+ days\)", "(N days)"),
    (r"/\S*/(device|elsewhere)\b", "/DEVICE"),
    (r"/\S*/noise.tar", "/noise.tar"),
    (r"process \d+", "process N"),
    (r"for \d+ s more", "for N s more"),
    (r"\d+ MB free", "N MB free"),
    (r"found \d+ bytes", "found N bytes"),
    (r"onnxruntime \d[\d.]*: found at most \d+", "onnxruntime V: found at most N"),
)


@dataclass
class Scene:
    """One device beside its server."""

    kit: Kit
    server: FakeServer

    def look(self) -> None:
        """Let the device look once; what it cannot do now it says elsewhere."""
        with suppress(OtaError):
            self.kit.look()

    def checks(self, *, at: datetime | None = None, online: bool = False) -> list[Check]:
        return list(examine(self.kit.directory, at or self.kit.system(), online=online).checks)

    def happened(self) -> list[Happening]:
        path = self.kit.directory / "journal.db"
        if not path.exists():
            return []
        known = {one.digest: one for one in Slots(self.kit.directory / "slots").releases()}
        with glance(path) as journal:
            return timeline(journal.reports(), journal.load(), known)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with FakeServer(tmp_path / "server") as server:
        yield Scene(Kit(server.enrol(tmp_path / "device")), server)


Shown = list[Check] | tuple[list[Check], list[Happening]]


def fresh(scene: Scene) -> Shown:
    return scene.checks()


def running(scene: Scene) -> Shown:
    offer(scene.server, 1)
    scene.look()
    return scene.checks(), scene.happened()


def server_gone(scene: Scene) -> Shown:
    scene.server.faults.down = True
    scene.server.stop_channel()
    try:
        return scene.checks(online=True)
    finally:
        scene.server.start_channel()


def fetching(scene: Scene) -> Shown:
    offer(scene.server, 1)
    with scene.kit.on() as updates:
        updates.why_wait = lambda _: "outside the window, which opens at 01:00"
        updates.look()
    return scene.checks(), scene.happened()


def paused(scene: Scene) -> Shown:
    save_owner(Owner("trade fair"), scene.kit.directory)
    offer(scene.server, 1)
    scene.look()
    return scene.checks()


def pinned(scene: Scene) -> Shown:
    save_owner(Owner(pinned="ab" * 32), scene.kit.directory)
    offer(scene.server, 1)
    scene.look()
    return scene.checks()


def held(scene: Scene) -> Shown:
    offer(scene.server, 1)
    with Holds(scene.kit.directory).hold("measuring", max_s=60):
        scene.look()
        return scene.checks(), scene.happened()


def on_probation(scene: Scene) -> Shown:
    offer(scene.server, 1, trial=replace(bundle(1).release.trial, probation_s=3600))
    scene.look()
    return scene.checks(), scene.happened()


def quarantined(scene: Scene) -> Shown:
    offer(scene.server, 1)
    scene.look()
    offer(scene.server, 2, golden=golden_of(scaling_model(2.0), off=0.5))
    scene.look()
    return scene.checks(), scene.happened()


def ordered_back_without_a_way(scene: Scene) -> Shown:
    one = offer(scene.server, 1)
    scene.look()
    order = document(one.release, order=Order.ROLL_BACK, rollout="back", not_before=LONG_AGO)
    scene.server.releases.put(order)
    scene.look()
    return scene.checks(), scene.happened()


def incompatible(scene: Scene) -> Shown:
    wanted = replace(bundle(1).release.requires, opset=99, ram_bytes=2**50)
    offer(scene.server, 1, requires=wanted)
    scene.look()
    return scene.checks(), scene.happened()


def downgrade(scene: Scene) -> Shown:
    first = offer(scene.server, 1)
    scene.look()
    offer(scene.server, 2)
    scene.look()
    scene.server.releases.put(document(first.release, rollout="again", not_before=LONG_AGO))
    scene.look()
    return scene.checks(), scene.happened()


def lied_to(scene: Scene) -> Shown:
    one = offer(scene.server, 1)
    scene.server.faults.flipped.add(one.release.artifact.digest)
    scene.look()
    return scene.checks(), scene.happened()


def refused_by_its_owner(scene: Scene) -> Shown:
    scene.kit.policy = Policy(min_clients=5)
    save_policy(scene.kit.policy, scene.kit.directory)
    offer(scene.server, 1)
    scene.look()
    return scene.checks(), scene.happened()


def spoiled(scene: Scene) -> Path:
    """Install two releases, and change a byte of the one that runs."""
    offer(scene.server, 1)
    scene.look()
    second = offer(scene.server, 2)
    scene.look()
    model = scene.kit.directory / "slots" / second.digest / "model.onnx"
    model.chmod(0o644)
    model.write_bytes(b"damaged")
    return model


def damaged(scene: Scene) -> Shown:
    spoiled(scene)
    return scene.checks()


def damaged_and_found(scene: Scene) -> Shown:
    spoiled(scene)
    scene.server.faults.down = True
    scene.look()
    return scene.checks(), scene.happened()


def nothing_can_answer(scene: Scene) -> Shown:
    one = offer(scene.server, 1)
    scene.look()
    (scene.kit.directory / "slots" / one.digest / "manifest.json").unlink()
    return scene.checks()


def journal_torn(scene: Scene) -> Shown:
    offer(scene.server, 1)
    scene.look()
    (scene.kit.directory / "journal.db").write_bytes(b"noise" * 500)
    return scene.checks()


def clock_of_1970(scene: Scene) -> Shown:
    offer(scene.server, 1)
    scene.look()
    return scene.checks(at=datetime(1970, 1, 2, tzinfo=UTC))


def clock_of_2140(scene: Scene) -> Shown:
    return scene.checks(at=datetime(2140, 1, 2, tzinfo=UTC))


def certificate_nearly_over(scene: Scene) -> Shown:
    return scene.checks(at=today() + timedelta(days=20))


def certificate_over(scene: Scene) -> Shown:
    return scene.checks(at=today() + timedelta(days=40))


def settings_wrong(scene: Scene) -> Shown:
    (scene.kit.directory / "policy.toml").write_text("scrub_s = -4\n")
    return scene.checks()


def no_device(scene: Scene) -> Shown:
    scene.kit.directory = scene.kit.directory.with_name("elsewhere")
    return scene.checks()


STATES: Final[tuple[Callable[[Scene], Shown], ...]] = (
    fresh, running, server_gone, fetching, paused, pinned, held, on_probation, quarantined,
    ordered_back_without_a_way, incompatible, downgrade, lied_to, refused_by_its_owner, damaged,
    damaged_and_found,
    nothing_can_answer, journal_torn, clock_of_1970, clock_of_2140, certificate_nearly_over,
    certificate_over, settings_wrong, no_device,
)  # fmt: skip


def steady(text: str) -> str:
    """Return a text without what differs from run to run."""
    for pattern, name in SHIFTING:
        text = re.sub(pattern, name, text)
    return text


def lines(shown: Shown) -> list[str]:
    """Return what a person sees, but for the usual good news."""
    checks, happened = shown if isinstance(shown, tuple) else (shown, [])
    news = [one for one in checks if not USUAL.search(one.found)]
    told = [f"{one.name} [{one.state.value}] {one.found} | {one.advice}" for one in news]
    past = [f"history: {one.what} | {one.why} | {one.then}" for one in happened]
    return [steady(line).rstrip(" |") for line in [*told, *past]]


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_what_a_person_reads_is_what_was_read_aloud(
    scene: Scene, state: Callable[[Scene], Shown], update_goldens: bool
) -> None:
    shown = state(scene)
    section = f"[{state.__name__}]\n" + "\n".join(lines(shown)) + "\n"
    known = dict(re.findall(r"^(\[\w+\])\n((?:.+\n)+)", GOLDEN.read_text(), re.MULTILINE))
    if update_goldens:
        known[f"[{state.__name__}]"] = section.partition("\n")[2]
        order = [f"[{one.__name__}]" for one in STATES]
        GOLDEN.write_text("\n".join(f"{one}\n{known[one]}" for one in order if one in known))
    assert section.partition("\n")[2] == known[f"[{state.__name__}]"]
    checks, happened = shown if isinstance(shown, tuple) else (shown, [])
    for one in checks:
        if one.state is not State.OK:
            assert one.advice, one
            assert GOES_ON.search(f"{one.found}; {one.advice}"), one
    for past in happened:
        if past.at is not None and not past.what.startswith("installed"):
            assert past.why, past
            assert GOES_ON.search(past.then), past
            assert past.then.count(";") == 1, past  # what stays; what to do


def test_the_golden_file_holds_these_states_and_no_others() -> None:
    found = re.findall(r"^\[(\w+)\]$", GOLDEN.read_text(), re.MULTILINE)
    assert found == [one.__name__ for one in STATES]


def test_what_the_agent_cannot_do_now_is_told_with_what_goes_on_and_what_to_do(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    with scene.kit.wired() as updates, caplog.at_level(logging.WARNING):
        agent = make(scene.kit, updates, MemoryChannel())

        def fails(hint: str) -> Callable[[], object]:
            def work() -> object:
                raise StorageError("the journal cannot be written: disk is full", hint=hint)

            return work

        assert not agent._guarded(fails("Free some space."))
        assert not agent._guarded(fails(""))
    assert [record.getMessage() for record in caplog.records] == [
        f"StorageError: the journal cannot be written: disk is full. What runs goes on. {advice}"
        for advice in ("Free some space.", "It is tried again by itself.")
    ]


Words = list[str | Path]


def elsewhere(scene: Scene) -> Path:
    return scene.kit.directory.with_name("elsewhere")


def noise(scene: Scene) -> Path:
    path = scene.kit.directory.with_name("noise.tar")
    path.write_bytes(b"noise" * 300)
    return path


def no_token(scene: Scene) -> Words:
    return ["device", "enroll", "wf1.noise", "--dir", elsewhere(scene)]


def enrolled_twice(scene: Scene) -> Words:
    return ["device", "enroll", scene.server.token(), "--dir", scene.kit.directory]


def nobody_enrols(scene: Scene) -> Words:
    return [
        "device",
        "enroll",
        scene.server.token(url="https://127.0.0.1:1"),
        "--dir",
        elsewhere(scene),
    ]


def run_what_is_no_device(scene: Scene) -> Words:
    return ["agent", "run", "--dir", elsewhere(scene)]


def status_of_what_is_no_device(scene: Scene) -> Words:
    return ["agent", "status", "--dir", elsewhere(scene)]


def run_with_a_wrong_setting(scene: Scene) -> Words:
    (scene.kit.directory / "policy.toml").write_text('metered = "sometimes"\n')
    return ["agent", "run", "--dir", scene.kit.directory]


def pin_what_is_not_there(scene: Scene) -> Words:
    return ["agent", "pin", "abc", "--dir", scene.kit.directory]


def pin_nothing(scene: Scene) -> Words:
    return ["agent", "pin", "--dir", scene.kit.directory]


def pause_without_a_reason(scene: Scene) -> Words:
    return ["agent", "pause", "--reason", "", "--dir", scene.kit.directory]


def history_of_a_torn_journal(scene: Scene) -> Words:
    (scene.kit.directory / "journal.db").write_bytes(b"noise" * 500)
    return ["agent", "history", "--dir", scene.kit.directory]


def apply_what_is_not_there(scene: Scene) -> Words:
    return ["bundle", "apply", "gone.tar", "--dir", scene.kit.directory]


def apply_noise(scene: Scene) -> Words:
    return ["bundle", "apply", noise(scene), "--dir", scene.kit.directory]


def collect_into_nowhere(scene: Scene) -> Words:
    return ["bundle", "collect", "--out", "/nowhere/b.tar", "--dir", scene.kit.directory]


def acknowledge_noise(scene: Scene) -> Words:
    return ["bundle", "ack", noise(scene), "--dir", scene.kit.directory]


def serve_where_a_file_is(scene: Scene) -> Words:
    return ["agent", "serve", "--dir", scene.kit.directory, "--socket", noise(scene)]


def cache_of_no_address(scene: Scene) -> Words:
    return ["cache", "serve", "--upstream", "ftp://x", "--dir", elsewhere(scene)]


COMMANDS: Final[tuple[Callable[[Scene], Words], ...]] = (
    no_token, enrolled_twice, nobody_enrols, run_what_is_no_device, status_of_what_is_no_device,
    run_with_a_wrong_setting, pin_what_is_not_there, pin_nothing, pause_without_a_reason,
    history_of_a_torn_journal, apply_what_is_not_there, apply_noise, collect_into_nowhere,
    acknowledge_noise, serve_where_a_file_is, cache_of_no_address,
)  # fmt: skip


def test_what_commands_refuse_is_told_with_what_to_do(
    scene: Scene, capsys: pytest.CaptureFixture[str], update_goldens: bool, tmp_path: Path
) -> None:
    told = []
    for number, command in enumerate(COMMANDS):
        scene.kit = Kit(scene.server.enrol(tmp_path / str(number) / "device"))
        with pytest.raises(SystemExit) as end:
            main([*map(str, command(scene)), "--format", "json"])
        error = json.loads(capsys.readouterr().out)["error"]
        assert end.value.code, command
        assert error["hint"], command
        told += [f"[{command.__name__}]", steady(error["message"]), steady(error["hint"]), ""]
    if update_goldens:
        ERRORS.write_text("\n".join(told))
    assert "\n".join(told) == ERRORS.read_text()
