"""The exception hierarchy of `wildflower.client`.

* ClientError
  x ConfigError             a key of agent.toml or policy.toml is unknown or out of range
  x JoinTokenError          the join token is damaged or not one of ours
  x UntrustedServerError    who answers is not who the join token speaks of
  x EnrolmentError          the server refused to enrol the device
  x ChannelError            the device channel cannot be used now
  x PolicyError             the device's own policy forbids what was asked
  x TrainingError           the device cannot train what its configuration names
  x AgentError              the agent cannot run (not enrolled, already running)
  x HoldError               the update lock cannot be had
  x RequestError            what a program asked over the socket is no question

`x` is raised. Every error carries `hint`: what the reader can do now, and what goes on all the
same. Where who raises it knows nothing better, the kind of error says so (`ADVICE`).
"""

from typing import ClassVar


class ClientError(Exception):
    """Base class of every error `wildflower.client` raises on purpose."""

    ADVICE: ClassVar[str] = ""
    """The hint of an error that has none of its own."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint or self.ADVICE


class ConfigError(ClientError):
    """A setting is unknown or out of range; names the key, the value and what is allowed."""

    ADVICE = "Correct the file. What is installed answers all the same."


class JoinTokenError(ClientError):
    """The join token is damaged or not one of ours."""

    ADVICE = "Nothing was sent. Copy the whole token, or ask for one: wildflower device invite."


class UntrustedServerError(ClientError):
    """Who answers is not who the join token speaks of."""

    ADVICE = (
        "Nothing was stored on this device. Ask the operator whether the token is this server's; "
        "if it is, somebody stands in between."
    )


class EnrolmentError(ClientError):
    """The server refused to enrol the device."""

    ADVICE = (
        "Nothing was stored on this device. Try again later, or ask the operator to look at: "
        "wildflower server status."
    )


class ChannelError(ClientError):
    """The device channel cannot be used now."""


class PolicyError(ClientError):
    """The device's own policy forbids what was asked."""


class AgentError(ClientError):
    """The agent cannot run."""

    ADVICE = "What is installed answers all the same. `wildflower agent doctor` says more."


class HoldError(ClientError):
    """The update lock cannot be had."""


class RequestError(ClientError):
    """What a program asked over the socket is no question."""


class TrainingError(ClientError):
    """The device cannot train what its configuration names."""
