"""`wildflower demo`: the whole loop, once around, on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from wildflower.simulation.local.demo import DemoResult, run_demo

app = typer.Typer()


@app.command("demo", epilog="Example: wildflower demo --dir .demo")
def demo(
    *,
    directory: Annotated[
        Path, typer.Option("--dir", help="Where everything goes; emptied first if it is ours.")
    ] = Path(".demo"),
    devices: Annotated[int, typer.Option(min=3, max=32, help="Agents to start.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, max=20, help="Training rounds.")] = 3,
) -> DemoResult:
    """Run the whole loop: enrol, train, build, sign, roll out, watch, refuse, trace.

    Every step is real: processes, TLS, secure aggregation, TUF, ONNX Runtime, a database. The
    exit code is 0 only if every step held. The report with plots is DIR/report.html.
    """
    return run_demo(directory, devices=devices, rounds=rounds)
