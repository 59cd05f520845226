"""From text to token files: what is written, when it is reused, and what a crash leaves."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megascale.data import prepare as module
from megascale.data import tokenizer
from megascale.data.ensure import ensure_prepared
from megascale.data.indexed import IndexedTokens
from megascale.data.prepare import describe, prepare
from megascale.data.sources import find_files
from megascale.errors import DataError
from megascale.job.data import Data


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    for name, content in {
        "b.txt": b"second\n",
        "a.txt": "f\u00fcr alle\n".encode(),
        "deep/er/c.md": b"third",
        "empty.txt": b"",
        ".hidden/d.txt": b"no",
        "__pycache__/e.txt": b"no",
        ".secret": b"no",
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def documents(prefix: Path) -> list[bytes]:
    indexed = IndexedTokens.open(prefix)
    sequences = [indexed.sequence(i) for i in range(len(indexed.lengths))]
    assert all(sequence[-1] == tokenizer.END_OF_DOCUMENT for sequence in sequences)
    return [tokenizer.decode(sequence) for sequence in sequences]


def listing(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


def test_every_file_is_a_document_in_sorted_order(texts: Path, tmp_path: Path) -> None:
    prepared = prepare([str(texts)], tmp_path / "out/x")
    assert documents(tmp_path / "out/x") == ["f\u00fcr alle\n".encode(), b"second\n", b"", b"third"]
    assert prepared.made
    assert listing(tmp_path / "out") == {"x.bin", "x.idx", "x.json"}
    facts = json.loads((tmp_path / "out/x.json").read_text())
    assert facts["sources"] == [str(texts)]
    assert (facts["files"], facts["textBytes"], facts["documents"], facts["tokens"]) == (4, 22, 4, 26)
    assert (facts["tokenizer"], facts["vocabSize"], facts["dtype"]) == ("byte", 257, "uint16")
    assert facts["digest"].startswith("sha256:")


def test_any_bytes_come_back(tmp_path: Path) -> None:
    text = np.random.default_rng(1).integers(0, 256, 100_000, dtype=np.uint8).tobytes()
    (tmp_path / "blob").write_bytes(text)
    prepare([str(tmp_path / "blob")], tmp_path / "x")
    assert documents(tmp_path / "x") == [text]


def test_the_same_text_gives_the_same_files(texts: Path, tmp_path: Path) -> None:
    for name in "xy":
        prepare([str(texts)], tmp_path / name)
    for suffix in ("bin", "idx", "json"):
        assert (tmp_path / f"x.{suffix}").read_bytes() == (tmp_path / f"y.{suffix}").read_bytes()


def test_globs_choose_files_in_folders_but_not_named_ones(texts: Path, tmp_path: Path) -> None:
    prepare([str(texts / "b.txt"), str(texts)], tmp_path / "x", globs=["*.md"])
    assert documents(tmp_path / "x") == [b"second\n", b"third"]


def test_a_file_reached_twice_is_taken_once(texts: Path) -> None:
    assert len(find_files([str(texts / "b.txt"), str(texts), str(texts / "deep")])) == 4


def test_the_outputs_are_no_inputs(texts: Path) -> None:
    prefix = texts / "x"
    before = prepare([str(texts)], prefix).description
    assert prepare([str(texts)], prefix, force=True).description == before


def test_python_stdlib(tmp_path: Path) -> None:
    files = find_files(["python-stdlib"])
    names = {"/".join(path.parts[-2:]) for path in files}
    assert {"asyncio/events.py", "json/decoder.py"} <= names
    assert all(path.suffix == ".py" and "site-packages" not in path.parts for path in files)
    assert sum(path.stat().st_size for path in files) > 10_000_000
    assert find_files(["python-stdlib"]) == files


def test_made_once_then_reused(texts: Path, tmp_path: Path) -> None:
    first = prepare([str(texts)], tmp_path / "x")
    stamp = (tmp_path / "x.bin").stat().st_ino
    (texts / "new.txt").write_text("more")
    again = prepare([str(texts)], tmp_path / "x")
    assert (again.made, again.description) == (False, first.description)
    assert (tmp_path / "x.bin").stat().st_ino == stamp
    forced = prepare([str(texts)], tmp_path / "x", force=True)
    assert forced.made
    assert forced.description.files == first.description.files + 1


def test_other_sources_are_not_passed_off_as_these(texts: Path, tmp_path: Path) -> None:
    prepare([str(texts)], tmp_path / "x")
    with pytest.raises(DataError, match=r"was prepared from .*texts, not from .*b\.txt; .*--output.*--force"):
        prepare([str(texts / "b.txt")], tmp_path / "x")
    with pytest.raises(DataError, match=r"--glob \*\.md"):
        prepare([str(texts)], tmp_path / "x", globs=["*.md"])


def test_files_of_other_tools_are_not_overwritten(texts: Path, tmp_path: Path) -> None:
    prepare([str(texts)], tmp_path / "x")
    (tmp_path / "x.json").unlink()
    with pytest.raises(DataError, match="was not made by `megascale data prepare`"):
        prepare([str(texts)], tmp_path / "x")


def test_damage_is_found_before_reuse(texts: Path, tmp_path: Path) -> None:
    prepare([str(texts)], tmp_path / "x")
    os.truncate(tmp_path / "x.bin", 10)
    with pytest.raises(DataError, match=r"x\.bin: is cut short.*--force"):
        prepare([str(texts)], tmp_path / "x")
    assert prepare([str(texts)], tmp_path / "x", force=True).made


@pytest.mark.parametrize("content", ["", "[]", "{", '{"other": 1}', '"text"'])
def test_a_strange_description_is_said_so(texts: Path, tmp_path: Path, content: str) -> None:
    prepare([str(texts)], tmp_path / "x")
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError, match=r"x\.json: is not the description"):
        describe(tmp_path / "x")


@pytest.mark.parametrize(
    ("sources", "globs", "message"),
    [
        (["nowhere"], ["*"], "nowhere: no such file or folder; give files, folders, or python-stdlib"),
        (["{texts}"], ["*.rst"], r"texts: holds no file that matches \*\.rst"),
        (["{texts}/empty.txt"], ["*"], "all 1 files are empty"),
        (["/dev/null"], ["*"], "/dev/null: is neither a file nor a folder"),
    ],
)
def test_nothing_to_read(
    texts: Path, tmp_path: Path, sources: list[str], globs: list[str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        prepare([source.format(texts=texts) for source in sources], tmp_path / "out/x", globs=globs)
    assert listing(tmp_path / "out") == set()


def test_a_place_that_cannot_be_written(texts: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file.*; the dataset was not made"):
        prepare([str(texts)], tmp_path / "file/x")


def test_progress_ends_at_the_total(texts: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    prepare([str(texts)], tmp_path / "x", on_progress=lambda done, total: calls.append((done, total)))
    assert [total for _, total in calls] == [22, 22, 22]
    assert [done for done, _ in calls] == [10, 17, 22]


def test_an_error_half_way_leaves_nothing(texts: Path, tmp_path: Path) -> None:
    def fail(done: int, _: int) -> None:
        if done > 15:
            raise OSError(28, "No space left on device", "x.bin")

    with pytest.raises(DataError, match="No space left on device"):
        prepare([str(texts)], tmp_path / "out/x", on_progress=fail)
    assert listing(tmp_path / "out") == set()


KILLED = """
import os, signal, sys
from pathlib import Path
from megascale.data import prepare as module

calls = 0

def die(*_):
    global calls
    calls += 1
    if calls == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

def replace(self, target):
    die()
    os.replace(self, target)

module.Path.replace = replace
module.prepare([sys.argv[1]], Path(sys.argv[2]), force=True, on_progress=die)
"""


@pytest.mark.parametrize("death", [1, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("before", ["nothing there", "replacing"])
def test_killed_at_any_moment_nothing_looks_complete(
    texts: Path, tmp_path: Path, death: int, before: str
) -> None:
    """Calls 1 to 3 are after each file of text, 4 before the part is kept, 5 to 7 before each rename."""
    old = prepare([str(texts / "b.txt")], tmp_path / "x").description if before == "replacing" else None
    command = [sys.executable, "-c", KILLED, str(texts), str(tmp_path / "x"), str(death)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    if (tmp_path / "x.idx").exists():
        assert old is not None
        assert describe(tmp_path / "x") == old
        assert documents(tmp_path / "x") == [b"second\n"]
    else:
        assert death >= 5 or old is None
    assert prepare([str(texts)], tmp_path / "x", force=old is not None).made
    assert len(documents(tmp_path / "x")) == 4
    assert listing(tmp_path) == {"texts", "x.bin", "x.idx", "x.json"}


def _prepare_at_once(start: object, texts: str, prefix: str, results: object) -> None:
    start.wait()  # type: ignore[attr-defined]
    results.put(module.prepare([texts], Path(prefix)).made)  # type: ignore[attr-defined]


def test_of_several_at_once_one_makes_and_the_others_reuse(texts: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start, results = context.Barrier(4), context.Queue()
    arguments = (start, str(texts), str(tmp_path / "x"), results)
    processes = [context.Process(target=_prepare_at_once, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    made = [results.get(timeout=30) for _ in processes]
    for process in processes:
        process.join(timeout=30)
    assert sorted(made) == [False, False, False, True]
    assert len(documents(tmp_path / "x")) == 4


def data(tmp_path: Path, sources: list[str], sequence_length: int = 4) -> Data:
    return Data(
        path=str(tmp_path / "x"),
        prepare_from=sources,
        sequence_length=sequence_length,
        micro_batch=1,
        global_batch=1,
    )


def test_ensure_makes_what_is_missing_once(texts: Path, tmp_path: Path) -> None:
    made = ensure_prepared(data(tmp_path, [str(texts)]), 257)
    assert made is not None
    assert made.made
    assert ensure_prepared(data(tmp_path, [str(texts)]), 257) is None


def test_ensure_makes_a_lost_token_file_again(texts: Path, tmp_path: Path) -> None:
    ensure_prepared(data(tmp_path, [str(texts)]), 257)
    (tmp_path / "x.bin").unlink()
    assert ensure_prepared(data(tmp_path, [str(texts)]), 257) is not None


def test_ensure_without_sources_wants_the_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.bin: no such file; make it with `megascale data prepare"):
        ensure_prepared(data(tmp_path, []), 257)


def test_ensure_takes_files_of_other_tools(texts: Path, tmp_path: Path) -> None:
    prepare([str(texts)], tmp_path / "x")
    (tmp_path / "x.json").unlink()
    assert ensure_prepared(data(tmp_path, ["elsewhere"]), 257) is None


def test_ensure_refuses_data_made_from_something_else(texts: Path, tmp_path: Path) -> None:
    prepare([str(texts)], tmp_path / "x")
    with pytest.raises(
        DataError, match=r"was prepared from .*texts, but the manifest says prepareFrom python-stdlib"
    ):
        ensure_prepared(data(tmp_path, ["python-stdlib"]), 257)


def test_ensure_refuses_less_than_one_sample(texts: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds 26 tokens, but one sample takes .* 1001"):
        ensure_prepared(data(tmp_path, [str(texts)], sequence_length=1000), 257)


def test_decode_refuses_ids_of_other_tokenizers() -> None:
    with pytest.raises(ValueError, match="expected 0 to 256"):
        tokenizer.decode(np.asarray([257]))
