import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from tests.asgi_fakes import AsgiTransport
from tests.device_fakes import self_report
from tests.record_fakes import (
    AVX2,
    NOW,
    FakePublisher,
    SetClock,
    artifact,
    device,
    digest_of,
    manifest,
    model,
    release,
    report,
)

from wildflower.server.api.app import create_app
from wildflower.server.api.desk import Desk
from wildflower.server.api.views import InvitationView, ProcessView, StatusView
from wildflower.server.blobs import BlobStore
from wildflower.server.building import Build
from wildflower.server.cohort import Gathering
from wildflower.server.events import Kind, ObservedStore
from wildflower.server.line import LineRunner
from wildflower.server.listener import Listener, Place
from wildflower.server.memory import MemoryStore
from wildflower.server.presence import Presence
from wildflower.server.records import Round
from wildflower.server.rollouts import RolloutRunner
from wildflower.server.round_trip import Parties
from wildflower.server.round_work import RoundTools
from wildflower.server.rounds import Learning, RoundRunner

TOKEN = "operator-token"
HERE = {"Authorization": f"Bearer {TOKEN}"}


class NoLink:
    """No Flower: nothing is trained here."""

    def run(self, name: str) -> "object":
        raise AssertionError(name)


@dataclass
class Health:
    """How the server is."""

    store: ObservedStore
    ready: bool = True

    def status(self) -> StatusView:
        child = ProcessView("superlink", 7, "running", 0)
        last = self.store.latest_event()
        return StatusView(self.ready, "1", "personal", NOW, {}, [child], 0, 0, "", last)


@dataclass
class World:
    """A server's parts, none of whose threads run, and its API."""

    store: ObservedStore
    presence: Presence
    publisher: FakePublisher
    blobs: BlobStore
    desk: Desk
    health: Health


def invite(ring: str, uses: int, seconds: float) -> InvitationView:
    return InvitationView("wf-join", ring, uses, NOW + timedelta(seconds=seconds))


@pytest.fixture
def world(tmp_path: Path) -> World:
    clock = SetClock()
    store = ObservedStore(MemoryStore(), clock)
    health = Health(store)
    bus, presence, publisher = store.bus, Presence(), FakePublisher()
    blobs, stopping = BlobStore(tmp_path / "blobs"), threading.Event()
    gathering = Gathering(store, presence, bus, stopping)
    tools = RoundTools(store, bus, blobs, gathering, Parties(b""), clock, lambda n: b"\x01" * n)
    rounds = RoundRunner(tools, NoLink(), Learning("task:digits", "digits", {}))  # type: ignore[arg-type]  # it is never run
    line = LineRunner(
        store=store,
        bus=bus,
        blobs=blobs,
        build=Build(tmp_path, blobs, None, lambda asked: asked),
        publisher=publisher,
        now=clock,
        stopping=stopping,
    )
    rollouts = RolloutRunner(
        store=store, bus=bus, publisher=publisher, presence=presence, now=clock
    )
    desk = Desk(
        token=TOKEN,
        store=store,
        bus=bus,
        files=blobs,
        presence=presence,
        rounds=rounds,
        line=line,
        rollouts=rollouts,
        publisher=publisher,
        invite=invite,
        status=health.status,
    )
    return World(store, presence, publisher, blobs, desk, health)


@pytest.fixture
def api(world: World) -> Iterator[httpx.Client]:
    transport = AsgiTransport(create_app(world.desk))
    url = "http://wildflower/api/v1/"
    with httpx.Client(transport=transport, base_url=url, headers=HERE) as client:
        yield client


def require_problem(response: httpx.Response, status: int) -> dict[str, str]:
    """Check that a response is a problem (RFC 9457); return it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    found: dict[str, str] = response.json()
    assert set(found) == {"type", "title", "status", "detail", "hint"}
    return found


PATHS = [
    *("status", "devices", "trainings", "models", "releases", "rollouts", "events/log", "events"),
    *("trace/abcdef", "repository/root", "blobs/" + "0" * 64, "privacy"),
]


@pytest.mark.parametrize("shown", ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN])
def test_nothing_is_told_without_the_token(api: httpx.Client, shown: str) -> None:
    for path in PATHS:
        response = api.get(path, headers={"Authorization": shown})
        problem = require_problem(response, 401)
        assert "token" in problem["detail"]
        assert response.headers["www-authenticate"] == "Bearer"


def test_a_token_with_other_letters_than_ascii_is_refused_and_breaks_nothing(
    api: httpx.Client,
) -> None:
    shown = "Bearer é".encode("latin-1")
    require_problem(api.get("status", headers=[(b"Authorization", shown)]), 401)


def test_everybody_may_ask_whether_the_server_is_up(world: World, api: httpx.Client) -> None:
    nobody = {"Authorization": ""}
    up = api.get("http://wildflower/healthz", headers=nobody)
    assert (up.status_code, up.json()) == (200, {"ready": True})
    world.health.ready = False
    down = api.get("http://wildflower/healthz", headers=nobody)
    assert (down.status_code, down.json()) == (503, {"ready": False})


@pytest.mark.parametrize(
    "path",
    ["trainings/abcdef", "rollouts/abcdef", "trace/abcdef", "gates/abcdef", "models/abcdef/line"],
)
def test_what_does_not_exist_is_a_problem_that_names_it(api: httpx.Client, path: str) -> None:
    problem = require_problem(api.get(path), 404)
    assert "abcdef" in problem["detail"]
    assert problem["type"] == "urn:wildflower:NotFoundError"


def test_a_problem_carries_the_hint_of_its_error(world: World, api: httpx.Client) -> None:
    world.store.put(model())
    problem = require_problem(api.get("models/latest/line"), 404)
    assert problem["hint"] == f"wildflower build {digest_of('model')[:12]}"


def test_a_path_that_leads_nowhere_is_a_problem(api: httpx.Client) -> None:
    require_problem(api.get("nowhere"), 404)
    require_problem(api.delete("status"), 405)


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("tokens", {"uses": 0}, "uses"),
        ("tokens", {"ring": "a b"}, "ring"),
        ("tokens", {"rnig": "default"}, "rnig"),
        ("tokens", {"expires_s": 0}, "expires_s"),
        ("trainings", {}, "rounds"),
        ("trainings", {"rounds": 0}, "rounds"),
        ("trainings", {"rounds": 2, "settings": {"quorum": 0}}, "quorum"),
        ("trainings", {"rounds": 2, "settings": {"quorums": 3}}, "quorums"),
        ("rollouts", {"releases": [], "stages": [1000]}, "releases"),
        ("rollouts", {"releases": ["latest"], "stages": [1001]}, "stages"),
        ("releases", {"manifest": "{}"}, "metadata"),
    ],
)
def test_a_body_out_of_range_is_refused_by_the_name_of_its_key(
    world: World, api: httpx.Client, path: str, body: dict[str, object], named: str
) -> None:
    problem = require_problem(api.post(path, json=body), 422)
    assert named in problem["detail"]
    assert world.store.events() == []


def test_a_body_that_is_no_json_is_refused(api: httpx.Client) -> None:
    require_problem(api.post("tokens", content=b"{"), 422)


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "cursor=nothing"])
def test_a_page_out_of_range_is_refused(api: httpx.Client, query: str) -> None:
    assert require_problem(api.get(f"devices?{query}"), 404 if "cursor" in query else 422)


def test_status_is_what_the_server_says_of_itself(world: World, api: httpx.Client) -> None:
    world.store.bus.emit(Kind.DEVICE_ENROLLED, "d")
    told = api.get("status").json()
    assert told["ready"] is True
    assert told["last_event"] == 1
    assert told["processes"] == [{"name": "superlink", "pid": 7, "state": "running", "restarts": 0}]


def test_a_join_token_is_for_the_ring_uses_and_time_asked_for(api: httpx.Client) -> None:
    response = api.post("tokens", json={"ring": "lab", "uses": 3, "expires_s": 60})
    assert response.status_code == 201
    told = response.json()
    assert (told["token"], told["ring"], told["uses"]) == ("wf-join", "lab", 3)
    assert told["expires_at"] == "2026-11-24T12:01:00Z"


def test_a_device_is_told_with_its_connection_and_its_latest_outcome(
    world: World, api: httpx.Client
) -> None:
    told = self_report(holds=("paused: trade fair", "process 7 holds")).to_bytes()
    here = device("here", running=digest_of("artifact"), self_report=told)
    away = device("away", revoked=True, self_report=b"{}")
    world.store.put(here, away, report(here, "committed", 10), report(here, "rolled-back", 9))
    world.presence.attach(here.device_id, lambda: None)
    first, second = api.get("devices").json()["items"]
    assert (first["name"], first["connected"], first["last_outcome"]) == (
        "here",
        True,
        "committed",
    )
    assert (second["name"], second["connected"], second["last_outcome"]) == ("away", False, "")
    assert second["revoked"] is True
    assert (first["holds"], second["holds"]) == ("paused: trade fair; process 7 holds", "")


def test_pages_together_are_the_list_in_order(world: World, api: httpx.Client) -> None:
    names = [f"device-{number}" for number in range(7)]
    world.store.put(*(device(name) for name in names))
    cursor, found, sizes = "", list[str](), list[int]()
    while True:
        page = api.get("devices", params={"limit": 3, "cursor": cursor}).json()
        found += [item["name"] for item in page["items"]]
        sizes.append(len(page["items"]))
        cursor = page["next"]
        if not cursor:
            break
    assert found == names
    assert sizes == [3, 3, 1]


def test_a_list_that_fills_its_last_page_has_no_empty_one_after(
    world: World, api: httpx.Client
) -> None:
    world.store.put(*(device(f"device-{number}") for number in range(3)))
    assert api.get("devices?limit=3").json()["next"] == ""


def test_a_training_is_planned_with_what_was_asked(world: World, api: httpx.Client) -> None:
    body = {"rounds": 2, "settings": {"protection": "plain", "quorum": 4}}
    response = api.post("trainings", json=body)
    assert response.status_code == 201
    training_id = response.json()["training_id"]
    for name in (training_id, training_id[:6], "latest"):
        told = api.get(f"trainings/{name}").json()
        assert told["training_id"] == training_id
        assert (told["phase"], told["rounds"], told["secure"]) == ("planned", 2, False)
    assert [one["training_id"] for one in api.get("trainings").json()["items"]] == [training_id]


def test_a_training_tells_its_latest_recorded_model_and_its_rounds(
    world: World, api: httpx.Client
) -> None:
    key = api.post("trainings", json={"rounds": 2}).json()["training_id"]
    one = Round(
        f"{key}/1", key, 1, "recorded", "", ("a", "b"), ("a",), "m1", {"loss": 0.5}, b"", NOW
    )
    two = replace(one, round_id=f"{key}/2", number=2, phase="training", model="", metrics={})
    world.store.put(one, two)
    told = api.get("trainings/latest").json()
    assert (told["recorded"], told["model"], told["metrics"]) == (1, "m1", {"loss": 0.5})
    rounds = api.get("rounds", params={"training": key}).json()["items"]
    assert [(one["number"], one["cohort"]) for one in rounds] == [(1, ["a", "b"]), (2, ["a", "b"])]
    assert api.get("rounds").json()["items"] == rounds


def test_a_short_name_that_two_things_share_is_a_conflict(world: World, api: httpx.Client) -> None:
    world.store.put(replace(model("a"), digest="abcdef1"), replace(model("b"), digest="abcdef2"))
    assert "abcdef" in require_problem(api.get("models/abcdef/line"), 409)["detail"]


def test_a_model_is_sent_into_the_line_once(world: World, api: httpx.Client) -> None:
    world.store.put(model(), artifact("artifact"), release("release"))
    for _ in range(2):
        response = api.post("models/latest/build", json={})
        assert response.status_code == 202
    told = api.get("models/latest/line").json()
    assert told["phase"] == "model"
    assert [one["digest"] for one in told["artifacts"]] == [digest_of("artifact")]
    assert [one["digest"] for one in told["releases"]] == [digest_of("release")]
    assert [one["digest"] for one in api.get("models").json()["items"]] == [digest_of("model")]
    found = api.get("artifacts", params={"model": "latest"}).json()["items"]
    assert found == told["artifacts"] == api.get("artifacts").json()["items"]


@pytest.mark.parametrize("data", [b"", b"hello", bytes(range(256)) * 5000])
def test_a_blob_comes_back_as_it_went(api: httpx.Client, data: bytes) -> None:
    digest = hashlib.sha256(data).hexdigest()
    for _ in range(2):
        response = api.post("blobs", content=data)
        assert (response.status_code, response.json()) == (
            201,
            {"digest": digest, "length": len(data)},
        )
    assert api.get(f"blobs/{digest}").content == data
    assert api.head(f"blobs/{digest}").status_code == 200


@pytest.mark.parametrize("digest", ["0" * 64, "..", "%2e%2e%2fetc%2fpasswd", "A" * 64])
def test_what_is_no_blob_cannot_be_read(api: httpx.Client, digest: str) -> None:
    assert api.get(f"blobs/{digest}").status_code == 404


def test_a_release_signed_elsewhere_needs_its_files_first(world: World, api: httpx.Client) -> None:
    signed = manifest(order=3)
    body = {"manifest": signed.to_bytes().decode(), "metadata": "{}"}
    problem = require_problem(api.post("releases", json=body), 404)
    assert "model.onnx" in problem["detail"]
    assert "--files" in problem["hint"]
    assert world.publisher.releases == []
    assert world.blobs.put(b"model file") == digest_of("model file")
    response = api.post("releases", json=body)
    assert response.status_code == 201
    assert response.json()["role"] == "approved"
    assert response.json()["path"] == f"models/approved/digits.{AVX2}/3.json"
    assert world.blobs.read(signed.digest) == signed.to_bytes()
    assert [one["digest"] for one in api.get("releases").json()["items"]] == [signed.digest]


@pytest.mark.parametrize("statement", ["{}", ""])
def test_where_a_release_comes_from_is_brought_with_it_and_served(
    world: World, api: httpx.Client, statement: str
) -> None:
    world.blobs.put(b"model file")
    signed = manifest()
    body = {"manifest": signed.to_bytes().decode(), "metadata": "{}"}
    body |= {"statement": statement} if statement else {}
    api.post("releases", json=body)
    answer = api.get(f"releases/{signed.digest}/statement")
    assert (answer.status_code, answer.text) == (200, statement)
    require_problem(api.get(f"releases/{'0' * 64}/statement"), 404)


def test_a_signature_that_is_refused_publishes_nothing(world: World, api: httpx.Client) -> None:
    world.blobs.put(b"model file")
    world.publisher.refusal = "the metadata are signed by nobody"
    body = {"manifest": manifest().to_bytes().decode(), "metadata": "{}"}
    problem = require_problem(api.post("releases", json=body), 400)
    assert problem["detail"] == "the metadata are signed by nobody"
    assert api.get("releases").json()["items"] == []


def test_a_manifest_that_is_none_is_refused(api: httpx.Client) -> None:
    problem = require_problem(api.post("releases", json={"manifest": "{}", "metadata": "{}"}), 400)
    assert problem["type"] == "urn:wildflower:FormatError"


def test_the_metadata_of_a_role_are_served_as_published(api: httpx.Client) -> None:
    assert api.get("repository/models/approved").json() == {"signed": {}}
    require_problem(api.get("repository/models/none"), 404)


def test_a_rollout_begins_is_told_and_ends(world: World, api: httpx.Client) -> None:
    world.store.put(release("release"), device("one"))
    asked = {"releases": ["latest"], "stages": [100, 1000], "soak_s": 5}
    made = api.post("rollouts", json=asked)
    assert made.status_code == 201
    told = made.json()
    assert (told["phase"], told["stage"], told["permille"]) == ("drawing", 1, 100)
    assert told["stages"] == [100, 1000]
    assert [one["release"] for one in told["groups"]] == [digest_of("release")]
    problem = require_problem(api.post("rollouts", json=asked), 409)
    assert told["rollout_id"] in problem["hint"]
    ended = api.post("rollouts/latest/abort", json={"reason": "a bad day"}).json()
    assert ended["reason"] == "a bad day"
    assert api.get("rollouts").json()["items"] == [ended]


def test_a_rollout_of_nothing_is_not_found(api: httpx.Client) -> None:
    asked = {"releases": ["latest"], "stages": [1000]}
    assert "latest" in require_problem(api.post("rollouts", json=asked), 404)["detail"]


def test_stages_that_do_not_widen_are_refused(world: World, api: httpx.Client) -> None:
    world.store.put(release("release"))
    asked = {"releases": ["latest"], "stages": [500, 500]}
    assert "500" in require_problem(api.post("rollouts", json=asked), 409)["detail"]


def test_a_trace_leads_from_a_device_to_its_round(world: World, api: httpx.Client) -> None:
    runs = device("camera/7", running=digest_of("artifact"))
    world.store.put(runs, artifact("artifact"), model(), release("release"))
    told = api.get("trace/camera/7").json()
    assert (told["kind"], told["subject"]) == ("device", runs.device_id)
    [chain] = told["chains"]
    assert (chain["artifact"], chain["model"]) == (digest_of("artifact"), digest_of("model"))


def test_summaries_of_a_fleet_that_sent_none_are_empty(api: httpx.Client) -> None:
    assert api.get("summaries").json() == {"items": [], "next": ""}


def test_the_log_of_events_begins_after_the_number_asked_for(
    world: World, api: httpx.Client
) -> None:
    for name in "abc":
        world.store.bus.emit(Kind.DEVICE_ENROLLED, name)
    assert [one["number"] for one in api.get("events/log").json()] == [1, 2, 3]
    [only] = api.get("events/log?after=1&limit=1").json()
    assert (only["number"], only["subject"], only["kind"]) == (2, "b", "device.enrolled")
    require_problem(api.get("events/log?after=-1"), 422)


def test_an_error_that_nobody_expected_tells_nothing_of_the_inside(world: World) -> None:
    def broken() -> StatusView:
        raise RuntimeError("a secret of the inside")

    app = create_app(replace(world.desk, status=broken))
    with httpx.Client(transport=AsgiTransport(app, shows_errors=False), headers=HERE) as client:
        response = client.get("http://wildflower/api/v1/status")
    assert "secret" not in response.text
    require_problem(response, 500)


def test_the_schema_is_served_and_names_every_path(api: httpx.Client) -> None:
    paths = api.get("http://wildflower/openapi.json").json()["paths"]
    assert {"/api/v1/status", "/api/v1/events", "/api/v1/trace/{asked}"} <= set(paths)
    names = [method["operationId"] for path in paths.values() for method in path.values()]
    assert len(names) == len(set(names))


def read_events(lines: Iterator[str], count: int) -> list[tuple[int, str, str]]:
    """Return (id, event, subject) of the next events of a stream."""
    found: list[tuple[int, str, str]] = []
    fields: dict[str, str] = {}
    while len(found) < count:
        line = next(lines)
        name, _, value = line.partition(": ")
        if name:
            fields[name] = value
        elif not line and "data" in fields:
            data = json.loads(fields["data"])
            assert data["number"] == int(fields["id"])
            assert data["kind"] == fields["event"]
            found.append((int(fields["id"]), fields["event"], data["subject"]))
        if not line:
            fields = {}
    return found


def test_a_stream_of_events_goes_on_where_the_client_was_cut_off(world: World) -> None:
    bus = world.store.bus
    bus.emit(Kind.DEVICE_ENROLLED, "first")
    place = Place("127.0.0.1", 0, "test_port")
    with Listener(create_app(world.desk), place, None) as listener:
        url = f"http://127.0.0.1:{listener.port}/api/v1/"
        with httpx.Client(base_url=url, headers=HERE, trust_env=False) as client:
            with client.stream("GET", "events") as response:
                assert response.headers["content-type"].startswith("text/event-stream")
                lines = response.iter_lines()
                assert read_events(lines, 1) == [(1, "device.enrolled", "first")]
                bus.emit(Kind.DEVICE_CONNECTED, "second")  # after the stream has begun
                assert read_events(lines, 1) == [(2, "device.connected", "second")]
            bus.emit(Kind.DEVICE_DISCONNECTED, "third")  # while nobody listens
            with client.stream("GET", "events", headers={"Last-Event-ID": "2"}) as response:
                lines = response.iter_lines()
                assert read_events(lines, 1) == [(3, "device.disconnected", "third")]
                bus.close()
                assert [line for line in lines if line.startswith("id")] == []
            with client.stream("GET", "events?after=1") as response:
                assert [number for number, _, _ in read_events(response.iter_lines(), 2)] == [2, 3]
