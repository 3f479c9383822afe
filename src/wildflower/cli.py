"""The `wildflower` command: one line per group, each imported only when it is called for.

A group may be fed by two rooms (`device` is: the server invites, the device enrols). Where the
packages that a room needs are missing, the group is one line that says what to install.
"""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import click
import typer
import typer.core

from wildflower.console import complain, present_all, wants_json
from wildflower.logs import LogFormat, configure_logging


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in `wildflower --help`.

    Attributes:
        summary: What it is for, in one line.
        sources: `module:attribute` of the typer applications that make it up.
        needs: A package that the room imports; the entry is a hint while it is missing.
        extra: The extra that brings `needs`.
    """

    summary: str
    sources: tuple[str, ...]
    needs: str = ""
    extra: str = ""


SERVER: Final = {"needs": "sqlmodel", "extra": "server"}
ENTRIES: Final[dict[str, Entry]] = {
    "demo": Entry(
        "Run the whole loop on this machine.",
        ("wildflower.simulation.cli.demo:app",),
        needs="matplotlib",
        extra="all",
    ),
    "doctor": Entry("Check what this machine can do.", ("wildflower.doctor:app",)),
    "server": Entry(
        "Set up, run and inspect the server.", ("wildflower.server.cli.server:app",), **SERVER
    ),
    "local": Entry(
        "A real server and agents as processes of this machine.",
        ("wildflower.simulation.cli.local:app",),
        needs="matplotlib",
        extra="all",
    ),
    "device": Entry(
        "Invite and enrol devices.",
        ("wildflower.server.cli.device:app", "wildflower.client.cli.device:app"),
    ),
    "agent": Entry("Run and inspect a device's agent.", ("wildflower.client.cli.agent:app",)),
    "round": Entry("Start and follow training rounds.", ("wildflower.server.cli.round:app",)),
    "build": Entry(
        "Build a model's artifacts for the device classes.", ("wildflower.server.cli.build:app",)
    ),
    "gate": Entry("Show what an artifact's gates measured.", ("wildflower.server.cli.gate:app",)),
    "sign": Entry("Sign a release with offline keys.", ("wildflower.server.cli.sign:app",)),
    "rollout": Entry(
        "Bring a release to devices, in stages.", ("wildflower.server.cli.rollout:app",)
    ),
    "fleet": Entry("Show the devices and what they run.", ("wildflower.server.cli.fleet:app",)),
    "trace": Entry(
        "Follow anything back to its round and on to its devices.",
        ("wildflower.server.cli.trace:app",),
    ),
    "simulate": Entry(
        "Train with a simulated fleet, in this process.",
        ("wildflower.simulation.cli.simulate:app",),
        needs="matplotlib",
        extra="all",
    ),
    "version": Entry("Show the version.", ("wildflower.doctor:version_app",)),
}


class LazyGroup(typer.core.TyperGroup):
    """The top of the command tree; it knows names and summaries without importing a room."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        """Return the names in the order in which a new user needs them."""
        return list(ENTRIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import one entry's rooms and merge what they bring."""
        entry = ENTRIES.get(cmd_name)
        if entry is None:
            return None
        if entry.needs and importlib.util.find_spec(entry.needs) is None:
            return _hint(cmd_name, entry)
        return _merge(cmd_name, entry)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the summaries without importing what they summarise."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in ENTRIES.items()])


def _hint(name: str, entry: Entry) -> click.Command:
    sentence = f"`wildflower {name}` needs more: pip install 'wildflower[{entry.extra}]'"

    def refuse() -> None:
        raise click.ClickException(sentence)

    return click.Command(
        name,
        callback=click.pass_context(lambda _ctx, **_: refuse()),
        help=sentence,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )


def _merge(name: str, entry: Entry) -> click.Command:
    parts = []
    for source in entry.sources:
        module, _, attribute = source.partition(":")
        application = getattr(importlib.import_module(module), attribute)
        present_all(application)
        parts.append(typer.main.get_command(application))
    first = parts[0]
    first.name = name
    first.help = first.help or entry.summary
    for other in parts[1:]:
        if isinstance(first, click.Group) and isinstance(other, click.Group):
            for child, command in other.commands.items():
                first.add_command(command, child)
    return first


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Federated learning with an over-the-air backbone: rounds, releases, devices, one loop.",
    epilog="Example: wildflower demo --dir .demo",
)


@app.callback()
def settings(
    *,
    log_format: Annotated[
        LogFormat, typer.Option(help="How log lines are written to stderr.")
    ] = LogFormat.TEXT,
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, help="Log more; twice for everything.")
    ] = 0,
) -> None:
    """Set what all commands share."""
    configure_logging(log_format, verbosity=verbose)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with a code that tells the truth.

    0: done. 1: refused or failed, with the reason. 2: the call itself was wrong. 130: Ctrl-C.
    """
    argv = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = app(args=argv, prog_name="wildflower", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else error.format_message())
        sys.exit(2)
    except click.ClickException as error:
        sys.exit(complain(error, as_json=wants_json(argv)))
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except Exception as error:  # noqa: BLE001  the outermost edge: everything is told, then exits
        sys.exit(complain(error, as_json=wants_json(argv)))
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
