"""JSONL, compression, BPE, workers, bad documents, and going on after a kill."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zstandard
from megatron.core.datasets.indexed_dataset import IndexedDataset

from megascale.data import parts as parts_module
from megascale.data import tokenizer
from megascale.data.documents import Span, read_documents
from megascale.data.indexed import IndexedTokens
from megascale.data.parts import Recipe, plan_parts
from megascale.data.prepare import describe, prepare
from megascale.data.tokenizer import BpeTokenizer, open_tokenizer
from megascale.data.training import train_bpe
from megascale.errors import DataError

TEXTS = [f"Document {n}: the quick brown fox jumps over the lazy dog, für {n} €." for n in range(50)]
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda raw: raw,
    ".gz": lambda raw: gzip.compress(raw[:1000]) + gzip.compress(raw[1000:]),
    ".zst": lambda raw: zstandard.compress(raw[:1000]) + zstandard.compress(raw[1000:]),
}


def jsonl(texts: list[str], key: str = "text") -> bytes:
    return b"".join(json.dumps({"id": n, key: text}).encode() + b"\n" for n, text in enumerate(texts))


def documents(prefix: Path) -> list[str]:
    indexed = IndexedTokens.open(prefix)
    return [tokenizer.decode(indexed.sequence(i)).decode() for i in range(len(indexed.lengths))]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_every_line_of_jsonl_is_a_document(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(COMPRESS[suffix](jsonl(TEXTS, "content")))
    made = prepare([str(path)], tmp_path / "x", recipe=Recipe(text_key="content"))
    assert documents(tmp_path / "x") == TEXTS
    assert (made.description.documents, made.description.text_key) == (50, "content")


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_text_is_one_document(tmp_path: Path, suffix: str) -> None:
    text = "\n".join(TEXTS)
    (tmp_path / f"a.txt{suffix}").write_bytes(COMPRESS[suffix](text.encode()))
    prepare([str(tmp_path / f"a.txt{suffix}")], tmp_path / "x")
    assert documents(tmp_path / "x") == [text]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_that_is_cut_short_or_damaged_is_named_with_its_offset(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    whole = COMPRESS[suffix](jsonl(TEXTS))
    path.write_bytes(whole[:-20])
    with pytest.raises(
        DataError, match=rf"a\.jsonl\{suffix}: is cut short: it ends at offset {len(whole) - 20}"
    ):
        prepare([str(path)], tmp_path / "x", recipe=Recipe(skip_bad=True))
    path.write_bytes(b"no such format" + whole)
    with pytest.raises(DataError, match=rf"a\.jsonl\{suffix}: damaged at or after offset 0"):
        prepare([str(path)], tmp_path / "x", recipe=Recipe(skip_bad=True))
    assert not (tmp_path / "x.idx").exists()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"text": "cut sho', "is not JSON"),
        (b"[1]", "is a JSON list, expected an object with 'text'"),
        (b'{"body": "x"}', "has no text under 'text'; its keys: 'body'"),
        (b'{"text": 5}', "has no text under 'text', but a JSON int"),
        (b'{"text": "\\ud800"}', "half of a surrogate pair"),
    ],
)
def test_a_bad_document_is_an_error_unless_it_may_be_skipped(
    tmp_path: Path, line: bytes, problem: str
) -> None:
    path = tmp_path / "a.jsonl"
    head = jsonl(TEXTS[:2])
    path.write_bytes(head + line + b"\n\n" + jsonl(TEXTS[2:4]))
    with pytest.raises(DataError, match=rf"a\.jsonl: line 3: .*{problem[:12]}.*skipBadDocuments"):
        prepare([str(path)], tmp_path / "x")
    said: list[str] = []
    made = prepare([str(path)], tmp_path / "x", recipe=Recipe(skip_bad=True), notify=said.append)
    assert documents(tmp_path / "x") == TEXTS[:4]
    assert (made.description.skipped, made.description.documents) == (1, 4)
    assert problem in said[-1]


def test_a_file_cut_into_spans_gives_each_line_once(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    raw = jsonl(TEXTS)
    path.write_bytes(raw)
    for size in (1, 7, 100, 1000, len(raw)):
        spans = [Span(path, at, min(at + size, len(raw))) for at in range(0, len(raw), size)]
        found = [b"".join(d.pieces) for span in spans for d in read_documents(span, "text", lambda _: None)]
        assert [text.decode() for text in found] == TEXTS


def test_parts_do_not_depend_on_workers_and_neither_does_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts_module, "_LEAST_BYTES", 1000)
    (tmp_path / "a.jsonl").write_bytes(jsonl(TEXTS))
    (tmp_path / "b.txt").write_text(TEXTS[0])
    sources = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.txt")]
    progress: list[tuple[int, int]] = []
    one = prepare(sources, tmp_path / "one")
    three = prepare(sources, tmp_path / "three", workers=3, on_progress=lambda *p: progress.append(p))
    assert one.description == three.description
    for suffix in ("bin", "idx"):
        assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"three.{suffix}").read_bytes()
    assert progress[-1][0] == progress[-1][1]
    assert documents(tmp_path / "one") == [*TEXTS, TEXTS[0]]


def test_only_uncompressed_jsonl_is_cut() -> None:
    mib = 1 << 20
    files = [Path("a.jsonl"), Path("b.txt"), Path("c.jsonl.gz")]
    assert [
        [(s.path.name, s.end - s.start) for s in part]
        for part in plan_parts(files, [2 * mib + 5, 3 * mib, mib])
    ] == [
        [("a.jsonl", mib)],
        [("a.jsonl", mib)],
        [("a.jsonl", 5)],
        [("b.txt", 3 * mib)],
        [("c.jsonl.gz", mib)],
    ]


@pytest.mark.parametrize(("size", "part"), [(5 << 20, 1 << 20), (128 << 20, 2 << 20), (1 << 40, 1 << 25)])
def test_parts_are_a_64th_within_bounds(size: int, part: int) -> None:
    first, *_ = plan_parts([Path("a.jsonl")], [size])
    assert [(span.start, span.end) for span in first] == [(0, part)]


KILLED = """
import os, signal, sys
from pathlib import Path
from megascale.data import parts
from megascale.data.prepare import prepare

parts._LEAST_BYTES = 1000
made = 0
original = parts._make_part

def make(*arguments):
    global made
    facts = original(*arguments)
    made += 1
    if made == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return facts

parts._make_part = make
prepare([sys.argv[1]], Path(sys.argv[2]))
"""


def test_a_killed_run_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(TEXTS))
    command = [sys.executable, "-c", KILLED, str(path), str(tmp_path / "x")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    monkeypatch.setattr(parts_module, "_LEAST_BYTES", 1000)
    made: list[Path] = []
    original = parts_module._make_part
    monkeypatch.setattr(
        parts_module, "_make_part", lambda base, *rest: (made.append(base), original(base, *rest))[1]
    )
    said: list[str] = []
    prepare([str(path)], tmp_path / "x", notify=said.append)
    total = -(-path.stat().st_size // 1000)
    assert len(made) == total - 3
    assert f"3 of {total} parts" in said[0]
    assert documents(tmp_path / "x") == TEXTS
    assert sorted(p.name for p in tmp_path.glob(".x.*")) == [".x.lock"]


def test_parts_of_changed_text_are_not_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "_LEAST_BYTES", 1000)
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(TEXTS) + b"bad\n")
    with pytest.raises(DataError):
        prepare([str(path)], tmp_path / "x")
    assert any((tmp_path / ".x.parts").glob("*/0.json"))
    path.write_bytes(jsonl(TEXTS[::-1]))
    os.utime(path, ns=(1, 1))
    prepare([str(path)], tmp_path / "x")
    assert documents(tmp_path / "x") == TEXTS[::-1]


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bpe")
    (folder / "a.jsonl").write_bytes(jsonl(TEXTS))
    assert train_bpe([str(folder / "a.jsonl")], folder / "bpe.json", 300) == 300
    return folder / "bpe.json"


def test_a_trained_tokenizer_gives_back_any_text(bpe: Path) -> None:
    trained = BpeTokenizer(bpe)
    for text in (TEXTS[0], "", "\x00\n ¿漢字? 🚀", "  indented\n\ttabs"):
        tokens = trained.encode(text.encode())
        assert trained.decode(tokens) == text
    assert len(trained.encode(TEXTS[0].encode())) < len(TEXTS[0]) / 2
    assert trained.end_of_document < trained.vocab_size == 300


def test_bpe_data_is_read_by_megatron_core(bpe: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(TEXTS))
    prepare([str(tmp_path / "a.jsonl")], tmp_path / "x", recipe=Recipe(tokenizer=str(bpe)), workers=2)
    trained = BpeTokenizer(bpe)
    theirs = IndexedDataset(str(tmp_path / "x"))
    assert len(theirs) == len(TEXTS)
    for index, text in enumerate(TEXTS):
        *tokens, end = theirs[index].tolist()
        assert end == trained.end_of_document
        assert trained.decode(np.asarray(tokens)) == text
    facts = describe(tmp_path / "x")
    assert facts is not None
    assert (facts.tokenizer, facts.vocab_size, facts.end_of_document) == (
        str(bpe),
        300,
        trained.end_of_document,
    )
    with pytest.raises(DataError, match=r"prepared with tokenizer .*bpe\.json, not byte"):
        prepare([str(tmp_path / "a.jsonl")], tmp_path / "x")


def test_text_that_is_not_utf8_is_bad_for_bpe_only(bpe: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"good \xff bad")
    with pytest.raises(DataError, match=r"a\.txt: is not UTF-8: byte 0xff at offset 5"):
        prepare([str(tmp_path / "a.txt")], tmp_path / "x", recipe=Recipe(tokenizer=str(bpe)))
    assert prepare([str(tmp_path / "a.txt")], tmp_path / "y").made


def test_a_tokenizer_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.json: no tokenizer can be read .*train-tokenizer"):
        open_tokenizer(str(tmp_path / "nowhere.json"))
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(DataError, match=r"bad\.json: is no tokenizer\.json"):
        open_tokenizer(str(tmp_path / "bad.json"))
