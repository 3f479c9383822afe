"""A fleet on one machine: in one process, or as real processes."""

from typing import TYPE_CHECKING

from wildflower.lazy import lazily

if TYPE_CHECKING:
    from wildflower.simulation.errors import SimulationError
    from wildflower.simulation.fleet import Scenario, Simulation, simulate
    from wildflower.simulation.grid import InProcessGrid

__all__ = ["InProcessGrid", "Scenario", "Simulation", "SimulationError", "simulate"]
__getattr__, __dir__ = lazily(
    __name__,
    {
        "InProcessGrid": "grid",
        "Scenario": "fleet",
        "Simulation": "fleet",
        "SimulationError": "errors",
        "simulate": "fleet",
    },
)
