"""The operator's connection to a SuperLink: nodes, runs, and the app that a run names.

Flower's open-source Control API asks for no credentials: the SuperLink must listen on loopback
only. Acquiring a run's task is protected by the superexec secret, a file of the operator.
"""

import functools
import hashlib
import json
import ssl
import threading
import time
import warnings
from collections.abc import Mapping
from typing import Final, Self

from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
)
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import SuperExecAuthHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient

from wildflower.strategies.errors import LinkRefusedError, UnreachableError
from wildflower.strategies.flower_compat.transport import call

ACQUIRE: Final = "/flwr.proto.Runtime/AcquireTask"

PATIENCE_S: Final = 20.0
"""How long a SuperLink that restarts is waited for, in seconds."""

PYPROJECT: Final = """\
[project]
name = "{name}"
version = "1.0.0"
description = "Names the apps that are installed; holds no code."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "wildflower"
fab-format-version = 0

[tool.flwr.app.components]
serverapp = "{server}"
clientapp = "{client}"

[tool.flwr.app.config]
"""


@functools.cache
def build_fab(
    name: str, *, server: str, client: str, config: tuple[tuple[str, str | int | float], ...] = ()
) -> bytes:
    """Return a Flower app bundle (FAB) without code: it names modules that are installed.

    Args:
        name: The app's name: letters, digits, "-".
        server: Reference of the ServerApp, `package.module:attribute`.
        client: Reference of the ClientApp.
        config: The run config's keys and defaults; a run can set no others.

    Returns:
        The bundle; equal arguments give equal bytes.
    """
    text = PYPROJECT.format(name=name, server=server, client=client)
    text += "".join(f"{key} = {json.dumps(value)}\n" for key, value in config)
    with warnings.catch_warnings():  # it uses a name that a newer pathspec deprecates
        warnings.simplefilter("ignore", DeprecationWarning)
        fab, _ = build_fab_from_files({"pyproject.toml": text.encode()})
    return fab


class SuperLink:
    """A SuperLink as its operator sees it; safe to use from several threads."""

    def __init__(self, address: str, *, ca_pem: bytes, secret: bytes) -> None:
        """Prepare the connection; nothing is sent.

        Args:
            address: Where it listens, `host:port`.
            ca_pem: Certificate that its TLS certificate is signed by, PEM.
            secret: The superexec secret; lets us acquire the task of a run.
        """
        self.address, self.ca_pem = address, ca_pem
        tls = ssl.create_default_context(cadata=ca_pem.decode("ascii"))
        self._control = ControlHttpClient(f"https://{address}", verify=tls)
        guard = SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=[ACQUIRE])
        self._runtime = RuntimeHttpClient(f"https://{address}", verify=tls, interceptors=[guard])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._control.close()
        self._runtime.close()

    def nodes(self) -> Mapping[str, int]:
        """Return the node ids of the registered nodes, by public key in PEM.

        Raises:
            LinkError: The SuperLink does not answer, or refuses.
        """
        answer = call(self._control.ListNodes, ListNodesRequest(), patience_s=PATIENCE_S)
        return {
            info.public_key.decode().strip(): info.node_id
            for info in answer.nodes_info
            if info.status != "unregistered"
        }

    def register(self, public_key_pem: str) -> int:
        """Let the holder of a key connect; return its node id. Repeating it changes nothing.

        Raises:
            LinkError: The SuperLink does not answer, or refuses the key.
        """
        request = RegisterNodeRequest(public_key=public_key_pem.encode())
        try:
            return call(self._control.RegisterNode, request, patience_s=PATIENCE_S).node_id
        except LinkRefusedError:
            known = self.nodes().get(public_key_pem.strip())
            if known is None:
                raise
            return known

    def start_run(self, fab: bytes) -> int:
        """Start a run of an app; return the run's id.

        Raises:
            LinkError: The SuperLink does not answer, or refuses.
        """
        bundle = fab_to_proto(Fab(hashlib.sha256(fab).hexdigest(), fab, {}))
        answer = call(self._control.StartRun, StartRunRequest(fab=bundle), patience_s=PATIENCE_S)
        if not answer.run_id:
            raise LinkRefusedError("the SuperLink started no run")
        return answer.run_id

    def stop_run(self, run_id: int) -> None:
        """Stop a run.

        Raises:
            RunEndedError: It has ended already.
            LinkError: The SuperLink does not answer, or refuses.
        """
        call(self._control.StopRun, StopRunRequest(run_id=run_id), patience_s=PATIENCE_S)

    def runs(self) -> Mapping[int, str]:
        """Return each run's status, such as "running" or "finished:completed".

        Raises:
            LinkError: The SuperLink does not answer, or refuses.
        """
        answer = call(self._control.ListRuns, ListRunsRequest(), patience_s=PATIENCE_S)
        return {
            run_id: f"{run.status.status}:{run.status.sub_status}".rstrip(":")
            for run_id, run in answer.run_dict.items()
        }

    def acquire(self, run_id: int, *, timeout_s: float = PATIENCE_S) -> str:
        """Take over the server's half of a run; return the token of its task.

        The SuperLink hands out the oldest waiting task. One of another run can only be left over
        from a process that died: nobody will come for it, and its run ends when it is not begun.

        Raises:
            UnreachableError: There is no such task in time.
            LinkError: The SuperLink does not answer, or refuses the secret.
        """
        end = time.monotonic() + timeout_s
        request = AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
        while time.monotonic() < end:
            answer = call(self._runtime.AcquireTask, request, patience_s=PATIENCE_S)
            if answer.token and answer.task.run_id == run_id:
                return answer.token
            if not answer.token:
                threading.Event().wait(0.05)
        raise UnreachableError(f"the task of run {run_id} did not appear in {timeout_s:g} s")
