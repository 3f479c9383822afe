"""The `wildflower` command: one line per group, each imported only when it is called for.

A group may be fed by two rooms (`device` is: the server invites, the device enrols). Where the
packages that a room needs are missing, the group is one line that says what to install.
"""

import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import click
import typer
import typer.core
from click.shell_completion import CompletionItem
from typer.models import ArgumentInfo

from wildflower import __version__
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
    "helper": Entry("Run a helper of one-shot aggregation.", ("wildflower.server.cli.helper:app",)),
    "keyholder": Entry(
        "Hold the keys of homomorphic rounds, away from the server.",
        ("wildflower.server.cli.keyholder:app",),
        needs="tenseal",
        extra="server",
    ),
    "device": Entry(
        "Invite and enrol devices.",
        ("wildflower.server.cli.device:app", "wildflower.client.cli.device:app"),
    ),
    "agent": Entry(
        "Run and inspect a device's agent.",
        (
            "wildflower.client.cli.agent:app",
            "wildflower.client.cli.inspect:app",
            "wildflower.client.cli.owner:app",
            "wildflower.client.cli.serve:app",
        ),
    ),
    "round": Entry("Start and follow training rounds.", ("wildflower.server.cli.round:app",)),
    "build": Entry(
        "Build a model's artifacts for the device classes.", ("wildflower.server.cli.build:app",)
    ),
    "gate": Entry("Show what an artifact's gates measured.", ("wildflower.server.cli.gate:app",)),
    "keys": Entry("Make, rotate and revoke signing keys.", ("wildflower.server.cli.keys:app",)),
    "sign": Entry("Sign a release with offline keys.", ("wildflower.server.cli.sign:app",)),
    "software": Entry(
        "Sign files other than models, and show them.", ("wildflower.server.cli.software:app",)
    ),
    "rollout": Entry(
        "Bring a release to devices, in stages.", ("wildflower.server.cli.rollout:app",)
    ),
    "bundle": Entry(
        "Carry releases to devices without a network, and reports back.",
        ("wildflower.server.cli.bundle:app", "wildflower.client.cli.bundle:app"),
    ),
    "cache": Entry(
        "Serve releases to a LAN that fetches them once.", ("wildflower.client.cli.cache:app",)
    ),
    "fleet": Entry("Show the devices and what they run.", ("wildflower.server.cli.fleet:app",)),
    "strategies": Entry(
        "Show what can be combined, and why not.", ("wildflower.strategies.cli:app",)
    ),
    "privacy": Entry(
        "Show and plan what training costs in privacy.", ("wildflower.server.cli.privacy:app",)
    ),
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


COMPLETION: Final = ("install_completion", "show_completion")
"""Parameters that typer gives to the top of every application."""


class PlainFormatter(click.HelpFormatter):
    """Help as plain text: typer escapes brackets for rich, which does not write our help."""

    def write_dl(
        self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2
    ) -> None:
        """Write two columns, brackets as they are."""
        plain = [(name, text.replace("\\[", "[")) for name, text in rows]
        super().write_dl(plain, col_max, col_spacing)


class PlainContext(click.Context):
    """A context whose help is plain text."""

    formatter_class = PlainFormatter


class LazyGroup(typer.core.TyperGroup):
    """The top of the command tree; it knows names and summaries without importing a room."""

    context_class = PlainContext

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        """Return the names in the order in which a new user needs them."""
        return list(ENTRIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import one entry's rooms and merge what they bring."""
        entry = ENTRIES.get(cmd_name)
        if entry is None:
            return None
        return _hint(cmd_name, entry) if is_missing(entry) else _merge(cmd_name, entry)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or name the nearest one."""
        name = args[0] if args else ""
        if name not in ENTRIES and not name.startswith("-") and not ctx.resilient_parsing:
            near = difflib.get_close_matches(name, ENTRIES, n=1)
            question = f" Did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"No such command {name!r}.{question}", ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the summaries without importing what they summarise."""
        with formatter.section("Commands"):
            formatter.write_dl(
                [
                    (name, install_line(entry) if is_missing(entry) else entry.summary)
                    for name, entry in ENTRIES.items()
                ]
            )

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete a name without importing what it names."""
        names = [
            CompletionItem(name, help=entry.summary)
            for name, entry in ENTRIES.items()
            if name.startswith(incomplete)
        ]
        return names + click.Command.shell_complete(self, ctx, incomplete)


def is_missing(entry: Entry) -> bool:
    """Whether a package that the entry needs is not installed."""
    return bool(entry.needs) and importlib.util.find_spec(entry.needs) is None


def install_line(entry: Entry) -> str:
    """Return what to install for an entry, in one line."""
    return f"needs {entry.needs}: pip install 'wildflower[{entry.extra}]'"


def _hint(name: str, entry: Entry) -> click.Command:
    sentence = f"`wildflower {name}` {install_line(entry)}"

    def refuse() -> None:
        raise click.ClickException(sentence)

    return click.Command(
        name,
        callback=refuse,
        help=sentence,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )


def _merge(name: str, entry: Entry) -> click.Command:
    applications = []
    for source in entry.sources:
        module, _, attribute = source.partition(":")
        application = getattr(importlib.import_module(module), attribute)
        present_all(application)
        applications.append(application)
    command: click.Command
    if len(applications) == 1:
        command = typer.main.get_command(applications[0])
    else:  # groups, even of one command: typer would make that one the whole application
        command, *others = map(typer.main.get_group, applications)
        for other in others:
            command.commands.update(other.commands)
    command.name = name
    command.help = command.help or entry.summary
    _fit_in(command)
    return command


def _fit_in(command: click.Command) -> None:
    """Have a room's command look as the door does, whatever its room chose.

    Its help is plain, as that of all below it; completion is the door's, though typer offers it
    to every application.
    """
    command.params = [p for p in command.params if p.name not in COMPLETION]
    _restore_help(command)
    vars(command)["format_arguments"] = lambda *_: None  # typer's options hold them; click 8.5 too
    command.context_class = PlainContext
    if isinstance(command, typer.core.TyperCommand | typer.core.TyperGroup):
        command.rich_markup_mode = None
    for child in command.commands.values() if isinstance(command, click.Group) else ():
        _fit_in(child)


def _restore_help(command: click.Command) -> None:
    """Give arguments their help back: typer 0.20 sets it, then click 8.4 and newer erase it."""
    function = getattr(command.callback, "__presented__", None)
    if function is None:
        return
    told = inspect.signature(function, eval_str=True).parameters
    for parameter in command.params:
        if isinstance(parameter, typer.core.TyperArgument) and not parameter.help:
            notes = getattr(told[parameter.name or ""].annotation, "__metadata__", ())
            parameter.help = next((n.help for n in notes if isinstance(n, ArgumentInfo)), None)


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Federated learning with an over-the-air backbone: rounds, releases, devices, one loop.",
    epilog="Example: wildflower demo --dir .demo",
)


def _show_version(asked: bool) -> None:
    if asked:
        click.echo(f"wildflower {__version__}")
        raise typer.Exit


@app.callback()
def settings(
    *,
    log_format: Annotated[
        LogFormat, typer.Option(help="How log lines are written to stderr.")
    ] = LogFormat.TEXT,
    verbose: Annotated[
        int,
        typer.Option(
            "--verbose", "-v", count=True, show_default=False, help="Log more; -vv for everything."
        ),
    ] = 0,
    _version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version."),
    ] = False,
) -> None:
    """Set what all commands share."""
    configure_logging(log_format, verbosity=verbose)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with a code that tells the truth.

    0: done. 1: refused or failed, with the reason. 2: the call itself was wrong. 130: Ctrl-C.
    """
    argv = list(sys.argv[1:] if arguments is None else arguments)
    try:
        command = typer.main.get_command(app)
        code = command.main(args=argv, prog_name="wildflower", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except Exception as error:  # noqa: BLE001  the outermost edge: everything is told, then exits
        sys.exit(complain(error, as_json=wants_json(argv)))
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
