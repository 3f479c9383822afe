"""A directory as a power cut would leave it, replayed from the system calls that wrote to it.

Each file has the bytes that were written and those that were synced; each directory the names that
it has and those that were synced. After a power cut a disk may hold anything in between. Two ends
are made here, and the disk as it is:

* LIVE: everything that was written, as after SIGKILL. A test compares it with the real directory,
  which shows that the replay missed nothing.
* LOST: what was synced and nothing else, names among them: the strictest reading of POSIX.
* ZEROED: all names and sizes, and zeros wherever bytes had not been synced, as file systems that
  write names first have left them.

The memory of SQLite's readers (`-shm`) is made anew by whoever opens the journal first; left out.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum, unique
from pathlib import Path

from tests.faults.strace import Call


@unique
class View(StrEnum):
    LIVE = "live"
    LOST = "lost"
    ZEROED = "zeroed"


@dataclass
class File:
    data: bytearray
    synced: bytes = b""
    fresh: list[tuple[int, int]] = field(default_factory=list)
    mode: int = 0o644

    def write(self, at: int, data: bytes) -> None:
        if at > len(self.data):
            self.data.extend(bytes(at - len(self.data)))
        self.data[at : at + len(data)] = data
        self.fresh.append((at, at + len(data)))

    def resize(self, size: int) -> None:
        del self.data[size:]
        self.data.extend(bytes(size - len(self.data)))

    def sync(self) -> None:
        self.synced, self.fresh = bytes(self.data), []

    def seen(self, view: View) -> bytes:
        if view is View.LOST:
            return self.synced
        found = bytearray(self.data)
        if view is View.ZEROED:
            for start, end in self.fresh:
                kept = max(0, min(end, len(found)) - start)
                found[start : start + kept] = bytes(kept)
        return bytes(found)


@dataclass
class Link:
    target: str


@dataclass
class Folder:
    names: dict[str, "Node"] = field(default_factory=dict)
    synced: dict[str, "Node"] = field(default_factory=dict)

    def sync(self) -> None:
        self.synced = dict(self.names)

    def seen(self, view: View) -> dict[str, "Node"]:
        return self.synced if view is View.LOST else self.names


Node = File | Link | Folder


class Disk:
    """A directory tree; everything in it is synced when it is read."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tree = _read(root)
        self._open: dict[tuple[int, int], tuple[File, int, bool]] = {}

    def apply(self, call: Call) -> None:
        """Do to the replay what a call did to the disk; calls elsewhere do nothing."""
        if call.result < 0:
            return
        act = getattr(self, f"_{call.name}", None)
        if act is not None:
            act(call)

    def holds(self, path: str) -> bool:
        """Whether a path lies in the tree, as far as this replay looks."""
        return path.startswith(f"{self.root}/") and not path.endswith("-shm")

    def digest(self, view: View) -> str:
        """Return what tells two states of the disk apart."""
        found = hashlib.sha256()
        for name, content in files(self.tree, view):
            found.update(f"{name}\0{len(content)}\0".encode() + content)
        return found.hexdigest()

    def lay_out(self, target: Path, view: View) -> None:
        """Write the tree to a directory that does not exist yet."""
        _write(self.tree, target, view)

    def _folder(self, path: str) -> tuple[Folder, str]:
        *parents, name = Path(path).relative_to(self.root).parts
        at = self.tree
        for parent in parents:
            below = at.names[parent]
            assert isinstance(below, Folder), path
            at = below
        return at, name

    def _node(self, path: str) -> Node:
        if path == str(self.root):
            return self.tree
        folder, name = self._folder(path)
        return folder.names[name]

    def _openat(self, call: Call) -> None:
        self._open.pop((call.process, call.result), None)
        path = call.path
        if not self.holds(path) or "O_DIRECTORY" in call.flags or "O_RDONLY" in call.flags:
            return
        folder, name = self._folder(path)
        if name not in folder.names:
            folder.names[name] = File(bytearray())
        file = folder.names[name]
        assert isinstance(file, File), path
        if "O_TRUNC" in call.flags:
            file.resize(0)
        self._open[call.process, call.result] = (file, 0, "O_APPEND" in call.flags)

    def _close(self, call: Call) -> None:
        self._open.pop(call.place, None)

    def _write(self, call: Call) -> None:
        if call.place in self._open:
            file, at, appends = self._open[call.place]
            at = len(file.data) if appends else at
            file.write(at, call.data[: call.result])
            self._open[call.place] = (file, at + call.result, appends)

    def _pwrite64(self, call: Call) -> None:
        if call.place in self._open:
            self._open[call.place][0].write(call.offset, call.data[: call.result])

    def _lseek(self, call: Call) -> None:
        if call.place in self._open:
            file, _, appends = self._open[call.place]
            self._open[call.place] = (file, call.result, appends)

    def _sendfile(self, call: Call) -> None:
        if call.place in self._open:
            source = self._node(call.other)
            assert isinstance(source, File), call.other
            file, at, appends = self._open[call.place]
            file.write(at, bytes(source.data[at : at + call.result]))  # copied from its beginning
            self._open[call.place] = (file, at + call.result, appends)

    def _ftruncate(self, call: Call) -> None:
        if call.place in self._open:
            self._open[call.place][0].resize(call.offset)

    def _fsync(self, call: Call) -> None:
        if self.holds(call.path) or call.path == str(self.root):
            node = self._node(call.path)
            assert not isinstance(node, Link), call.path
            node.sync()

    _fdatasync = _fsync

    def _sync(self, _: Call) -> None:
        _sync_all(self.tree)

    def _rename(self, call: Call) -> None:
        if self.holds(call.path):
            source, old = self._folder(call.path)
            target, new = self._folder(call.other)
            target.names[new] = source.names.pop(old)

    def _unlink(self, call: Call) -> None:
        if self.holds(call.path):
            folder, name = self._folder(call.path)
            del folder.names[name]

    _unlinkat = _rmdir = _unlink

    def _mkdir(self, call: Call) -> None:
        if self.holds(call.path):
            folder, name = self._folder(call.path)
            folder.names[name] = Folder()

    def _symlink(self, call: Call) -> None:
        if self.holds(call.other):
            folder, name = self._folder(call.other)
            folder.names[name] = Link(call.path)


def files(folder: Folder, view: View, prefix: str = "") -> Iterator[tuple[str, bytes]]:
    """Yield the names below a folder, sorted, and what is in them; links by their target."""
    for name, node in sorted(folder.seen(view).items()):
        match node:
            case File():
                yield prefix + name, node.seen(view)
            case Link(target):
                yield prefix + name, f"-> {target}".encode()
            case Folder():
                yield prefix + name + "/", b""
                yield from files(node, view, f"{prefix}{name}/")


def _read(path: Path) -> Folder:
    folder = Folder()
    for entry in path.iterdir():
        if entry.name.endswith("-shm"):
            continue
        if entry.is_symlink():
            folder.names[entry.name] = Link(str(entry.readlink()))
        elif entry.is_dir():
            folder.names[entry.name] = _read(entry)
        else:
            data = entry.read_bytes()
            mode = entry.stat().st_mode & 0o777
            folder.names[entry.name] = File(bytearray(data), data, mode=mode)
    folder.sync()
    return folder


def _sync_all(folder: Folder) -> None:
    for node in folder.names.values():
        match node:
            case File():
                node.sync()
            case Folder():
                _sync_all(node)
            case Link():
                pass
    folder.sync()


def _write(folder: Folder, target: Path, view: View) -> None:
    target.mkdir()
    for name, node in folder.seen(view).items():
        match node:
            case File():
                (target / name).write_bytes(node.seen(view))
                (target / name).chmod(node.mode)
            case Link(to):
                (target / name).symlink_to(to)
            case Folder():
                _write(node, target / name, view)
