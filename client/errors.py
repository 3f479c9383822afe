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

`x` is raised. Every error carries `hint`: what the reader can do now, or "".
"""


class ClientError(Exception):
    """Base class of every error `wildflower.client` raises on purpose."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(ClientError):
    """A setting is unknown or out of range; names the key, the value and what is allowed."""


class JoinTokenError(ClientError):
    """The join token is damaged or not one of ours."""


class UntrustedServerError(ClientError):
    """Who answers is not who the join token speaks of."""


class EnrolmentError(ClientError):
    """The server refused to enrol the device."""


class ChannelError(ClientError):
    """The device channel cannot be used now."""


class PolicyError(ClientError):
    """The device's own policy forbids what was asked."""


class AgentError(ClientError):
    """The agent cannot run."""


class HoldError(ClientError):
    """The update lock cannot be had."""


class RequestError(ClientError):
    """What a program asked over the socket is no question."""


class TrainingError(ClientError):
    """The device cannot train what its configuration names."""
