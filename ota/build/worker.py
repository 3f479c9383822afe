"""The build as a child process: `python -m wildflower.ota.build.worker`.

One JSON request on stdin, one JSON answer on stdout, progress on stderr; exit code 1 with an error.
The parent sets the time limit. A model is somebody's code and an exporter is a large library: a
crash or a leak in either ends here and not in the server.

    {"app": "module:task", "model": "m.safetensors", "proxy": "proxy.npz",
     "classes": ["linux-generic"], "store": "cache/", "out": "out/",
     "earlier": {"linux-generic": ["oldest.ort", "newest.ort"]}}

The task is found by the function that `--finder` names, because a room of the package does not
import the one beside it; the default is the package's own.
"""

import argparse
import dataclasses
import json
import logging
import os
import pkgutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from wildflower.logs import LogFormat, configure_logging
from wildflower.ota import canonical
from wildflower.ota.build.builder import Buildable, Builder, BuiltArtifact, Proxy
from wildflower.ota.build.deltas import deltas_to
from wildflower.ota.build.gates import Budgets
from wildflower.ota.build.store import BuildStore
from wildflower.ota.errors import FormatError

log = logging.getLogger("wildflower.ota.build.worker")  # run as a module, its name is __main__

FINDER: Final = "wildflower.strategies.task:find_task"
MAX_REQUEST: Final = 64 * 1024  # bytes; a request holds names of files, never what is in them

OPTIONAL: Final = ("budgets", "earlier")

FindTask = Callable[[str], Buildable]


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What to build.

    Attributes:
        app: Reference of the task.
        model: Path of the global model's safetensors file.
        proxy: Path of the operator's labelled rows, `.npz`.
        classes: Names of the device classes.
        store: Directory of the build cache.
        out: Directory that the files go to, one folder per class.
        budgets: Budgets that differ from the defaults.
        earlier: By class, the artifacts that devices may have, the oldest first: to follow the
            last one, and for deltas.
    """

    app: str
    model: Path
    proxy: Path
    classes: tuple[str, ...]
    store: Path
    out: Path
    budgets: Budgets
    earlier: Mapping[str, tuple[Path, ...]]

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Parse a request.

        Raises:
            FormatError: Not a request; names the key, what it must be, and what was found.
        """
        try:
            document = json.loads(data[: MAX_REQUEST + 1])
        except (ValueError, RecursionError) as error:
            raise FormatError(f"build request: not JSON: {error}") from error
        if not isinstance(document, dict):
            raise FormatError(f"build request: expected an object, found {document!r:.80}")
        names = {field.name for field in dataclasses.fields(cls)}
        unknown, missing = {*document} - names, names - {*document, *OPTIONAL}
        if unknown or missing:
            raise FormatError(
                f"build request: unknown keys {sorted(unknown)}, missing {sorted(missing)}"
            )
        classes = document["classes"]
        if not isinstance(classes, list) or not classes:
            raise FormatError(f"build request: classes must be a list of names, found {classes!r}")
        return cls(
            app=_text(document, "app"),
            model=Path(_text(document, "model")),
            proxy=Path(_text(document, "proxy")),
            classes=tuple(_text({"classes": name}, "classes") for name in classes),
            store=Path(_text(document, "store")),
            out=Path(_text(document, "out")),
            budgets=_budgets(document.get("budgets", {})),
            earlier=_earlier(document.get("earlier", {})),
        )


def answer(request: BuildRequest, find_task: FindTask) -> dict[str, Any]:
    """Build what was asked for and return the answer's JSON.

    Raises:
        OtaError: The model cannot become an artifact, or a file is not what it should be.
    """
    proxy = _read_proxy(request.proxy)
    try:
        model = request.model.read_bytes()
    except OSError as error:
        raise FormatError(f"the model cannot be read: {error}") from error
    builder = Builder(
        find_task(request.app), proxy, BuildStore(request.store), budgets=request.budgets
    )
    earlier = {name: _read(paths) for name, paths in request.earlier.items()}
    previous = {name: files[-1] for name, files in earlier.items() if files}
    built = builder.build(model, request.classes, previous)
    return {
        "artifacts": [_answered(one, request, earlier.get(one.device_class, ())) for one in built]
    }


def _answered(
    one: BuiltArtifact, request: BuildRequest, earlier: Sequence[bytes]
) -> dict[str, Any]:
    """Write an artifact's files and deltas and return its part of the answer."""
    directory = request.out / one.device_class
    answered = _written(one, directory)
    deltas = deltas_to(one.model, earlier, BuildStore(request.store))
    answered["deltas"] = [
        {"base": made.base, **_file(directory / f"{made.base}.delta", made.data)} for made in deltas
    ]
    return answered


def serve(data: bytes, find_task: Callable[[], FindTask]) -> tuple[dict[str, Any], int]:
    """Return the answer to a request and the exit code; every failure becomes an answer."""
    try:
        return answer(BuildRequest.from_json(data), find_task()), 0
    except Exception as error:  # whatever a model's code raises
        log.exception("build failed")
        told = {"type": type(error).__name__, "message": str(error)}
        return {"error": told | {"hint": str(getattr(error, "hint", ""))}}, 1


def main() -> int:
    """Serve one request; returns the exit code."""
    parser = argparse.ArgumentParser(prog="wildflower.ota.build.worker", description=__doc__)
    parser.add_argument("--finder", default=FINDER, help="module:function that finds the task")
    options = parser.parse_args()
    with _answer_channel() as channel:
        configure_logging(LogFormat.TEXT, verbosity=1)
        _limit_threads()
        request = sys.stdin.buffer.read(MAX_REQUEST + 1)
        told, code = serve(request, lambda: pkgutil.resolve_name(options.finder))
        channel.write(json.dumps(told).encode())
    return code


def _answer_channel() -> Any:
    """Return stdout, and let everything else that prints go to stderr."""
    channel = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return channel


def _limit_threads() -> None:
    """One thread: two are four times slower on a busy host of two cores."""
    import torch

    torch.set_num_threads(1)


def _read_proxy(path: Path) -> Proxy:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Proxy(arrays["inputs"].astype(np.float32, copy=False), arrays["targets"])
    except (OSError, ValueError, KeyError) as error:
        raise FormatError(
            f"the proxy set {path} is no .npz with inputs and targets: {error}"
        ) from error


def _written(one: BuiltArtifact, directory: Path) -> dict[str, Any]:
    """Write an artifact's files and return its part of the answer."""
    directory.mkdir(parents=True, exist_ok=True)
    model = _file(directory / one.recipe.file_name, one.model)
    report = _file(directory / "gate-report.json", one.report.to_bytes())
    return {
        "device_class": one.device_class,
        "recipe": one.recipe.name,
        "file_name": one.recipe.file_name,
        **model,
        "golden": _file(directory / "golden.npz", one.golden),
        "baseline": _file(directory / "baseline.json", one.baseline),
        "gate_report": report,
        "passed": one.report.passed,
        "failures": list(one.report.failures),
        "requires": dataclasses.asdict(one.requires),
        "trial": dataclasses.asdict(one.trial),
        "cached": one.is_cached,
    }


def _file(path: Path, data: bytes) -> dict[str, Any]:
    path.write_bytes(data)
    return {"path": str(path), "digest": canonical.digest(data), "length": len(data)}


def _read(paths: Sequence[Path]) -> list[bytes]:
    """Return the files that can be read: a release needs none of them."""
    found = []
    for path in paths:
        try:
            found.append(path.read_bytes())
        except OSError as error:
            log.warning("no delta from %s: %s", path, error)
    return found


def _text(document: dict[str, Any], name: str) -> str:
    value = document[name]
    if not isinstance(value, str) or not value or "\0" in value:
        raise FormatError(f"build request: {name} must be text, found {value!r:.80}")
    return value


def _earlier(given: Any) -> Mapping[str, tuple[Path, ...]]:
    if not isinstance(given, dict) or not all(isinstance(one, list) for one in given.values()):
        raise FormatError(f"build request: earlier must be lists by class, found {given!r:.200}")
    return {
        name: tuple(Path(_text({"earlier": path}, "earlier")) for path in paths)
        for name, paths in given.items()
    }


def _budgets(given: Any) -> Budgets:
    known = {field.name for field in dataclasses.fields(Budgets)}
    is_numbers = isinstance(given, dict) and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in given.values()
    )
    if not is_numbers or not {*given} <= known:
        raise FormatError(
            f"build request: budgets must be numbers, found {given!r:.200}",
            hint=f"Known: {', '.join(sorted(known))}.",
        )
    return Budgets(**given)


if __name__ == "__main__":
    sys.exit(main())
