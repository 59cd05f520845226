"""Every field of an event comes from a message, and every field of a message is read by somebody."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from megascale.core.contract import events as ev
from megascale.driver import wire
from megascale.driver.links import AgentLink
from megascale.driver.segments import SegmentBoard
from megascale.fleet.base import SlotEvent
from megascale.rpc import megascale_pb2 as pb

REPORT = json.dumps({"type": "OSError", "message": "no space", "detail": {"errno": 28}})
OTHER_REPORTS = (
    json.dumps({"type": "ValueError", "message": "no space", "detail": {"errno": 28}}),
    json.dumps({"type": "OSError", "message": "quota", "detail": {"errno": 28}}),
    json.dumps({"type": "OSError", "message": "no space", "detail": {"errno": 122}}),
)
FENCE = pb.Fence(node="n0", incarnation="a", term=1, attempt=4, seq=9)
COMMIT = pb.Commit(step=20, attempt=3)
STATUS = pb.RankStatus(
    rank=1, pid=77, step=9, phase="forward", micro_batch=2, tokens=1000, loss=2.5, grad_norm=1.5,
    step_seconds=0.5, stall_seconds=0.25, progress_at=10.0, groups_at=11.0, loaded_at=12.0,
    first_step_at=13.0, saved_step=8, saved_attempt=4, flops=1e12, peak_flops=2e12, snapshot_step=9,
    snapshot_attempt=4, snapshot_seconds=0.125,
)  # fmt: skip
EXIT = pb.RankExit(
    rank=1,
    attempt=4,
    exit_code=3,
    signal=9,
    at=5.0,
    step=9,
    exit_report=REPORT,
    log_tail=["last"],
    injected=True,
    host_note="kernel: Out of memory",
)
LOG = pb.LogMatch(
    rank=1, attempt=4, rule="oom", category="host", action="restart_in_place", line="oom", at=5.0
)
HARDWARE = pb.HardwareEvent(
    sign="xid", code=79, text="fell off", at=5.0, rule="xid-79", category="gpu", action="none"
)
EVIDENCE = pb.RankEvidence(
    rank=1, process_state="D", step=9, phase="forward", micro_batch=2, stack=["f (a.py:1)"], collectives=44
)
SEGMENTS = pb.RankSegments(rank=0, first_step=7, compute_s=[0.5])
COMMAND = pb.CommandRequest(command="evict", node="n0", reason="fan noise", by="ann")
MESSAGES: dict[type, Message] = {
    ev.NodeJoined: pb.AgentMessage(
        fence=FENCE,
        hello=pb.Hello(pid=1, ranks=[1], labels={"rack": "r1"}, snapshots=[COMMIT], host="h", pod="p"),
    ),
    ev.NodeReport: pb.AgentMessage(fence=FENCE, report=pb.Report(ranks=[STATUS])),
    ev.CommitDone: pb.AgentMessage(fence=FENCE, report=pb.Report(ranks=[STATUS])),
    ev.RankExited: pb.AgentMessage(fence=FENCE, exit=EXIT),
    ev.LogMatch: pb.AgentMessage(fence=FENCE, log=LOG),
    ev.HardwareEvent: pb.AgentMessage(fence=FENCE, hardware=HARDWARE),
    ev.Evidence: pb.AgentMessage(fence=FENCE, evidence=pb.Evidence(command_id="e-1", ranks=[EVIDENCE])),
    ev.SnapshotReady: pb.AgentMessage(fence=FENCE, result=pb.CommandResult(snapshots=[COMMIT])),
    ev.SegmentTimes: pb.AgentMessage(fence=FENCE, segments=pb.SegmentTimes(attempt=4, ranks=[SEGMENTS])),
    ev.ManualCommand: COMMAND,
}
_SENDER = {"fence.term": "fencing", "fence.seq": "for people who read a dump of the stream"}
_OTHER_BODY = "of the other event that a report leads to"
UNREAD: dict[type, dict[str, str]] = {
    ev.NodeJoined: _SENDER
    | {
        "hello.pid": "for people",
        "hello.snapshots.step": "SnapshotReady",
        "hello.snapshots.attempt": "SnapshotReady",
        "hello.host": "AgentLink.address",
        "hello.pod": "AgentLink.pod",
    },
    ev.NodeReport: _SENDER
    | dict.fromkeys(("report.ranks.saved_step", "report.ranks.saved_attempt"), "CommitDone")
    | {
        f"report.ranks.{name}": "the status shows it"
        for name in (
            "pid", "micro_batch", "tokens", "flops", "peak_flops", "snapshot_step", "snapshot_attempt"
        )
    },
    ev.RankExited: _SENDER | {"fence.attempt": "the exit names its own"},
    ev.LogMatch: _SENDER
    | {"fence.attempt": "the match names its own", "fence.incarnation": "a log outlives it"},
    ev.HardwareEvent: _SENDER
    | dict.fromkeys(("fence.attempt", "fence.incarnation"), "hardware outlives attempts and agents"),
    ev.Evidence: _SENDER
    | dict.fromkeys(("fence.attempt", "fence.incarnation"), "the effect's id says enough"),
    ev.SnapshotReady: _SENDER
    | dict.fromkeys(("fence.attempt", "fence.incarnation"), "snapshots name their own attempt"),
    ev.SegmentTimes: dict.fromkeys(
        ("fence.node", "fence.incarnation", "fence.term", "fence.attempt", "fence.seq"), "ranks are named"
    ),
}  # fmt: skip


def convert(kind: type, message: Any) -> list[Any]:
    """What the driver makes of the message."""
    if kind is ev.ManualCommand:
        return [wire.command_event(message)]
    link = AgentLink(message.fence.node, message.fence.incarnation, "address")
    link.attempt = message.fence.attempt
    conversions: dict[type, Callable[[], list[Any]]] = {
        ev.NodeJoined: lambda: [wire.joined_event(link, message, {"rack": "known", "row": "7"})],
        ev.NodeReport: lambda: [wire.report_event(link, list(message.report.ranks))],
        ev.CommitDone: lambda: [
            wire.commit_event(commit, 1.0) for commit in wire.saved_commits(message.report.ranks)
        ],
        ev.RankExited: lambda: [wire.exit_event(link, message.exit)],
        ev.LogMatch: lambda: [wire.log_event(link, message.log)],
        ev.HardwareEvent: lambda: [wire.hardware_event(link, message.hardware)],
        ev.Evidence: lambda: [wire.evidence_event(link, message.evidence)],
        ev.SnapshotReady: lambda: wire.snapshot_events(link.node, message.result.snapshots),
        ev.SegmentTimes: lambda: SegmentBoard().take(
            message.segments, message.segments.attempt, message.segments.ranks[0].rank + 1
        ),
    }
    return conversions[kind]()


def variants(message: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path of a leaf, the message with another value there), for every leaf that is set."""
    for field, value in message.ListFields():
        name = f"{path}{field.name}"
        is_list = field.is_repeated
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            changed = _copy(message)
            getattr(changed, field.name)["rack"] = "r2"
            yield name, changed
        elif field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
            for leaf, inner in variants(value[0] if is_list else value, f"{name}."):
                changed = _copy(message)
                target = getattr(changed, field.name)
                (target[0] if is_list else target).CopyFrom(inner)
                yield leaf, changed
        else:
            for other in _others(field.name, value[0] if is_list else value):
                changed = _copy(message)
                if is_list:
                    getattr(changed, field.name)[0] = other
                else:
                    setattr(changed, field.name, other)
                yield name, changed


def _copy(message: Any) -> Any:
    copied = type(message)()
    copied.CopyFrom(message)
    return copied


def _others(name: str, value: Any) -> tuple[Any, ...]:
    if name == "exit_report":
        return OTHER_REPORTS
    if name == "command":
        return ("release",)
    if isinstance(value, str):
        return (f"{value}, changed",)
    return (not value,) if isinstance(value, bool) else (value + 1,)


def flat(event: Any, path: str = "") -> dict[str, Any]:
    """Field -> value; fields of nested records as `ranks.step`."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(event):
        value = getattr(event, field.name)
        nested = (
            value[0] if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]) else None
        )
        if nested is not None:
            found |= flat(nested, f"{path}{field.name}.")
        else:
            found[path + field.name] = value
    return found


def test_every_kind_of_event_is_carried_or_listed() -> None:
    local = {
        kind
        for kind in ev.Event.__args__
        if set(kind.__dataclass_fields__) <= set(wire.LOCAL_ONLY.get(kind, {}))
    }
    assert set(MESSAGES) | local | {ev.NodeGone} == set(ev.Event.__args__)
    assert not set(MESSAGES) & local


def unset(message: Any, path: str = "") -> Iterator[str]:
    """Paths of fields without a value, but for other bodies of the same oneof."""
    present = {field.name: value for field, value in message.ListFields()}
    for field in message.DESCRIPTOR.fields:
        value = present.get(field.name)
        is_message = field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE
        if field.name not in present:
            if field.containing_oneof is None or field.containing_oneof.name != "body":
                yield path + field.name
        elif is_message and not field.message_type.GetOptions().map_entry:
            yield from unset(value[0] if field.is_repeated else value, f"{path}{field.name}.")


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_the_sample_sets_every_field_of_its_message(kind: type) -> None:
    missing = set(unset(MESSAGES[kind]))
    if kind is ev.SegmentTimes:
        missing.remove("segments.ranks.rank")  # 0 is the first rank
    assert {name for name in missing if not name.startswith("result.")} == set()


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_fields_of_events_come_from_messages(kind: type) -> None:
    (event,) = convert(kind, MESSAGES[kind])
    before, reached, unread = flat(event), set[str](), set[str]()
    for path, message in variants(MESSAGES[kind]):
        after = flat(convert(kind, message)[0])
        changed = {name for name in before if before[name] != after.get(name)}
        reached |= changed
        if not changed:
            unread.add(path)
    assert reached == set(before) - set(wire.LOCAL_ONLY.get(kind, {}))
    if kind is not ev.CommitDone:
        assert unread == set(UNREAD.get(kind, {}))


def test_how_a_rank_ended_is_its_code_or_its_signal() -> None:
    link = AgentLink("n0", "a", "address")
    by_code = wire.exit_event(link, pb.RankExit(exit_code=0))
    by_signal = wire.exit_event(link, pb.RankExit(signal=9))
    assert (by_code.exit_code, by_code.signal) == (0, None)
    assert (by_signal.exit_code, by_signal.signal) == (None, 9)


@pytest.mark.parametrize("report", ["", "{", "[1]", '"text"', '{"detail": [1]}'])
def test_an_exit_report_that_cannot_be_read_is_left_out(report: str) -> None:
    found = wire.exit_event(AgentLink("n0", "a", "address"), pb.RankExit(exit_code=1, exit_report=report))
    assert (found.error_type, found.error_message, found.error_detail) == (None, "", {})


def test_an_event_of_a_device_without_a_code_has_none() -> None:
    assert wire.hardware_event(AgentLink("n0", "a", "x"), pb.HardwareEvent(sign="nic")).code is None


def test_ranks_that_saved_nothing_tell_of_no_commit() -> None:
    never, first = pb.RankStatus(saved_step=-1), pb.RankStatus(saved_step=0, saved_attempt=2)
    assert {(c.step, c.attempt) for c in wire.saved_commits([never, first, first])} == {(0, 2)}


@pytest.mark.parametrize("field", dataclasses.fields(SlotEvent), ids=lambda field: field.name)
def test_what_the_fleet_says_of_a_slot_reaches_the_core(field: Any) -> None:
    slot = SlotEvent("n0", "why", 5.0)
    value = getattr(slot, field.name)
    other = dataclasses.replace(slot, **{field.name: _others("", value)[0]})
    assert wire.slot_event(slot, "a") != wire.slot_event(other, "a")
    assert wire.slot_event(slot, "a") != wire.slot_event(slot, "b")


def test_a_notice_is_a_drain_and_an_end_is_a_lost_node() -> None:
    at = {"node": "n0", "reason": "why", "at": 5.0}
    assert wire.slot_event(SlotEvent(**at, leaving=True), "a") == ev.HardwareEvent(
        "n0", "drain", text="why", at=5.0
    )
    gone = wire.slot_event(SlotEvent(**at, planned=True, injected=True), "a")
    assert gone == ev.NodeGone("n0", "a", "why", at=5.0, planned=True, injected=True)
