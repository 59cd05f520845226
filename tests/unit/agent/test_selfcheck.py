from __future__ import annotations

import asyncio
import sys
import time

import pytest

from megascale.agent.selfcheck import CHECK, wrong_numbers


def says(text: str) -> tuple[str, ...]:
    return sys.executable, "-c", f"print({text!r})"


@pytest.mark.parametrize(
    ("verdict", "found"),
    [
        ('{"kind": "wrong", "reason": "rank 0: a product differs"}', "rank 0: a product differs"),
        ('{"kind": "slow", "reason": "gemm at half of its floor"}', ""),
        ('{"kind": "", "reason": "every check passed"}', ""),
        ("no JSON", ""),
        ("[]", ""),
    ],
)
def test_only_bits_that_differ_count(verdict: str, found: str) -> None:
    assert asyncio.run(wrong_numbers(20.0, says(verdict))) == found


def test_a_check_that_hangs_is_ended_and_convicts_nobody() -> None:
    began = time.monotonic()
    hangs = (sys.executable, "-c", "import signal; signal.pause()")
    assert asyncio.run(wrong_numbers(0.5, hangs)) == ""
    assert time.monotonic() - began < 10.0


@pytest.mark.slow
def test_the_real_check_finds_bits_that_differ() -> None:
    assert "wrong numbers" in asyncio.run(wrong_numbers(60.0, (*CHECK, "--inject", "wrong-bits")))
