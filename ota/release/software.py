"""What else travels to devices: one signed document that names files and who installs them.

Tokenizers, labels, pre-processing code, the agent itself. The document names a *handler*: a program
that the device's owner has put on the device, and that alone knows what to do with such files. A
server can therefore choose among what an owner has prepared, and never bring a program that decides
for itself. It is a TUF target of the role `software`, which a device refuses unless its owner's
policy says otherwise.

    Software.from_bytes(software.to_bytes()) == software
"""

from dataclasses import dataclass
from typing import Any, Final, Self

from wildflower.ota import canonical
from wildflower.ota.errors import FormatError
from wildflower.ota.release.manifest import HEX_DIGEST, MAX_FILE, PLAIN_NAME, FileEntry

KIND: Final = "wildflower.software"
PAYLOAD: Final = "payload"
"""The role of all its files: what each is for is between it and its handler."""
MAX_FILES: Final = 200  # the agent's own wheels are about 40


@dataclass(frozen=True, slots=True)
class Software:
    """Files on their way to a handler.

    Attributes:
        name: Of the line, such as "labels" or "agent".
        order: Position in the line; a device never goes to a lower one.
        handler: Name of the program on the device that installs it.
        device_class: The class of devices that it is for; "" for all.
        agent_min: Lowest version of the agent, inclusive.
        files: What it brings, each with the role "payload".
    """

    name: str
    order: int
    handler: str
    device_class: str
    agent_min: str
    files: tuple[FileEntry, ...]

    @property
    def digest(self) -> str:
        """Its id: the SHA-256 of its bytes."""
        return canonical.digest(self.to_bytes())

    def to_bytes(self) -> bytes:
        """Return the canonical bytes, the form that is signed."""
        return canonical.to_bytes(
            {
                "kind": KIND,
                "format": 1,
                "name": self.name,
                "order": self.order,
                "handler": self.handler,
                "device_class": self.device_class,
                "agent_min": self.agent_min,
                "files": [
                    {"name": entry.name, "digest": entry.digest, "length": entry.length}
                    for entry in self.files
                ],
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Parse a document from outside.

        Raises:
            FormatError: Not a software document, or a value lies outside its range.
        """
        document = canonical.from_bytes(data, kind=KIND)
        try:
            software = cls(
                name=document["name"],
                order=document["order"],
                handler=document["handler"],
                device_class=document["device_class"],
                agent_min=document["agent_min"],
                files=tuple(_entry(one) for one in document["files"]),
            )
            software.check()
            is_same = software.to_bytes() == data
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FormatError(f"software document: {error!r}") from error
        if not is_same:
            raise FormatError("software document: it holds what this version does not know")
        return software

    def check(self) -> None:
        """Check every range that the types do not.

        Raises:
            FormatError: A value lies outside its range.
        """
        names = [entry.name for entry in self.files]
        plain = [self.name, self.handler, self.agent_min, *names]
        for name in plain if self.device_class == "" else [*plain, self.device_class]:
            if not PLAIN_NAME.fullmatch(name):
                raise FormatError(f"not a plain name: {name!r}")
        if type(self.order) is not int or self.order < 1:
            raise FormatError(f"order {self.order!r}: expected at least 1")
        if len(set(names)) != len(names) or not 1 <= len(names) <= MAX_FILES:
            raise FormatError(f"{len(names)} files: expected 1 to {MAX_FILES} of different names")
        for entry in self.files:
            is_length = type(entry.length) is int and 1 <= entry.length <= MAX_FILE
            if not is_length or not HEX_DIGEST.fullmatch(entry.digest):
                raise FormatError(f"file {entry.name}: digest or length out of range")


def software_path(name: str) -> str:
    """Return where the newest document of a line lies among the TUF targets.

    Example:
        >>> software_path("labels")
        'software/labels.json'
    """
    return f"software/{name}.json"


def _entry(found: dict[str, Any]) -> FileEntry:
    return FileEntry(PAYLOAD, found["name"], found["digest"], found["length"])
