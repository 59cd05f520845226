"""The exact product and the checks around it, on a CPU."""

from __future__ import annotations

import pytest
import torch

from megascale.diagnose.measure import PRODUCT_CRC, exact_matrix, loopback, measure_device, product_crc

_CPU = torch.device("cpu")


@pytest.mark.parametrize("size", sorted(PRODUCT_CRC))
def test_the_known_checksum_is_that_of_the_product_in_integers(size):
    a, b = exact_matrix(size, 1), exact_matrix(size, 2)
    product = a @ b
    assert product_crc(product) == PRODUCT_CRC[size]
    weights = torch.arange(1, size + 1) % 997  # any wrong entry changes the weighted sum of its row
    expected = a.to(torch.int64) @ (b.to(torch.int64) @ weights)
    assert torch.equal(product.to(torch.int64) @ weights, expected)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_product_has_the_same_bits_for_any_number_of_threads(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert {product_crc(exact_matrix(1024, 1) @ exact_matrix(1024, 2)) for _ in range(5)} == {
            PRODUCT_CRC[1024]
        }
    finally:
        torch.set_num_threads(before)


def test_entries_are_exact_in_bfloat16_and_sums_in_float32():
    matrix = exact_matrix(1024, 1)
    assert torch.equal(matrix.to(torch.bfloat16).to(torch.float32), matrix)
    assert matrix.abs().max().item() == 15
    assert 15 * 15 * 8192 < 2**24


def test_a_healthy_cpu_has_nothing_wrong():
    found = {m.check: m for m in measure_device(_CPU, seconds=0.05, host="127.0.0.1")}
    assert set(found) == {"bits", "gemm", "memory", "loopback"}
    assert not any(m.wrong for m in found.values())
    assert all(m.value > 0 for m in found.values() if m.unit)


def test_one_wrong_entry_is_seen():
    bits = next(iter(measure_device(_CPU, seconds=0.05, host="127.0.0.1", corrupt=True)))
    assert "expected 6fe8d100" in bits.wrong


def test_loopback_goes_through_the_address_it_is_given():
    assert loopback("127.0.0.1").wrong == ""
    with pytest.raises(OSError, match="assign"):
        loopback("192.0.2.1")
