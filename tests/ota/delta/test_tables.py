import numpy as np
import pytest

from wildflower.ota.delta.tables import COMPARED, cluster, counts_of, entropy, fit


def counts(**by_symbol: float) -> np.ndarray:
    found = np.zeros(256)
    for name, count in by_symbol.items():
        found[int(name[1:])] = count
    return found


def test_entropy_of_known_counts() -> None:
    assert float(entropy(counts(s0=4, s1=2, s2=2))) == pytest.approx(12.0)  # 1, 2 and 2 bits
    assert float(entropy(counts(s7=1000))) == 0.0


def test_a_table_of_one_symbol_costs_no_bits() -> None:
    table = fit(counts(s3=1000))
    assert table.bits[3] == 0.0
    assert np.isinf(table.bits[4])


def test_symbols_that_are_equally_likely_share_a_run() -> None:
    noisy = np.random.default_rng(0).integers(45, 56, 256).astype(np.float64)
    assert len(fit(noisy).runs) == 1


def test_a_table_spends_no_more_on_itself_than_it_saves() -> None:
    found = np.random.default_rng(0).geometric(0.05, 2000).clip(0, 255).astype(np.uint8)
    table = fit(counts_of(found))
    assert len(table.runs) < 16
    assert table.bits[found].sum() < 1.03 * float(entropy(counts_of(found)))


def test_blocks_that_resemble_each_other_share_a_table() -> None:
    few, many = counts(s0=9000, s1=100), counts(s0=500, s1=4000, s2=4000)
    tables, table_of = cluster([few, many, few * 2, many * 3], 32)
    assert len(tables) == 2
    assert table_of[0] == table_of[2] != table_of[1] == table_of[3]


def test_there_are_never_more_tables_than_allowed() -> None:
    rng = np.random.default_rng(1)
    shape = counts(s0=9000, s1=500)
    blocks = [np.roll(shape, 3 * at) * float(rng.integers(1, 4)) for at in range(40)]
    tables, table_of = cluster(blocks, 32)
    assert len(tables) == 32
    assert all(
        np.isfinite(tables[table].bits[block > 0]).all()
        for block, table in zip(blocks, table_of, strict=True)
    )


def test_more_blocks_than_are_compared_at_a_time_still_share() -> None:
    blocks = [counts(s0=900, s1=100), counts(s5=900, s6=800)] * COMPARED
    tables, table_of = cluster(blocks, 32)
    assert len(tables) == 2
    assert table_of == [0, 1] * COMPARED


def test_no_blocks_need_no_table() -> None:
    assert cluster([], 32) == ([], [])
