"""`wildflower privacy`: what was given up of the population's privacy, and what a budget asks."""

from typing import Annotated

import typer

from wildflower.server.api.privacy_views import PrivacyView
from wildflower.server.cli.remote import ServerDirectory, ServerUrl, Token, find_remote
from wildflower.server.privacy_plan import Asked, Mechanism, Plan
from wildflower.server.privacy_plan import plan as make_plan

app = typer.Typer(no_args_is_help=True, help="Show and plan what training costs in privacy.")


@app.command("show", epilog="Example: wildflower privacy show --dir server")
def show(
    *, server: ServerUrl = "", token: Token = "", directory: ServerDirectory = None
) -> PrivacyView:
    """Show the privacy ledger: what was spent, what is left, and whom that asks to trust.

    Totals of different units, relations or deltas do not compose; each stands for itself.
    """
    return find_remote(server, token, directory).privacy()


@app.command("plan", epilog="Example: wildflower privacy plan --epsilon 4 --rounds 200")
def plan(
    *,
    epsilon: Annotated[float, typer.Option(help="Largest epsilon of all rounds together.")],
    rounds: Annotated[int, typer.Option(min=1, help="How many rounds.")],
    mechanism: Annotated[Mechanism, typer.Option(help="Who adds the noise.")] = Mechanism.CENTRAL,
    cohort: Annotated[int, typer.Option(min=1, help="Devices in a round.")] = 100,
    population: Annotated[int, typer.Option(min=1, help="Devices that may take part.")] = 1000,
    delta: Annotated[
        float, typer.Option(help="Of epsilon; a tenth of one over the population if left out.")
    ] = 0.0,
) -> Plan:
    """Plan a training: how much noise, what it does to the model, how many rounds it allows.

    No server is asked. The accuracy was measured on the demo's digits, in the setting it names.
    """
    return make_plan(Asked(mechanism, epsilon, rounds, cohort, population, delta))
