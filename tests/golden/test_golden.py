from __future__ import annotations

from pathlib import Path

import pytest
from replaying import mismatches
from transcript import play

TRANSCRIPTS = sorted(Path(__file__).parent.glob("*.txt"))


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_decisions_are_those_of_the_transcript(path: Path, request: pytest.FixtureRequest) -> None:
    written = path.read_text()
    told, log = play(written)
    if request.config.getoption("--accept", default=False):
        path.write_text(told)
    else:
        assert told == written, "if this is meant: pytest tests/golden --accept, and read the difference"
    assert not mismatches(log)


def test_every_sentence_is_understood_or_refused() -> None:
    with pytest.raises(ValueError, match="no such sentence"):
        play("policy: nodes 1\nat 1.0 the moon rises\n")
