"""The example in the documentation of the package runs as it is printed."""

from __future__ import annotations

import doctest

import megascale.core


def test_the_example_comes_out_as_printed() -> None:
    failed, tried = doctest.testmod(megascale.core)
    assert tried >= 10
    assert failed == 0
