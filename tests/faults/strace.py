"""System calls of a running process: watched, and made to fail or to kill, by strace.

`strace` and not a library of ours put before the C library: it stops the process at the very door
of the kernel, sees every call whoever makes it, and its SIGKILL arrives before the call is done.
"""

import codecs
import os
import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

CHANGING: Final = (
    "openat", "write", "pwrite64", "ftruncate", "sendfile", "copy_file_range", "rename", "unlink",
    "unlinkat", "rmdir", "mkdir", "symlink", "chmod", "fsync", "fdatasync", "sync",
)  # fmt: skip
"""Calls that change a directory tree, or that make a change last."""
ALSO: Final = ("close", "lseek", "vfork")
"""What a replay must know beside them; the last one tells when the trial's process starts."""
WRITES: Final = frozenset(CHANGING) - {"unlink", "unlinkat", "rmdir", "chmod", "sync"}
"""Calls that a full or failing disk refuses."""

_LINE: Final = re.compile(r"(\w+)\((.*)\)\s+= (-?\d+)(.*)")
_PROCESS: Final = re.compile(r"(\d+) +(.*)")
_BEGUN: Final = " <unfinished ...>"
_RESUMED: Final = re.compile(r"<\.\.\. \w+ resumed>(.*)")
_PIECE: Final = re.compile(
    r'"((?:[^"\\]|\\.)*)"(?:\.\.\.)?|(-?\d+|AT_FDCWD)<((?:[^>\\]|\\.)*)>|([A-Z_|0-9x]+)'
)


@dataclass(frozen=True)
class Call:
    """One system call that was done.

    Attributes:
        name: Its name.
        count: How many of this name its process had made, this one counted.
        path: The file that it names, by path or by descriptor.
        other: The second one, of a rename, a link or a copy.
        descriptor: The descriptor that it was given; -1 for none.
        data: The bytes that were handed over.
        offset: Where they go, or the size that a file shall have.
        flags: How a file is opened.
        result: What it returned.
        process: Who made it; 0 where only one process is traced.
    """

    name: str
    count: int
    path: str = ""
    other: str = ""
    descriptor: int = -1
    data: bytes = b""
    offset: int = 0
    flags: str = ""
    result: int = 0
    process: int = 0

    @property
    def place(self) -> tuple[int, int]:
        """What tells descriptors of several processes apart."""
        return self.process, self.descriptor

    @property
    def changed(self) -> str:
        """The file by which a tracer knows it: what is renamed, what becomes a link."""
        return self.other if self.name == "symlink" else self.path

    def changes(self, directory: Path) -> bool:
        """Whether it is one that a crash matrix kills before."""
        inside = any(f"{path}/".startswith(f"{directory}/") for path in (self.path, self.other))
        is_only_read = self.name == "openat" and "O_CREAT" not in self.flags
        return self.name == "sync" or (self.name in CHANGING and inside and not is_only_read)


@dataclass(frozen=True)
class Fault:
    """What happens at the n-th call of a name, before it is done.

    Attributes:
        call: The name, or several with commas between.
        when: Which one; "3+" for the third and all that follow.
        error: The error that it ends with, such as ENOSPC; "" for SIGKILL.
        path: Counts calls with this file alone, of each process that the traced one starts; "" for
            all calls, of the traced one alone.
    """

    call: str
    when: str
    error: str = ""
    path: str = ""

    def __str__(self) -> str:
        where = f" of {self.path}" if self.path else ""
        return f"{self.error or 'SIGKILL'} at {self.call} {self.when}{where}"

    @property
    def option(self) -> str:
        what = f"error={self.error}" if self.error else "signal=KILL"
        return f"inject={self.call}:{what}:when={self.when}"


def is_here() -> bool:
    """Whether strace is installed and allowed to trace."""
    found = shutil.which("strace")
    if found is None:
        return False
    return subprocess.run([found, "-qq", "-o", os.devnull, "true"], check=False).returncode == 0


def command_of(fault: Fault, log: Path) -> list[str]:
    """Return what goes before a command in whose processes calls shall fail.

    The kernel itself lets all other calls pass, which it does not where a tracer has attached: it
    is several times faster. SIGKILL cannot be sent from where it stops.
    """
    told = ["-e", f"trace={fault.call}", "-e", fault.option, "-P", fault.path]
    return ["strace", "-f", "--seccomp-bpf", "-qq", "-A", "-s", "0", *told, "-o", str(log)]


@contextmanager
def traced(
    process: int, log: Path, fault: Fault | None, *, follows: bool = False, brief: bool = False
) -> Iterator[None]:
    """Attach to a process that has stopped itself, let it go on, and wait until it has ended.

    Args:
        process: Its id.
        log: Where to write what it did.
        fault: What to do to it; None for nothing.
        follows: Whether the processes that it starts are traced too.
        brief: Whether to write down no more than whether the fault came about, which is faster.
    """
    told = fault.call if fault and brief else ",".join((*CHANGING, *ALSO))
    command = ["strace", "-e", f"trace={told}"]
    command += ["-s", "0"] if brief else ["-y", "-s", "4194304"]
    command += ["-e", "signal=none", "-o", str(log), "-p", str(process)]
    command += ["-e", fault.option] if fault else []
    command += ["-P", fault.path] if fault and fault.path else []
    command += ["-f"] if follows else []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr is not None
        said = tracer.stderr.readline()
        while "resolved into" in said:  # the fault's file is a link: both are looked at
            said = tracer.stderr.readline()
        assert "attached" in said, said
        os.kill(process, signal.SIGCONT)
        yield
        tracer.communicate()


def was_hit(log: Path) -> bool:
    """Whether a fault came about: a run may take another way."""
    lines = log.read_text(encoding="latin-1").splitlines()
    return any(line.endswith(("(INJECTED)", "= ?")) for line in lines)


def read_log(log: Path) -> list[Call]:
    """Return the calls that were done, in order; one that was killed before was not."""
    calls: list[Call] = []
    counts: Counter[tuple[int, str]] = Counter()
    for process, line in _lines(log):
        found = _LINE.fullmatch(line)
        name = found[1] if found else line.partition("(")[0]
        counts[process, name] += 1
        if found:
            call = _call(name, found[2], int(found[3]), counts[process, name])
            calls.append(replace(call, process=process))
    return calls


def _lines(log: Path) -> Iterator[tuple[int, str]]:
    """Yield each line and its process; what was interrupted by others' calls comes as one line."""
    begun: dict[int, str] = {}
    for told in log.read_text(encoding="latin-1").splitlines():
        found = _PROCESS.fullmatch(told)
        process, line = (int(found[1]), found[2]) if found else (0, told)
        if line.endswith(_BEGUN):
            begun[process] = line.removesuffix(_BEGUN)
        elif resumed := _RESUMED.fullmatch(line):
            yield process, begun.pop(process) + resumed[1]
        else:
            yield process, line
    yield from begun.items()


def _call(name: str, arguments: str, result: int, count: int) -> Call:
    texts, places, numbers = [], [], []
    for text, descriptor, path, word in _PIECE.findall(arguments):
        if descriptor:
            places.append((descriptor, path.removesuffix(" (deleted)")))
        elif word:
            numbers.append(word)
        else:
            texts.append(_unescape(text))
    told = Call(name, count, result=result)
    match name:
        case "openat" | "unlinkat":
            path = os.path.join(places[0][1], texts[0].decode())  # noqa: PTH118  "" is no Path
            told = Call(name, count, path, flags=numbers[0], result=result)
        case "rename" | "symlink":
            first, second = (text.decode() for text in texts)
            told = Call(name, count, first, second, result=result)
        case "unlink" | "rmdir" | "mkdir" | "chmod":
            told = Call(name, count, texts[0].decode(), result=result)
        case "vfork" | "sync":
            pass
        case _:
            told = _on_descriptor(told, places, texts, numbers)
    return told


def _on_descriptor(
    told: Call, places: list[tuple[str, str]], texts: list[bytes], numbers: list[str]
) -> Call:
    """Return a call whose first argument is a descriptor."""
    descriptor, path = places[0] if places else (numbers[0], "")
    other = places[1][1] if len(places) > 1 else ""
    takes_offset = told.name in ("pwrite64", "ftruncate")
    return Call(
        told.name,
        told.count,
        path,
        other,
        int(descriptor),
        texts[0] if texts else b"",
        int(numbers[-1]) if takes_offset else 0,
        result=told.result,
    )


def _unescape(text: str) -> bytes:
    return codecs.escape_decode(text.encode("latin-1"))[0]
