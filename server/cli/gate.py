"""`wildflower gate`: what an artifact's gates measured."""

from dataclasses import dataclass
from typing import Annotated

import typer

from wildflower.server.api.views import GateLine
from wildflower.server.cli.remote import ServerDirectory, ServerUrl, Token, find_remote

app = typer.Typer(help="Show what an artifact's gates measured.")


@dataclass(frozen=True, slots=True)
class GateResult:
    """A gate report; the exit code is 1 if it did not pass."""

    gate_report: str
    artifact: str
    model: str
    device_class: str
    recipe: str
    passed: bool
    results: list[GateLine]
    toolchain: dict[str, str]

    @property
    def succeeded(self) -> bool:
        """Whether every gate passed."""
        return self.passed


@app.command("gate", epilog="Example: wildflower gate 3f9a0c")
def gate(
    artifact: Annotated[
        str, typer.Argument(help="Digest of an artifact or a gate report, or its beginning.")
    ],
    *,
    server: ServerUrl = "",
    token: Token = "",
    directory: ServerDirectory = None,
) -> GateResult:
    """Show the gates of an artifact: value, budget, verdict, and how the value was come by."""
    found = find_remote(server, token, directory).gate(artifact)
    return GateResult(
        gate_report=found.gate_report,
        artifact=found.artifact,
        model=found.model,
        device_class=found.device_class,
        recipe=found.recipe,
        passed=found.passed,
        results=found.results,
        toolchain=found.toolchain,
    )
