"""The exception hierarchy of `wildflower.ota`.

* OtaError
  x FormatError             bytes from outside are not the document they should be
  x ModelError              a runtime cannot load or run this model
  + ReleaseError            something about a release cannot be trusted or used
    x RefusedError          signature, digest, length, expiry or order is not what was signed
      x ProvenanceError     where it comes from is not what the device's owner accepts
    x IncompatibleError     the release requires what this device has not
    + FetchError            the bytes could not be had (network, server, budget)
      x StoppedError        the caller stopped the download; what has arrived is kept
      x SlowError           a source drips: it would hold the device for ever without a time-out
      x BudgetError         an update has cost more bytes than it may
    x DeltaError            a delta is damaged, hostile, or for other files than these
    x SigningError          a key cannot be used, or the edit contradicts what is signed already
  + DeviceError             the update lifecycle on a device
    x IllegalEventError     the machine was given an event its phase does not accept
    x ProgramError          a program of the owner's cannot be started or does not end
    x TrialError            the release failed its trial: golden outputs, latency, memory, crash
    x StorageError          a slot or the journal cannot be written (disk full, read-only)
    x PostponedError        an effect cannot go on now (no network, told to stop); it stays owed
  + BuildError              a model cannot become an artifact
    x ExportError           an operator has no counterpart in the target format
    x QuantiseError         nothing worth mentioning in the model could be quantised
    x GateError             a gate could not be evaluated
  + RolloutError            a rollout was asked for something its phase or plan does not allow
  x SummaryMismatchError    two summaries of different baselines cannot be merged

`+` groups, `x` is raised. Every error carries `hint`: what the reader can do now, or "".
"""


class OtaError(Exception):
    """Base class of every error `wildflower.ota` raises on purpose."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class FormatError(OtaError):
    """Bytes from outside are not the document they should be."""


class ModelError(OtaError):
    """A runtime cannot load or run this model."""


class ReleaseError(OtaError):
    """Something about a release cannot be trusted or used."""


class RefusedError(ReleaseError):
    """What was served is not what was signed."""


class ProvenanceError(RefusedError):
    """Where a release comes from is not what the device's owner accepts."""


class IncompatibleError(ReleaseError):
    """The release requires something that this device has not."""


class FetchError(ReleaseError):
    """The bytes could not be had."""


class StoppedError(FetchError):
    """The caller stopped the download; what has arrived is kept."""


class SlowError(FetchError):
    """A source drips; it is left for the next one, and told to the server."""


class BudgetError(FetchError):
    """An update has cost more bytes than it may; what has arrived is kept."""


class DeltaError(ReleaseError):
    """A delta is damaged, hostile, or for other files than these."""

    def __init__(self, message: str, *, hint: str = "Fetch the whole file.") -> None:
        super().__init__(message, hint=hint)


class SigningError(ReleaseError):
    """A key cannot be used, or the edit contradicts what is signed already."""


class DeviceError(OtaError):
    """Something in the update lifecycle on a device went wrong."""


class IllegalEventError(DeviceError):
    """An event arrived in a phase that does not accept it; the state stands."""


class ProgramError(DeviceError):
    """A program that the device's owner named cannot be started, or does not end in time."""


class TrialError(DeviceError):
    """The release failed its trial."""


class StorageError(DeviceError):
    """A slot or the journal cannot be written."""


class PostponedError(DeviceError):
    """An effect cannot go on now; it stays owed and is tried later."""


class BuildError(OtaError):
    """A model cannot become an artifact."""


class ExportError(BuildError):
    """An operator of the model has no counterpart in the target format."""


class QuantiseError(BuildError):
    """Nothing worth mentioning in the model could be quantised."""


class GateError(BuildError):
    """A gate could not be evaluated."""


class RolloutError(OtaError):
    """The rollout's phase or plan does not allow what was asked."""


class SummaryMismatchError(OtaError):
    """Two summaries of different baselines cannot be merged."""
