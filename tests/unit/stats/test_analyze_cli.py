"""`megascale analyze` end to end."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
from pathlib import Path
from types import ModuleType

import pyarrow
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from megascale.cli.analyze import app
from megascale.errors import DataError, InputError, ManifestError

ROOT = Path(__file__).parents[3]
XID = "NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus"
HEADER = "step,rank,node,stage,segment,seconds\n"


def run(*arguments: str, stdin: str | None = None) -> str:
    result = CliRunner().invoke(app, list(arguments), input=stdin, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_logs_json_is_one_document(tmp_path: Path) -> None:
    log = tmp_path / "rank-0.log"
    log.write_text("")
    assert json.loads(run("logs", str(log), "--json")) == {"records": []}
    log.write_text(f"{XID}\nhello\n{XID}\n")
    lines = run("logs", str(log), "--jsonl").splitlines()
    assert json.loads(run("logs", str(log), "--json")) == {"records": [json.loads(line) for line in lines]}
    rules = json.loads(run("rules", "--json"))["rules"]
    assert len(rules) > 100
    assert {"id", "class", "action", "pattern"} <= set(rules[0])


def test_logs_jsonl_has_one_object_per_record(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text(f"all is well\nMar  1 10:00:00 n-4 kernel: {XID}\n")
    records = [json.loads(line) for line in run("logs", str(log), "--jsonl").splitlines()]
    assert records[0] == {"record": 0, "class": "benign", "action": "none", "rule": None, "node": None}
    assert records[1]["record"] == 1
    assert (records[1]["class"], records[1]["action"], records[1]["node"]) == ("gpu", "replace_node", "n-4")


def test_logs_from_standard_input_and_table() -> None:
    text = json.dumps({"text": XID, "node": "n-9"}) + "\n"
    assert json.loads(run("logs", "-", "--jsonl", stdin=text))["node"] == "n-9"
    table = run("logs", "-", stdin=text)
    assert "xid-79" in table
    assert "1 records, 1 of them matter" in table
    assert "nothing but benign" in run("logs", "-", stdin="hello\n")


NCCL_TESTS = """# nThread 1 nGpus 1 minBytes 8 maxBytes 268435456 step: 2(factor)
   65536   16384   float   sum   -1   12.1   90.00   90.00   0   12.3   90.90   90.90   0
  134217728   33554432   float   sum   -1   2512.1   53.43   53.43   0   2490.3   53.90   53.90   12
  268435456   67108864   float   sum   -1  29880.0   8.98   8.98   0  29777.0   9.01   9.01   0
# Out of bounds values : 1 FAILED
# Avg bus bandwidth    : 31.3300
"""


def test_wrong_sums_slow_sizes_and_failures_of_nccl_tests_are_named() -> None:
    found = [json.loads(line)["rule"] for line in run("logs", "-", "--jsonl", stdin=NCCL_TESTS).splitlines()]
    named = ["nccl-tests-wrong", "nccl-tests-slow", "nccl-tests-verdict"]
    assert found == [None, None, *named, None]
    table = run("logs", "-", stdin=NCCL_TESTS)
    assert "268435456 bytes at 8.98 GB/s, a smaller size reached 53.43 GB/s" in table
    assert "nccl-tests-wrong: a GPU or a link computes wrong sums" in table


def test_lines_that_look_like_errors_are_shown_as_unknown() -> None:
    text = "ERROR: rail 1 is bent\nERROR: rail 2 is bent\nFATAL: no rail\nall is well\n"
    table = run("logs", "-", stdin=text)
    assert "3 look like errors that no rule explains" in table
    rows = [line for line in table.splitlines() if "unknown-error" in line]
    assert len(rows) == 2
    assert "rail 1 is bent" in rows[0]


def test_a_full_dev_shm_comes_with_its_cure() -> None:
    line = "RuntimeError: unable to allocate shared memory(shm) for file </torch_7>: No space left on device"
    assert "Mount an emptyDir of medium Memory at /dev/shm" in run("logs", "-", stdin=line)


def test_rules_file_and_manifest_override(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("- match: {rule: xid-79}\n  action: restart\n")
    assert json.loads(run("logs", "-", "--jsonl", "--rules", str(rules), stdin=XID))["action"] == "restart"
    manifest = (ROOT / "examples" / "ddp.yaml").read_text()
    rules.write_text(
        f"{manifest}\n  logRules:\n    - {{id: bus, match: {{pattern: fallen off}}, action: replace_node}}\n"
    )
    found = json.loads(run("logs", "-", "--jsonl", "--rules", str(rules), stdin=XID))
    assert (found["rule"], found["action"], found["class"]) == ("bus", "replace_node", "host")
    assert run("rules", "--rules", str(rules)).splitlines()[0].split() == [
        "bus", "host", "replace_node", "cause", "spec.logRules",
    ]  # fmt: skip


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.log: cannot be read"):
        run("logs", str(tmp_path / "none.log"))
    with pytest.raises(ManifestError, match=r"none\.yaml: .*cannot be read"):
        run("logs", "-", "--rules", str(tmp_path / "none.yaml"), stdin="")


def test_compressed_and_empty_logs(tmp_path: Path) -> None:
    packed = tmp_path / "a.log.gz"
    packed.write_bytes(gzip.compress(f"kernel: {XID}\n".encode() * 100))
    with pytest.raises(InputError, match="is not text"):
        run("logs", str(packed))
    accents = tmp_path / "latin1.log"
    accents.write_bytes(f"ger\xe4t: {XID}\n".encode("latin-1"))
    assert json.loads(run("logs", str(accents), "--jsonl"))["rule"] == "xid-79"
    empty = tmp_path / "empty.log"
    empty.touch()
    assert run("logs", str(empty), "--jsonl") == ""


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["/bin/sh", "-c", f"echo '{XID}' > {pipe}"]):
        assert json.loads(run("logs", str(pipe), "--jsonl"))["rule"] == "xid-79"


def test_journal_records_of_bystanders_trigger_nothing() -> None:
    record = {"MESSAGE": "Connection reset by peer", "_HOSTNAME": "n1", "SYSLOG_IDENTIFIER": "sshd"}
    found = json.loads(run("logs", "-", "--jsonl", stdin=json.dumps(record)))
    assert (found["action"], found["node"]) == ("none", "n1")
    record["SYSLOG_IDENTIFIER"] = "trainer"
    assert json.loads(run("logs", "-", "--jsonl", stdin=json.dumps(record)))["class"] == "network"


def test_stragglers_from_csv(tmp_path: Path, traces: ModuleType) -> None:
    trace, label = traces.make("slow_rank", traces.Shape(1, 6, 1, 2, 120), 3, size=0.15, onset=40)
    where = trace.topology
    rows = [
        f"{step},{rank},{where.nodes[column]},0,{name},{values[row, column]:.6f}\n"
        for name, values in trace.seconds.items()
        for row, step in enumerate(trace.steps)
        for column, rank in enumerate(where.ranks)
    ]
    path = tmp_path / "t.csv"
    path.write_text(HEADER + "".join(reversed(rows)))
    (verdict,) = json.loads(run("stragglers", str(path), "--json"))["verdicts"]
    assert (verdict["kind"], verdict["node"], verdict["ranks"]) == (
        "slow_node",
        label.node,
        list(label.ranks),
    )
    assert set(verdict) == {"kind", "node", "ranks", "slowdown", "since_step", "confidence", "reason"}
    assert "slow_node" in run("stragglers", str(path))


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("step,rank,node\n", InputError, "column 'stage' is missing"),
        (HEADER + "1,0,a,0,forward,-1\n", DataError, "standard input:2: seconds is -1"),
        (HEADER + "1,0,a,0,forward,1\n1,zero,a,0,forward,1\n", DataError, "standard input:3: .*zero"),
        (HEADER + "1,0,a\n", DataError, "standard input:2: 3 fields"),
        (HEADER + "1,0,a,0,warp,1\n", InputError, "segment 'warp'"),
        (HEADER, DataError, "standard input: no timings"),
        ("", InputError, "standard input: is empty"),
    ],
)
def test_bad_timings_are_refused(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run("stragglers", "-", stdin=text)


def test_parquet_gives_the_same_verdicts_as_csv(tmp_path: Path, traces: ModuleType) -> None:
    trace, _ = traces.make("slow_rank", traces.Shape(1, 6, 1, 2, 120), 3, size=0.15, onset=40)
    where = trace.topology
    rows = [
        (int(step), rank, where.nodes[column], 0, name, float(values[row, column]))
        for name, values in trace.seconds.items()
        for row, step in enumerate(trace.steps)
        for column, rank in enumerate(where.ranks)
    ]
    names = HEADER.strip().split(",")
    table = pyarrow.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
    parquet.write_table(table, tmp_path / "t.parquet")
    text = HEADER + "".join(",".join(map(str, row)) + "\n" for row in rows)
    (tmp_path / "t.csv").write_text(text)
    found = [
        json.loads(run("stragglers", str(tmp_path / f"t.{kind}"), "--json")) for kind in ("parquet", "csv")
    ]
    assert found[0] == found[1]
    assert found[0]["verdicts"][0]["kind"] == "slow_node"


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_text("step,rank")
    with pytest.raises(InputError, match=r"t\.parquet: cannot be read as Parquet"):
        run("stragglers", str(tmp_path / "t.parquet"))
