"""A process of its own in which atheris looks for bytes that one parser falls over.

    python -m tests.fuzz.guided_child NAME RUNS CORPUS

It begins with the parser's seeds in CORPUS and keeps there what led to code that nothing had led to
before. Exit code 0 says that nothing was found.
"""

import importlib
import json
import sys
from pathlib import Path
from random import Random
from typing import Any

atheris: Any = importlib.import_module("atheris")  # ships no types, and is not everywhere

with atheris.instrument_imports(include=["wildflower", "tuf", "rfc8785"]):
    from tests.fuzz.targets import targets
    from tests.fuzz.twists import HOSTILE, twist, written

LONGEST = 20_000  # bytes of an input
HANGS_S = 20  # an input that takes longer is a finding
MEMORY_MB = 2_000
TWISTED = 2 / 3


def mutate(data: bytes, size: int, seed: int) -> bytes:
    """Return other bytes: two times in three a twist of a document, if it is one."""
    rng = Random(seed)
    try:
        document = json.loads(data) if rng.random() < TWISTED else None
    except (ValueError, RecursionError):
        document = None
    if isinstance(document, dict):
        return written(twist(document, rng.choice, lambda: rng.choice(HOSTILE)))[:size]
    return bytes(atheris.Mutate(data, size))


def main(name: str, runs: int, corpus: Path) -> None:
    """Run atheris; it ends the process."""
    target = targets()[name]
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    flags = [
        f"-runs={runs}",
        "-seed=1",
        f"-max_len={LONGEST}",
        f"-timeout={HANGS_S}",
        f"-rss_limit_mb={MEMORY_MB}",
        f"-artifact_prefix={corpus}/",
    ]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], target.feed, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
