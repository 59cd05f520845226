from __future__ import annotations

import json

import pytest

from megascale.core.contract.bounded_json import parse_json


def nested(depth: int) -> str:
    return '{"a":[' * (depth // 2) + "]}" * (depth // 2)


@pytest.mark.parametrize("text", ["1", '"[[[[[["', nested(8), "[" + '{"x":"[{"},' * 50 + "1]"])
def test_json_within_the_bound_is_what_json_says(text: str) -> None:
    assert parse_json(text, 8) == parse_json(text.encode(), 8) == json.loads(text)


@pytest.mark.parametrize("text", [nested(10), nested(200), "[" * 100_000 + "]" * 100_000])
def test_json_beyond_the_bound_is_refused(text: str) -> None:
    for given in (text, text.encode()):
        with pytest.raises(ValueError, match="nested more than 9 levels") as caught:
            parse_json(given, 9)
        assert not isinstance(caught.value, json.JSONDecodeError)


def test_what_is_not_json_is_told_apart_from_what_is_too_deep() -> None:
    with pytest.raises(json.JSONDecodeError):
        parse_json('{"a": ')
