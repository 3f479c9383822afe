"""What a training's settings say of how its rounds make a model."""

import pytest

from wildflower.ota.release.method import Method
from wildflower.server.errors import SettingsError
from wildflower.server.training_settings import CHOICES, Protection, complete, method_of
from wildflower.strategies.combine import find
from wildflower.strategies.option import Kind


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({}, Method("fedavg", "secagg")),
        ({"protection": "one-shot"}, Method("fedavg", "one-shot")),
        ({"protection": "grouped"}, Method("fedmedian", "grouped")),
        ({"protection": "grouped", "rule": "trimmed-mean"}, Method("trimmed-mean", "grouped")),
        ({"protection": "plain", "rule": "trimmed-mean"}, Method("fedavg", "plain")),
        ({"dp": "central"}, Method("fedavg", "secagg", "central", "device")),
        ({"dp": "dpsgd"}, Method("fedavg", "secagg", "dpsgd", "example")),
    ],
)
def test_settings_name_a_method(settings: dict[str, float | str], method: Method) -> None:
    assert method_of(settings) == method


@pytest.mark.parametrize("protection", [each.value for each in Protection])
@pytest.mark.parametrize("mechanism", CHOICES["dp"])
def test_every_method_is_called_by_names_of_options(protection: str, mechanism: str) -> None:
    method = method_of({"protection": protection, "dp": mechanism})
    kinds = [find(name).kind for name in (method.algorithm, method.protection, method.mechanism)]
    assert kinds == [Kind.ALGORITHM, Kind.PROTECTION, Kind.PRIVACY]
    assert Method.from_document(method.to_document()) == method


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(SettingsError, match="grouped"):
        complete({}, {"protection": "grouped", "dp": "central"})
