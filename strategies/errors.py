"""The exception hierarchy of `wildflower.strategies`.

* StrategyError
  x TaskError               a task cannot be found or does not keep its contract
  x LayoutError             arrays do not have the names, shapes or types they should have
  x UpdateRefusedError      an update may not enter the sum (NaN, infinite, wrong shape, no samples)
  x RoundAbortedError       a round ended without a model, and says why
  x IllegalEventError       the round machine was given an event its phase does not accept
  x StoredStateError        stored bytes are not a state of ours
  x OptionError             no such option of a round, or two that decide the same thing
  x CombinationError        options that do not go together, refused before the round starts
  x MissingPackageError     an optional package that is needed is not installed
  x BudgetError             a round would spend more privacy than its budget has left
  + SecAggError             the secure-aggregation protocol
    x ProtocolError         the other side broke the protocol; nothing more is sent in this session
    x SessionAbortedError   the session cannot finish (too few clients left); no sum is revealed
    x CapacityError         the residues cannot hold the sum of this cohort
    x HelperError           a helper cannot be reached, or answered what is no sum of masks
    x KeyHolderError        a key holder cannot be reached, or refuses to decrypt
  x AppFailedError          the user's app failed; its message says no more than servers may know
  + LinkError               Flower's SuperLink, which carries the messages of a round
    x UnreachableError      it does not answer; it may come back
    x LinkRefusedError      it answered, and refused; the same request is refused again
    x RunEndedError         the Flower run is over or was stopped

`+` groups, `x` is raised. Every error carries `hint`: what the reader can do now, or "".
"""


class StrategyError(Exception):
    """Base class of every error `wildflower.strategies` raises on purpose."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class TaskError(StrategyError):
    """A task cannot be found or does not keep its contract."""


class LayoutError(StrategyError):
    """Arrays do not have the names, shapes or types they should have."""


class UpdateRefusedError(StrategyError):
    """An update may not enter the sum."""


class RoundAbortedError(StrategyError):
    """A round ended without a model."""


class IllegalEventError(StrategyError):
    """An event arrived in a phase that does not accept it; the state stands."""


class StoredStateError(StrategyError):
    """Stored bytes are not a state of ours."""


class OptionError(StrategyError):
    """There is no such option of a round, or two decide the same thing."""


class CombinationError(StrategyError):
    """The options do not go together; no round was started."""


class MissingPackageError(StrategyError):
    """An optional package that is needed is not installed."""


class BudgetError(StrategyError):
    """A round would spend more privacy than its budget has left; it was not started."""


class SecAggError(StrategyError):
    """Something in the secure-aggregation protocol went wrong."""


class ProtocolError(SecAggError):
    """The other side broke the protocol."""


class SessionAbortedError(SecAggError):
    """The session cannot finish; no sum is revealed."""


class CapacityError(SecAggError):
    """The residues cannot hold the sum of this cohort."""


class HelperError(SecAggError):
    """A helper cannot be reached, or answered what is no sum of masks; nothing is unmasked."""


class KeyHolderError(SecAggError):
    """A key holder cannot be reached, or refuses to decrypt; nothing is revealed."""


class AppFailedError(StrategyError):
    """The user's app failed; the message says no more than servers may know."""


class LinkError(StrategyError):
    """Something between us and Flower's SuperLink went wrong."""


class UnreachableError(LinkError):
    """The SuperLink does not answer; it may come back."""


class LinkRefusedError(LinkError):
    """The SuperLink answered, and refused."""


class RunEndedError(LinkError):
    """The Flower run is over or was stopped."""
