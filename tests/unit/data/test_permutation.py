"""The permutation behind the order of samples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megascale.data.permutation import Permutation


@given(st.integers(1, 3000), st.integers(0, 2**31), st.integers(0, 100))
def test_one_to_one(size: int, seed: int, epoch: int) -> None:
    there = Permutation(size, (seed, epoch))(np.arange(size))
    assert np.array_equal(np.sort(there), np.arange(size))


@given(st.integers(1, 2**62), st.integers(0, 2**31))
def test_large_sizes_stay_in_range_and_apart(size: int, seed: int) -> None:
    index = np.unique(np.linspace(0, size - 1, 50).astype(np.int64).clip(0, size - 1))
    there = Permutation(size, (seed,))(index)
    assert there.min() >= 0
    assert there.max() < size
    assert len(np.unique(there)) == len(index)


def test_a_pure_function_of_size_and_key() -> None:
    index = np.arange(100)
    assert np.array_equal(Permutation(1000, (1, 2))(index), Permutation(1000, (1, 2))(index))
    assert np.array_equal(Permutation(1000, (1, 2))(index)[40:50], Permutation(1000, (1, 2))(index[40:50]))
    for other in ((1, 3), (2, 2), (2, 1)):
        assert (Permutation(1000, (1, 2))(index) == Permutation(1000, other)(index)).mean() < 0.05


def test_the_order_is_fixed_for_good() -> None:
    """Checkpoints hold a count of samples only: another order would repeat some and skip others."""
    assert Permutation(1000, (1234, 0))(np.arange(6)).tolist() == [474, 381, 77, 400, 921, 325]


@pytest.mark.parametrize("size", [1000, 1024, 99_991])
def test_it_mixes(size: int) -> None:
    """Positions are uncorrelated, neighbours are separated, and every tenth gets its share of every tenth."""
    there = Permutation(size, (5, 6))(np.arange(size))
    assert abs(np.corrcoef(np.arange(size), there)[0, 1]) < 5 / np.sqrt(size)
    assert (np.abs(np.diff(there)) == 1).mean() < 0.02
    counts, _, _ = np.histogram2d(np.arange(size), there, bins=10)
    expected = size / 100
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert 30 < chi_square < 160  # 81 degrees of freedom


@pytest.mark.parametrize("size", [0, -1, 2**62 + 1])
def test_sizes_out_of_range(size: int) -> None:
    with pytest.raises(ValueError, match="expected 1 to"):
        Permutation(size, (1,))
