"""The exception hierarchy of `wildflower.simulation`.

* SimulationError
  x DirectoryError          a directory is not ours, or is in use by another fleet
  x ProcessError            a process of a local fleet did not start, or died
  x WaitError               a condition did not come true in the time it may take
  x StepError               a step of the demo did not hold

`x` is raised. Every error carries `hint`: what the reader can do now, or "".
"""


class SimulationError(Exception):
    """Base class of every error `wildflower.simulation` raises on purpose."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class DirectoryError(SimulationError):
    """A directory is not ours, or is in use by another fleet."""


class ProcessError(SimulationError):
    """A process of a local fleet did not start, or died."""


class WaitError(SimulationError):
    """A condition did not come true in the time it may take."""


class StepError(SimulationError):
    """A step of the demo did not hold."""
