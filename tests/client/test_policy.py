"""policy.toml: safe where it is silent, and refused where it is mistyped."""

from pathlib import Path

import pytest

from wildflower.client.errors import ConfigError
from wildflower.client.policy import Policy, load_policy, save_policy
from wildflower.ota.device.acceptance import Demands


def test_by_default_an_update_leaves_only_masked_and_people_need_not_sign(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text("")
    assert load_policy(tmp_path) == Policy("required", ("auto",), 3)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    policy = Policy("allowed", ("auto", "approved"), 5, ("ab" * 32, "cd" * 32))
    save_policy(policy, tmp_path)
    assert load_policy(tmp_path) == policy


def test_what_is_demanded_of_releases_is_read_with_the_owners_delta_and_unit(
    tmp_path: Path,
) -> None:
    assert not Policy().demands.are_any
    text = 'max_epsilon = 3\nmin_clients = 5\nstrategies = ["secagg+fedavg", "he"]\ndelta = 1e-6'
    (tmp_path / "policy.toml").write_text(text)
    found = load_policy(tmp_path).demands
    assert found == Demands(3.0, 1e-6, "device", 5, ("secagg+fedavg", "he"))
    assert found.are_any


BAD = {
    "value": ('secagg = "optional"', "secagg = 'optional' is not allowed", '"required" or'),
    "role": ('release = ["software"]', "release = ('software',) is not allowed", '"approved"'),
    "no role": ("release = []", "release = () is not allowed", '"auto"'),
    "mistyped": ('sec_agg = "required"', "unknown key sec_agg", "Did you mean secagg?"),
    "cohort": ("min_cohort = 0", "min_cohort = 0 is not allowed", "[1, 1000000]"),
    "helper": ('helpers = ["ab"]', "helpers = ('ab',) is not allowed", "64 hex digits"),
    "epsilon": ("max_epsilon_per_month = -1", "= -1.0 is not allowed", "0 for no limit"),
    "no epsilon": ("max_epsilon_per_month = nan", "= nan is not allowed", "[0, 1000]"),
    "unit": ('unit = "person"', "unit = 'person' is not allowed", '"example"'),
    "delta": ("delta = 0.5", "delta = 0.5 is not allowed", "[1e-15, 0.01]"),
    "delta fetch": ('delta_fetch = "always"', "delta_fetch = 'always' is not", '"never"'),
    "release epsilon": ("max_epsilon = nan", "= nan is not allowed", "0 for no limit"),
    "clients": ("min_clients = -1", "min_clients = -1 is not allowed", "[0, 1000000]"),
    "strategy": ('strategies = ["segagg"]', "('segagg',) is not allowed", "strategies ls"),
    "strategy in capitals": ('strategies = ["SecAgg"]', "is not allowed", "strategies ls"),
    "selection": ('strategies = ["poisson+fedavg"]', "is not allowed", "strategies ls"),
    "no text": ("strategies = [3]", "strategies = (3,) is not allowed", "strategies ls"),
    "many": (f"strategies = {['he'] * 33}", "is not allowed", "at most 32"),
    "fraction": ("min_cohort = 2.5", "min_cohort = 2.5 is not allowed", "a number"),
}


@pytest.mark.parametrize(("text", "told", "hint"), BAD.values(), ids=BAD)
def test_a_policy_that_is_not_understood_is_no_policy(
    text: str, told: str, hint: str, tmp_path: Path
) -> None:
    (tmp_path / "policy.toml").write_text(text)
    with pytest.raises(ConfigError) as error:
        load_policy(tmp_path)
    assert told in str(error.value)
    assert hint in error.value.hint


def test_a_missing_policy_is_an_error_and_not_a_permission(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no .*policy\.toml"):
        load_policy(tmp_path)
