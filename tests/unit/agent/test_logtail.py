from __future__ import annotations

import pytest

from megascale.agent.logtail import LineMatch, LogTail


def fed(said: str | bytes) -> LogTail:
    """The tail of a rank that has said this."""
    tail = LogTail()
    tail.feed(said.encode() if isinstance(said, str) else said)
    return tail


def test_alerts_and_known_lines_are_found_once() -> None:
    tail = LogTail()
    assert tail.new_matches() == []
    tail = fed(
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
    tail.feed(b"ne: nothing to see\n")
    assert tail.new_matches() == []


def test_a_torn_alert_is_still_an_alert() -> None:
    tail = fed('megascale.alert {"kind": "checkpo\n')
    (match,) = tail.new_matches()
    assert match == LineMatch("unreadableAlert", "framework", "alert", 'megascale.alert {"kind": "checkpo')


@pytest.mark.parametrize("words", ["[1]", "7", '{"kind": "a"}', '{"message": "m"}', "\\xff"])
def test_alerts_that_say_something_else_are_passed_on_as_they_are(words: str) -> None:
    line = f"megascale.alert {words}"
    tail = fed(f"{line}\n")
    assert tail.new_matches() == [LineMatch("unreadableAlert", "framework", "alert", line)]


def test_a_line_is_told_up_to_2000_characters_and_a_file_up_to_256_kib_at_a_time() -> None:
    tail = LogTail()
    tail = fed("megascale.alert " + "x" * 5000 + "\n")
    (match,) = tail.new_matches()
    assert match.line == "megascale.alert " + "x" * 1984
    xid = "NVRM: Xid (PCI:0000:3b:00): 79, pid=4242, GPU has fallen off the bus."
    tail.feed((f"{'y' * 1023}\n" * 256 + f"{xid}\n").encode())
    assert tail.new_matches() == []
    assert [match.line for match in tail.new_matches()] == [xid]
    tail.feed(("z" * 3000).encode())
    assert tail.last_lines(2) == [xid, "z" * 2000]


def test_a_line_that_comes_in_pieces_is_one_line() -> None:
    tail = LogTail()
    found = []
    for piece in ("NVRM: Xid (PCI:0000:3b:00): ", "79, pid=4242, GPU has ", "fallen off the bus.\n"):
        tail.feed((piece).encode())
        found.append([match.line for match in tail.new_matches()])
    assert found == [[], [], ["NVRM: Xid (PCI:0000:3b:00): 79, pid=4242, GPU has fallen off the bus."]]


def test_alerts_come_before_other_lines() -> None:
    xids = [f"NVRM: Xid (PCI:0000:{n:02x}:00): 79, pid=1, GPU has fallen off the bus." for n in range(30)]
    tail = fed(
        "".join(f"{line}\n" for line in xids)
        + 'megascale.alert {"kind": "nonFiniteLoss", "message": "step 1"}\n'
    )
    found = tail.new_matches()
    assert found[0] == LineMatch("nonFiniteLoss", "framework", "alert", "step 1")
    assert [match.line for match in found[1:]] == xids[:15]


def test_findings_are_bounded_per_call() -> None:
    tail = fed('megascale.alert {"kind": "nonFiniteLoss", "message": "step 1"}\n' * 5000)
    assert 0 < len(tail.new_matches()) <= 16


def test_last_lines() -> None:
    assert LogTail().last_lines(3) == []
    tail = fed("".join(f"line {number}\n\n" for number in range(100)))
    assert tail.last_lines(3) == ["line 97", "line 98", "line 99"]


def test_our_own_alerts_are_no_last_words() -> None:
    tail = fed('killed\nmegascale.alert {"kind": "nonFiniteLoss", "message": "step 1"}\n')
    assert tail.last_lines(3) == ["killed"]


def test_losing_a_peer_says_nothing_about_this_node() -> None:
    tail = fed(
        "RuntimeError: [../gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:24770\n"
    )
    assert tail.new_matches() == []


def test_bytes_that_are_no_text_do_not_hide_a_line() -> None:
    tail = fed(b"\xff NVRM: Xid (PCI:0000:3b:00): 79, pid=1, GPU has fallen off the bus.\n")
    assert [match.category for match in tail.new_matches()] == ["gpu"]
    assert tail.last_lines(1)[0].startswith("\ufffd NVRM")
    tail.feed(b"megascale.alert \xff\n")
    assert [match.line for match in tail.new_matches()] == ["megascale.alert \ufffd"]
