"""The exception hierarchy of `wildflower.server`.

* ServerError
  x SettingsError           a key of server.toml is unknown or its value is out of range
  x EnrolmentError          a join token, a CSR or a device's demand was refused
  x NotFoundError           there is no such device, training, release, rollout ...
  x ConflictError           what was asked contradicts what is stored or running
  x StartError              a process or listener could not start (port in use, child died)
  x RemoteError             the operator API refused a request, or could not be reached
  x PinError                a service shows another key than the one that was pinned
  x SignerError             the release signer refused to sign
  x StoreError              the database cannot be read or written (disk full, connection lost)
  x BlobError               a stored file is no longer what its digest says

`x` is raised. Every error carries `hint`: what the reader can do now, or "".
"""


class ServerError(Exception):
    """Base class of every error `wildflower.server` raises on purpose."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class SettingsError(ServerError):
    """A setting is unknown or out of range; names the key, the value and what is allowed."""


class EnrolmentError(ServerError):
    """A join token, a CSR or a device's demand was refused."""


class NotFoundError(ServerError):
    """There is no such thing in the store."""


class ConflictError(ServerError):
    """What was asked contradicts what is stored or running."""


class StartError(ServerError):
    """A process or listener could not start."""


class RemoteError(ServerError):
    """The operator API refused a request, or could not be reached."""


class PinError(ServerError):
    """A service shows another key than the one that was pinned."""


class SignerError(ServerError):
    """The release signer refused to sign."""


class StoreError(ServerError):
    """The database cannot be read or written."""


class BlobError(ServerError):
    """A stored file is no longer what its digest says."""
