from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.attacks.bench import Bench, begin
from tests.client_fakes import FakeServer


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with FakeServer(tmp_path / "server") as server:
        yield begin(server, tmp_path / "device")
