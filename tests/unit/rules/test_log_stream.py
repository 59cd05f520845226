"""Plain streams: prefixes, levels, tracebacks of interleaved ranks; records with several lines; JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megascale.core.rules import BUILTIN, LineClassifier, RuleSet, classify_records, classify_text
from megascale.core.rules.line import clean, parse_line

RULES = RuleSet(BUILTIN)


@pytest.mark.parametrize(
    ("raw", "body", "level", "node", "rank"),
    [
        ("Mar  4 02:11:09 n-17 kernel: [81.2] NVRM: x", "NVRM: x", None, "n-17", None),
        ("2025-03-04T02:11:09.1+00:00 n-17 kernel: NVRM: x", "NVRM: x", None, "n-17", None),
        ("[rank3]:[E612 10:11:12.000 ProcessGroupNCCL.cpp:629] boom", "boom", "error", None, 3),
        ("I0312 12:00:00.123456    77 watch.go:12] boom", "boom", "info", None, None),
        ("2025-05-05 11:00:01,123 - trainer - WARNING - boom", "boom", "warning", None, None),
        ("2025-05-05 11:00:01.123 | INFO     | app.data:load:88 - boom", "boom", "info", None, None),
        ("(TrainWorker pid=81, ip=10.0.0.9) boom", "boom", None, "10.0.0.9", None),
        ("worker-0  | 2018-08-02T20:14:10.523Z ERROR boom", "boom", "error", "worker-0", None),
        ("\x1b[31mERROR\x1b[0m: boom", "boom", "error", None, None),
        ("kern  :warn  : 2025-01-21T04:41:44,285060+00:00 boom", "boom", None, None, None),
        ("rank 5 on host gpu-9: boom", "boom", None, "gpu-9", 5),
        ("[rank0]:   File x", "  File x", None, None, 0),
        ("node17: [rank3]: boom", "boom", None, "node17", 3),
        ("gpu-a07: boom", "boom", None, "gpu-a07", None),
        ("llm-worker-3: boom", "boom", None, "llm-worker-3", None),
        ("[pod/llm-worker-3/trainer] boom", "boom", None, "llm-worker-3", None),
        ("[1,3]<stderr>:boom", "boom", None, None, 3),
        ("12: boom", "boom", None, None, 12),
        ("081109 214043 148 WARN dfs.DataNode: boom", "dfs.DataNode: boom", "warning", None, None),
        ("eth0: link is down", "eth0: link is down", None, None, None),
        ("nvme0: boom", "nvme0: boom", None, None, None),
        ("KeyError2: boom", "KeyError2: boom", None, None, None),
    ],
)
def test_prefixes(raw: str, body: str, level: str | None, node: str | None, rank: int | None) -> None:
    line = parse_line(clean(raw))
    assert (line.body, line.level, line.node, line.rank) == (body, level, node, rank)


@pytest.mark.parametrize(
    ("daemon", "action"), [("sshd[812]", "none"), ("ftpd(pam_unix)[9]", "none"), ("trainer[812]", "restart")]
)
def test_daemons_that_have_no_part_in_the_job_trigger_nothing(daemon: str, action: str) -> None:
    line = f"Jun 30 20:53:04 n-17 {daemon}: error: Connection reset by peer"
    assert classify_text(line, RULES).action == action


def test_last_line_of_an_interleaved_traceback_decides() -> None:
    lines = [
        "[rank0]: Traceback (most recent call last):",
        "[rank1]: Traceback (most recent call last):",
        '[rank0]:   File "train.py", line 3, in <module>',
        '[rank0]:     raise RuntimeError("CUDA out of memory")',
        '[rank1]:   File "train.py", line 9, in step',
        '[rank1]:     check("Xid 79: GPU has fallen off the bus")',
        "[rank0]: KeyError: 'labels'",
        "[rank1]: mylib.Halted",
    ]
    classifier = LineClassifier(RULES)
    verdicts = [classifier.feed(line) for line in lines]
    assert [v.rule for v in verdicts[:6]] == [None] * 6
    assert (verdicts[6].rule, verdicts[6].rank) == ("user-exception", 0)
    assert (verdicts[7].rule, verdicts[7].category, verdicts[7].rank) == ("python-exception", "user_code", 1)


def test_source_line_under_a_lone_frame_is_no_event() -> None:
    classifier = LineClassifier(RULES)
    classifier.feed('  File "a.py", line 1, in f')
    assert classifier.feed("    raise OSError(errno.ENOSPC, 'No space left on device')").action == "none"
    assert classifier.feed("No space left on device").category == "storage"


def test_a_cause_explains_the_consequences_in_its_record() -> None:
    record = "\n".join(
        [
            "[rank1]:[E1 ProcessGroupNCCL.cpp:1] [Rank 1] collective operation timeout: WorkNCCL()",
            "Mar  1 10:00:00 n-4 kernel: NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.",
            "torch.distributed.elastic.multiprocessing.errors.ChildFailedError:",
        ]
    )
    verdict = classify_text(record, RULES)
    assert (verdict.rule, verdict.node, verdict.action) == ("xid-79", "n-4", "replace_node")


def test_peer_is_not_the_node() -> None:
    line = "h1:12:44 [0] x.c:1 NCCL WARN NET/IB: Got completion from peer 10.8.0.12<48123> with status=12"
    verdict = classify_text(line, RULES)
    assert (verdict.node, verdict.peer) == ("h1", "10.8.0.12")


def test_records_keep_their_ids_and_order() -> None:
    lines = [
        json.dumps({"record": "a", "text": "KeyError: 1", "host": "h7"}),
        "",
        "plain words",
        json.dumps({"id": 9, "text": "NVRM: Xid (PCI:0000:3b:00): 95, Uncontained"}),
        json.dumps({"level": "info", "msg": "ValueError: handled upstream"}),
        '{"text": broken',
    ]
    found = list(classify_records(lines, RULES))
    assert [item.record for item in found] == ["a", 1, 9, 3, 4]
    assert [item.verdict.category for item in found] == ["user_code", "benign", "gpu", "benign", "benign"]
    assert found[0].verdict.node == "h7"


@given(st.text(max_size=200))
def test_info_of_nccl_never_triggers(text: str) -> None:
    one_line = " ".join(text.split())
    assert classify_text(f"n1:1:2 [0] NCCL INFO {one_line}", RULES).action == "none"


@given(st.text(max_size=300))
def test_any_text_gets_a_verdict(text: str) -> None:
    verdict = classify_text(text, RULES)
    assert verdict.action != "none" or verdict.category in {"benign", "framework"}
