from __future__ import annotations

from pathlib import Path

import pytest

from megascale.agent.logtail import LineMatch, LogTail


def test_alerts_and_known_lines_are_found_once(tmp_path: Path) -> None:
    log = tmp_path / "rank-0.log"
    tail = LogTail(log)
    assert tail.new_matches() == []
    log.write_text(
        "step 3 done\n"
        'megascale.alert {"kind": "checkpointSaveFailed", "message": "step 3: No space left"}\n'
        "NVRM: Xid (PCI:0000:3b:00): 79, pid=4242, GPU has fallen off the bus.\n"
        "half a li"
    )
    xid = "NVRM: Xid (PCI:0000:3b:00): 79, pid=4242, GPU has fallen off the bus."
    assert tail.new_matches() == [
        LineMatch("checkpointSaveFailed", "framework", "alert", "step 3: No space left"),
        LineMatch("xid-79", "gpu", "replace_node", xid),
    ]
    assert tail.new_matches() == []
    with log.open("a") as handle:
        handle.write("ne: nothing to see\n")
    assert tail.new_matches() == []


def test_a_torn_alert_is_still_an_alert(tmp_path: Path) -> None:
    log = tmp_path / "rank-0.log"
    log.write_text('megascale.alert {"kind": "checkpo\n')
    (match,) = LogTail(log).new_matches()
    assert match == LineMatch("unreadableAlert", "framework", "alert", 'megascale.alert {"kind": "checkpo')


@pytest.mark.parametrize("words", ["[1]", "7", '{"kind": "a"}', '{"message": "m"}', "\\xff"])
def test_alerts_that_say_something_else_are_passed_on_as_they_are(tmp_path: Path, words: str) -> None:
    log = tmp_path / "rank-0.log"
    line = f"megascale.alert {words}"
    log.write_text(f"{line}\n")
    assert LogTail(log).new_matches() == [LineMatch("unreadableAlert", "framework", "alert", line)]


def test_a_line_is_told_up_to_2000_characters_and_a_file_up_to_256_kib_at_a_time(tmp_path: Path) -> None:
    log = tmp_path / "rank-0.log"
    tail = LogTail(log)
    log.write_text("megascale.alert " + "x" * 5000 + "\n")
    (match,) = tail.new_matches()
    assert match.line == "megascale.alert " + "x" * 1984
    xid = "NVRM: Xid (PCI:0000:3b:00): 79, pid=4242, GPU has fallen off the bus."
    with log.open("a") as handle:
        handle.write(f"{'y' * 1023}\n" * 256 + f"{xid}\n")
    assert tail.new_matches() == []
    assert [match.line for match in tail.new_matches()] == [xid]
    with log.open("a") as handle:
        handle.write("z" * 3000)
    assert tail.last_lines(2) == [xid, "z" * 2000]


def test_a_line_that_comes_in_pieces_is_one_line(tmp_path: Path) -> None:
    log = tmp_path / "rank-0.log"
    tail = LogTail(log)
    found = []
    for piece in ("NVRM: Xid (PCI:0000:3b:00): ", "79, pid=4242, GPU has ", "fallen off the bus.\n"):
        with log.open("a") as handle:
            handle.write(piece)
        found.append([match.line for match in tail.new_matches()])
    assert found == [[], [], ["NVRM: Xid (PCI:0000:3b:00): 79, pid=4242, GPU has fallen off the bus."]]


def test_alerts_come_before_other_lines(tmp_path: Path) -> None:
    log = tmp_path / "rank-0.log"
    xids = [f"NVRM: Xid (PCI:0000:{n:02x}:00): 79, pid=1, GPU has fallen off the bus." for n in range(30)]
    log.write_text(
        "".join(f"{line}\n" for line in xids)
        + 'megascale.alert {"kind": "nonFiniteLoss", "message": "step 1"}\n'
    )
    found = LogTail(log).new_matches()
    assert found[0] == LineMatch("nonFiniteLoss", "framework", "alert", "step 1")
    assert [match.line for match in found[1:]] == xids[:15]


def test_findings_are_bounded_per_call(tmp_path: Path) -> None:
    log = tmp_path / "rank-0.log"
    log.write_text('megascale.alert {"kind": "nonFiniteLoss", "message": "step 1"}\n' * 5000)
    assert 0 < len(LogTail(log).new_matches()) <= 16


def test_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "rank-0.log"
    assert LogTail(log).last_lines(3) == []
    log.write_text("".join(f"line {number}\n\n" for number in range(100)))
    assert LogTail(log).last_lines(3) == ["line 97", "line 98", "line 99"]


def test_our_own_alerts_are_no_last_words(tmp_path: Path) -> None:
    log = tmp_path / "rank-0.log"
    log.write_text('killed\nmegascale.alert {"kind": "nonFiniteLoss", "message": "step 1"}\n')
    assert LogTail(log).last_lines(3) == ["killed"]


def test_losing_a_peer_says_nothing_about_this_node(tmp_path: Path) -> None:
    log = tmp_path / "rank-0.log"
    log.write_text(
        "RuntimeError: [../gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:24770\n"
    )
    assert LogTail(log).new_matches() == []


def test_bytes_that_are_no_text_do_not_hide_a_line(tmp_path: Path) -> None:
    log = tmp_path / "rank-0.log"
    log.write_bytes(b"\xff NVRM: Xid (PCI:0000:3b:00): 79, pid=1, GPU has fallen off the bus.\n")
    tail = LogTail(log)
    assert [match.category for match in tail.new_matches()] == ["gpu"]
    assert tail.last_lines(1)[0].startswith("\ufffd NVRM")
    with log.open("ab") as handle:
        handle.write(b"megascale.alert \xff\n")
    assert [match.line for match in tail.new_matches()] == ["megascale.alert \ufffd"]
