"""Files that would exhaust memory, disk or stack are refused with their name, position and bound."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from megascale.data import documents
from megascale.data.documents import Span, read_documents
from megascale.data.parts import Recipe
from megascale.data.prepare import describe, prepare
from megascale.errors import DataError

PREPARE = """
import re, sys
from pathlib import Path
from megascale.data.prepare import prepare
from megascale.errors import DataError
try:
    prepare([sys.argv[1]], Path(sys.argv[2]))
except DataError as error:
    print(error)
# ru_maxrss would have the peak of the process that forked this one.
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) >> 10)
"""


def bomb(suffix: str, mebibytes: int) -> bytes:
    piece = bytes(1 << 20)
    if suffix == ".gz":
        return gzip.compress(piece * mebibytes)
    compressor = zstandard.ZstdCompressor().compressobj()
    return b"".join(compressor.compress(piece) for _ in range(mebibytes)) + compressor.flush()


@pytest.mark.parametrize("kind", ["jsonl", "txt"])
def test_a_bomb_is_refused_within_bounded_memory(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}.zst"
    path.write_bytes(bomb(".zst", 2048))
    arguments = [sys.executable, "-c", PREPARE, str(path), str(tmp_path / "x")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=100)
    message, peak_mib = done.stdout.splitlines()
    assert message.startswith(f"{path}: the ")
    assert "expected at most 1000 times as many" in message
    assert int(peak_mib) < 700
    assert not list(tmp_path.glob("x.*"))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_text_that_shrinks_a_lot_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(bomb(suffix, 40))
    (document,) = read_documents(Span(path, 0, path.stat().st_size), "text", lambda _: None)
    assert sum(map(len, document.pieces)) == 40 << 20


def test_many_small_members_do_not_evade_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "_GROWTH_FREE_BYTES", 1 << 20)
    path = tmp_path / "a.txt.zst"
    path.write_bytes(bomb(".zst", 1) * 500)
    with pytest.raises(DataError, match=r"a\.txt\.zst: the \d+ bytes up to offset \d+ decompress to"):
        prepare([str(path)], tmp_path / "x")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_a_line_of_more_bytes_than_a_document_may_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(documents, "_MAX_DOCUMENT_BYTES", 1000)
    line = json.dumps({"text": "x" * 900}).encode() + b"\n"
    raw = line + json.dumps({"text": "y" * 1100}).encode() + b"\n"
    compress = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}
    path = tmp_path / name
    path.write_bytes(compress[name.removeprefix("a.jsonl")](raw))
    where = f"the line at offset {len(line)}" if name == "a.jsonl" else "line 2"
    with pytest.raises(DataError, match=f"{name}: {where} has more than 1000 bytes"):
        prepare([str(path)], tmp_path / "x", recipe=Recipe(skip_bad=True))


def test_lines_of_a_compressed_file_that_span_pieces(tmp_path: Path) -> None:
    texts = [f"{n} " * (n * 5000) for n in range(1, 8)]
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(zstandard.compress(b"\n".join(json.dumps({"text": t}).encode() for t in texts)))
    span = Span(path, 0, path.stat().st_size)
    assert [b"".join(d.pieces).decode() for d in read_documents(span, "text", lambda _: None)] == texts


def test_json_nested_too_deeply_is_a_bad_document_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\n' + '{"text": ' + "[" * 50_000 + "]" * 50_000 + "}\n")
    with pytest.raises(DataError, match=r"a\.jsonl: line 2: is not JSON: JSON nested more than 64 levels"):
        prepare([str(path)], tmp_path / "x")
    made = prepare([str(path)], tmp_path / "x", recipe=Recipe(skip_bad=True))
    assert (made.description.documents, made.description.skipped) == (1, 1)


def test_names_of_keys_are_shortened(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"k" * 100_000: 1}) + "\n")
    with pytest.raises(DataError) as caught:
        prepare([str(path)], tmp_path / "x")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("raw", ["[" * 10_000, '{"sources": 5}', '{"sources": [5], "evil": 1}', "[]", "5"])
def test_a_description_that_is_none_is_refused(tmp_path: Path, raw: str) -> None:
    (tmp_path / "a.txt").write_text("hello")
    prepare([str(tmp_path / "a.txt")], tmp_path / "x")
    (tmp_path / "x.json").write_text(raw)
    with pytest.raises(DataError, match=r"x\.json: is not the description of a dataset"):
        describe(tmp_path / "x")
    with pytest.raises(DataError, match=r"x\.json: is not the description of a dataset"):
        prepare([str(tmp_path / "a.txt")], tmp_path / "x")
