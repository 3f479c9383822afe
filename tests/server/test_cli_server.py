"""The operator's commands: what they print, that it keeps its schema, and how they fail."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tests.operator_fakes import OperatedServer, operated_server
from tests.record_fakes import digest_of

from wildflower.cli import main
from wildflower.ota.release.manifest import Release
from wildflower.server.records import Device, ReleaseRecord, Rollout

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OperatedServer]:
    with operated_server(tmp_path / "server") as made:
        yield made


def answer_of(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([*words, "--format", "json"])
    found = json.loads(capsys.readouterr().out)
    return int(caught.value.code or 0), found


@pytest.fixture
def run(
    server: OperatedServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Run:
    """Run a command against the server; check that its output keeps its schema."""
    monkeypatch.setenv("WILDFLOWER_SERVER_DIR", str(server.directory))

    def run(words: str, *more: str, code: int = 0) -> dict[str, Any]:
        found, answer = answer_of(capsys, *words.split(), *more)
        assert found == code, answer
        assert answer["success"] is (code == 0)
        if "error" not in answer:
            with pytest.raises(SystemExit):
                main([*words.split(), *more, "--schema"])
            jsonschema.validate(answer, json.loads(capsys.readouterr().out))
        return answer

    return run


def trained(run: Run, rounds: int = 1, *more: str) -> dict[str, Any]:
    return run("round start --plain --wait --rounds", str(rounds), *more)


def published(run: Run) -> dict[str, Any]:
    trained(run)
    return run("build latest --wait")


def test_the_server_s_status_is_shown(run: Run) -> None:
    told = run("server status")
    assert (told["ready"], told["devices"], told["profile"]) == (True, 4, "demo")


def test_a_device_is_invited(run: Run) -> None:
    told = run("device invite --uses 3 --ring lab --hours 1")
    assert (told["token"], told["uses"], told["ring"]) == ("wf1.token", 3, "lab")


@pytest.mark.parametrize("way", ["--set bits=16 --set adversary=semi-malicious", "--plain"])
def test_a_training_is_followed_to_its_end(run: Run, way: str) -> None:
    told = run(f"round start --rounds 2 --wait --seed 1 {way}")
    training, rounds = told["training"], told["rounds"]
    assert (training["phase"], training["recorded"]) == ("finished", 2)
    assert training["secure"] is (way != "--plain")
    assert [one["number"] for one in rounds] == [1, 2]
    assert all(len(one["survivors"]) == 4 for one in rounds)
    assert rounds[-1]["metrics"]["accuracy"] == pytest.approx(0.75, abs=1e-3)
    assert training["model"] == rounds[-1]["model"]
    [listed] = run("round ls")["trainings"]
    assert listed == training
    shown = run("round show", training["training_id"][:8])
    assert (shown["training"], shown["rounds"]) == (training, rounds)


def test_a_training_that_is_not_waited_for_is_planned(run: Run) -> None:
    told = run("round start --rounds 1")
    assert told["training"]["phase"] in ("planned", "running", "finished")


def test_a_training_below_its_quorum_fails_with_the_reason(run: Run) -> None:
    told = run("round start --plain --wait --quorum 5 --rounds 1", code=1)
    assert told["training"]["phase"] == "aborted"
    assert "Only 4 devices could be drawn; the quorum is 5." in told["training"]["reason"]
    shown = run("round show latest")  # that it was aborted is no failure to show it
    assert shown["rounds"][0]["phase"] == "aborted"


def test_a_setting_out_of_range_is_refused_by_name(run: Run) -> None:
    told = run("round start --quorum 2000000", code=1)
    assert "quorum" in told["error"]["message"]


def test_a_model_is_built_gated_signed_and_published(run: Run, server: OperatedServer) -> None:
    told = published(run)
    assert (told["phase"], told["reason"]) == ("published", "")
    [artifact], [release] = told["artifacts"], told["releases"]
    assert release["artifact"] == artifact["digest"]
    assert (release["order"], release["role"]) == (1, "auto")
    gates = run("gate", artifact["digest"][:10])
    assert (gates["passed"], gates["artifact"]) == (True, artifact["digest"])
    assert {one["gate"]: one["verdict"] for one in gates["results"]} == {
        "parity": "passed",
        "size": "passed",
        "accuracy": "passed",
    }
    assert run("gate", artifact["gate_report"])["gate_report"] == artifact["gate_report"]
    assert run("build latest")["phase"] == "published"
    assert len(server.store.all(ReleaseRecord)) == 1


def test_a_model_that_fails_its_gates_says_which(run: Run, server: OperatedServer) -> None:
    server.worker.size = 2.0
    trained(run)
    told = run("build latest --wait", code=1)
    assert told["phase"] == "failed"
    assert "size is 2, must be at most 1" in told["reason"]
    gates = run("gate", told["artifacts"][0]["digest"], code=1)
    assert gates["passed"] is False


def test_a_rollout_reaches_every_device_stage_by_stage(run: Run, server: OperatedServer) -> None:
    release = published(run)["releases"][0]
    told = run("rollout create --stages 250,1000 --wait")["rollout"]
    assert (told["phase"], told["stage"], told["stages"]) == ("done", 2, [250, 1000])
    [group] = told["groups"]
    assert (group["reach"], group["committed"], group["failed"]) == (4, 4, 0)
    assert group["release"] == release["digest"]
    assert run("rollout show latest")["rollout_id"] == told["rollout_id"]
    assert [one["phase"] for one in run("rollout ls")["rollouts"]] == ["done"]
    fleet = run("fleet ls")
    assert {one["running"] for one in fleet["devices"]} == {release["artifact"]}
    assert {one["last_outcome"] for one in fleet["devices"]} == {"committed"}
    [chain] = run("trace device-0")["chains"]
    assert (chain["release"], chain["model"]) == (release["digest"], release["model"])
    assert len(server.store.all(Rollout)) == 1


def test_a_rollout_of_a_bad_release_stops_at_the_canary(run: Run, server: OperatedServer) -> None:
    published(run)
    server.fleet.outcome = "rolled-back"
    told = run("rollout create --stages 250,1000 --wait", code=1)["rollout"]
    assert (told["phase"], told["stage"]) == ("aborted", 1)
    assert "failures" in told["reason"]
    running = [one.running for one in server.store.all(Device)]
    assert running == [""] * 4


def test_an_aborted_rollout_says_why(run: Run, server: OperatedServer) -> None:
    published(run)
    server.fleet.outcome = ""  # nobody reports: the stage waits
    made = run("rollout create --stages 250")["rollout"]
    again = run("rollout create --wait --stages 250", code=1)
    assert "reaches" in again["error"]["message"]
    assert made["rollout_id"] in again["error"]["hint"]
    told = run("rollout abort", made["rollout_id"][:8], "--reason", "wrong labels", "--keep")
    assert told["reason"] == "wrong labels"


@pytest.mark.parametrize("stages", ["250;1000", "", "x"])
def test_stages_that_are_no_numbers_are_refused(run: Run, stages: str) -> None:
    told = run("rollout create --stages", stages, code=1)
    assert "expected numbers" in told["error"]["message"]


def test_what_is_not_known_cannot_be_traced(run: Run) -> None:
    told = run("trace nosuchthing", code=1)
    assert told["error"]["type"] == "RemoteError"
    assert "nosuchthing" in told["error"]["message"]
    assert told["error"]["hint"]


def keys_of(server: OperatedServer) -> str:
    return str(next(server.directory.glob("keys/**/approved-1.pem")).parent)


def test_people_approve_a_published_release(run: Run, server: OperatedServer) -> None:
    release = published(run)["releases"][0]
    told = run("sign --release", release["digest"][:12], "--keys", keys_of(server))
    assert (told["order"], told["signatures"]) == (2, 2), "an order is used once"
    assert told["path"] == f"models/approved/{release['target_group']}/2.json"
    approved = server.store.get(ReleaseRecord, told["release"])
    assert approved is not None
    assert (approved.role, approved.artifact) == ("approved", release["artifact"])
    assert told["path"].encode() in server.fleet.publisher.current("models/approved")


@pytest.fixture
def manifest(run: Run, server: OperatedServer, tmp_path: Path) -> Path:
    """A manifest with a file that the server does not have."""
    release = published(run)["releases"][0]
    known = Release.from_bytes(server.blobs.read(release["digest"]))
    golden = replace(known.file("golden"), digest=digest_of("other golden"), length=12)
    files = (known.artifact, golden, known.file("baseline"))
    changed = replace(known, files=files)
    (tmp_path / "manifest.json").write_bytes(changed.to_bytes())
    return tmp_path / "manifest.json"


def test_a_manifest_brings_its_files(run: Run, server: OperatedServer, manifest: Path) -> None:
    keys = ("--keys", keys_of(server))
    refused = run("sign", str(manifest), *keys, code=1)
    assert "golden.npz" in refused["error"]["message"]
    assert "--files" in refused["error"]["hint"]
    folder = manifest.parent / "files"
    folder.mkdir()
    missing = run("sign", str(manifest), *keys, "--files", str(folder), code=1)
    assert "golden.npz cannot be read" in missing["error"]["message"]
    (folder / "golden.npz").write_bytes(b"not the one")
    wrong = run("sign", str(manifest), *keys, "--files", str(folder), code=1)
    assert "is not the manifest's golden" in wrong["error"]["message"]
    (folder / "golden.npz").write_bytes(b"other golden")
    assert run("sign", str(manifest), *keys, "--files", str(folder))["order"] == 2
    assert server.blobs.read(digest_of("other golden")) == b"other golden"


def test_one_signature_of_two_is_refused(run: Run, server: OperatedServer, tmp_path: Path) -> None:
    release = published(run)["releases"][0]
    alone = tmp_path / "alone"
    alone.mkdir()
    key = Path(keys_of(server)) / "approved-1.pem"
    (alone / key.name).write_bytes(key.read_bytes())
    (alone / key.name).chmod(0o600)
    told = run("sign --release", release["digest"], "--keys", str(alone), code=1)
    assert "models/approved" in told["error"]["message"]
    assert [one.role for one in server.store.all(ReleaseRecord)] == ["auto"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("sign", "nothing to sign"),
        ("sign nowhere.json", "nowhere.json cannot be read"),
        ("sign --release 123456", "0 releases begin with"),
    ],
)
def test_what_cannot_be_signed_is_told(
    run: Run, server: OperatedServer, words: str, sentence: str
) -> None:
    told = run(words, "--keys", keys_of(server), code=1)
    assert sentence in told["error"]["message"]


def test_without_keys_nothing_is_signed(run: Run, tmp_path: Path) -> None:
    told = run("sign nowhere.json --keys", str(tmp_path), code=1)
    assert "approved-*.pem" in told["error"]["message"]


INIT = ("server", "init", "--free-ports")


def test_a_server_is_set_up_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ("--dir", str(tmp_path / "new"))
    task = str(Path(__file__).parents[2] / "examples" / "own-task" / "task.py")
    learn = ("--app", task, "--proxy-data", "proxy.npz", "--profile", "demo", "--name", "localhost")
    code, told = answer_of(capsys, *INIT, *place, *learn)
    assert code == 0, told
    with pytest.raises(SystemExit):
        main([*INIT, "--schema"])
    jsonschema.validate(told, json.loads(capsys.readouterr().out))
    assert told["enrol_url"].startswith("https://localhost:")
    assert "offline keys" in told["notes"][0]
    settings = (tmp_path / "new" / "server.toml").read_text()
    assert 'model_name = "small-digits"' in settings, "the task's own name"
    assert str(Path("proxy.npz").absolute()) in settings
    code, told = answer_of(capsys, *INIT, *place)
    assert (code, told["error"]["type"]) == (1, "ConflictError")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--model-name", "mine"), 'model_name = "mine"'),
        (("--app", "examples/flower-app"), 'model_name = "flower-app"'),
        ((), 'app = ""'),
    ],
)
def test_what_is_learned_is_written_down(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], line: str
) -> None:
    assert answer_of(capsys, *INIT, "--dir", str(tmp_path / "new"), *options)[0] == 0
    assert line in (tmp_path / "new" / "server.toml").read_text()


def test_a_server_that_cannot_start_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, told = answer_of(capsys, "server", "up", "--dir", str(tmp_path))
    assert (code, told["error"]["type"]) == (1, "SettingsError")
    assert "wildflower server init" in told["error"]["hint"]
