"""Software other than models, at a server's directory: what is published, what a version takes.

The files go into the blobs at once, by digest, where nothing points at them; the document that
names them is a bundle that waits for the keys of the role `software`. Publishing it is
`server.key_ceremony`'s, as for every bundle.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wildflower.ota.errors import SigningError
from wildflower.ota.release.bundle import Bundle
from wildflower.ota.release.ceremony import RoleView
from wildflower.ota.release.keys import SOFTWARE
from wildflower.ota.release.manifest import FileEntry
from wildflower.ota.release.software import PAYLOAD, Software
from wildflower.ota.release.software_role import propose_software
from wildflower.server.blobs import BlobStore
from wildflower.server.key_ceremony import Ceremony


@dataclass(frozen=True, slots=True)
class Wanted:
    """A new version of a line of software.

    Attributes:
        name: Of the line.
        handler: Name of the program on devices that installs it.
        device_class: The class of devices that it is for; "" for all.
        agent_min: Lowest version of the agent, inclusive.
        order: Its position in the line; 0 for the next.
    """

    name: str
    handler: str
    device_class: str = ""
    agent_min: str = "0"
    order: int = 0


@dataclass(frozen=True, slots=True)
class Shelf:
    """The software of one server.

    Attributes:
        ceremony: Its keys and repository.
        blobs: Its files.
    """

    ceremony: Ceremony
    blobs: BlobStore

    def role(self) -> RoleView:
        """Return who signs software.

        Raises:
            SigningError: Nobody does yet, or there is no repository.
        """
        for role in self.ceremony.authority().roles():
            if role.name == SOFTWARE:
                return role
        raise SigningError(
            "this repository has no role software: no device takes any from it",
            hint="Let the keys of targets appoint signers: wildflower keys delegate-software",
        )

    def lines(self) -> list[Software]:
        """Return the newest document of every line, by name.

        Raises:
            SigningError: There is no such role, or a document is missing.
            FormatError: A document cannot be read.
        """
        self.role()
        documents = self.ceremony.repository.targets(SOFTWARE)
        return [Software.from_bytes(documents[path]) for path in sorted(documents)]

    def propose(self, wanted: Wanted, files: Sequence[Path]) -> tuple[Software, Bundle]:
        """Put the files into the blobs; return the document and the bundle it is to be signed in.

        Args:
            wanted: What it is.
            files: The files, each under its own name.

        Raises:
            FormatError: A name or a size lies outside its range.
            SigningError: There is no such role, the order is overtaken, or a file cannot be read.
        """
        newest = max((one.order for one in self.lines() if one.name == wanted.name), default=0)
        if wanted.order and wanted.order <= newest:
            raise SigningError(
                f"order {wanted.order} of {wanted.name}: {newest} is published already",
                hint="Orders only grow; without --order it is the next one.",
            )
        software = Software(
            name=wanted.name,
            order=wanted.order or newest + 1,
            handler=wanted.handler,
            device_class=wanted.device_class,
            agent_min=wanted.agent_min,
            files=tuple(self._entry(path) for path in files),
        )
        current = self.ceremony.repository.current(SOFTWARE)
        authority, now = self.ceremony.authority(), self.ceremony.now()
        return software, propose_software(authority, current, software, now)

    def _entry(self, path: Path) -> FileEntry:
        try:
            length = path.stat().st_size
            return FileEntry(PAYLOAD, path.name, self.blobs.put_file(path), length)
        except OSError as error:
            raise SigningError(f"{path} cannot be read: {error.strerror}") from error
