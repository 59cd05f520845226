"""Checks what agents send against what the driver knows, and bounds every text and list of it.

Whoever has the token of one node may send anything. A message that cannot be true is refused as a whole; a
time that cannot be is replaced by the nearest one that can, because clocks of nodes differ.
"""

from __future__ import annotations

import math
import re
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from megascale.core.machine import Core
from megascale.errors import MegascaleError
from megascale.rpc import megascale_pb2 as pb

TEXT_CHARACTERS: Final = 4096
_REPORT_CHARACTERS: Final = 16384
_ITEMS: Final = 1024
_LABELS: Final = 64
NODE_NAME: Final = re.compile(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?")
_HOST: Final = re.compile(r"[A-Za-z0-9:._%-]{0,253}")
_WORD: Final = re.compile(r"[A-Za-z0-9._:-]{0,128}")
_AHEAD_S: Final = 60.0
_EVENT_AGE_S: Final = 86_400.0
_RUN_AGE_S: Final = 366 * 86_400.0
_LONGEST_S: Final = 366 * 86_400.0
_STEPS_PER_S: Final = 1000.0
_STEPS_AT_ONCE: Final = 1000
_OWN_STEPS: Final = 1_000_000_000
"""The highest step of a script that counts its own."""
_REAL: Final = (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT)


class RefusedMessageError(MegascaleError):
    """A message that cannot be true; names the field, its value and what was expected."""


class Border:
    """Checks messages for one driver."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._assignment: tuple[str, ...] = ()
        self._places: dict[str, int] = {}

    @property
    def _steps(self) -> int:
        """The highest step that ranks may name."""
        return self._core.policy.steps if self._core.policy.reports_steps else _OWN_STEPS

    def check_hello(self, message: pb.AgentMessage) -> None:
        """Check the first message of a stream and shorten its texts.

        Raises:
            RefusedMessageError: a field cannot be true.
        """
        fence, hello = message.fence, message.hello
        _match("fence.node", fence.node, NODE_NAME, "a node name")
        _match("fence.incarnation", fence.incarnation, _WORD, "up to 128 letters, digits and ._:-")
        _match("hello.host", hello.host, _HOST, "a host name or an IP address")
        _match("hello.pod", hello.pod, _HOST, "a pod name")
        self.check_attempt(fence.attempt)
        _at_most("hello.labels", len(hello.labels), _LABELS)
        shorten(hello)
        self._check_snapshots("hello.snapshots", hello.snapshots)

    def check_attempt(self, attempt: int) -> None:
        """Check the attempt that a message is of.

        Raises:
            RefusedMessageError: no such attempt was launched.
        """
        _at_most("fence.attempt", attempt, self._core.record.attempt)

    def check_report(
        self, node: str, message: pb.AgentMessage, before: pb.Report, elapsed_s: float, now: float
    ) -> None:
        """Check a report of the current attempt and correct its times.

        Args:
            before: the node's report before, `elapsed_s` seconds ago.
            now: Unix seconds.

        Raises:
            RefusedMessageError: a rank is not of the node, or a number cannot be true.
        """
        ranks = message.report.ranks
        own = self.ranks_of(node)
        if not own:  # its ranks ended, and their places were given to others
            del ranks[:]
        _at_most("report.ranks", len(ranks), len(own))
        steps = self._steps
        newest = max((rank.step for rank in before.ranks), default=None)
        if newest is not None and self._core.policy.reports_steps:
            steps = min(steps, newest + _STEPS_AT_ONCE + int(_STEPS_PER_S * max(0.0, elapsed_s)))
        for rank in ranks:
            _one_of("report.rank", rank.rank, own, node)
            self._check_rank(rank, steps, now)

    def check_other(self, node: str, message: pb.AgentMessage, now: float) -> None:
        """Check a message that is no report; shorten its texts and lists, and correct its times.

        Raises:
            RefusedMessageError: a rank is not of the node, or a number cannot be true.
        """
        match message.WhichOneof("body"):
            case "exit":
                self._check_rank_of("exit", node, message.exit)
                _at_most("exit.step", message.exit.step, self._steps)
                message.exit.at = _possible_time(message.exit.at, now, _EVENT_AGE_S)
                shorten(message.exit)
            case "log":
                self._check_rank_of("log", node, message.log)
                message.log.at = _possible_time(message.log.at, now, _EVENT_AGE_S)
                shorten(message.log)
            case "hardware":
                message.hardware.at = _possible_time(message.hardware.at, now, _EVENT_AGE_S)
                shorten(message.hardware)
            case "result":
                self._check_result(message.result)
            case "evidence":
                self._check_evidence(node, message.evidence)
            case "segments":
                self._check_segments(node, message.segments)

    def _check_rank_of(self, kind: str, node: str, body: pb.RankExit | pb.LogMatch) -> None:
        _at_most(f"{kind}.attempt", body.attempt, self._core.record.attempt)
        if body.attempt == self._core.record.attempt:
            _one_of(f"{kind}.rank", body.rank, self.ranks_of(node), node)

    def _check_result(self, result: pb.CommandResult) -> None:
        _at_most("result.store_port", result.store_port, 65535)
        if not 0.0 <= result.gemm_speed < math.inf:
            raise _refused("result.gemm_speed", result.gemm_speed, "a number >= 0")
        self._check_snapshots("result.snapshots", result.snapshots)
        shorten(result)

    def _check_evidence(self, node: str, evidence: pb.Evidence) -> None:
        own = self.ranks_of(node)
        for rank in evidence.ranks:
            _one_of("evidence.rank", rank.rank, own, node)
            _at_most("evidence.step", rank.step, self._steps)
        shorten(evidence)

    def _check_segments(self, node: str, segments: pb.SegmentTimes) -> None:
        _at_most("segments.attempt", segments.attempt, self._core.record.attempt)
        if segments.attempt != self._core.record.attempt:
            return
        own = self.ranks_of(node)
        for rank in segments.ranks:
            _one_of("segments.rank", rank.rank, own, node)
            _at_most("segments.first_step", rank.first_step, self._steps)
            if not all(0.0 <= seconds <= _LONGEST_S for seconds in rank.compute_s):
                raise _refused("segments.compute_s", list(rank.compute_s), "seconds up to a year")

    def ranks_of(self, node: str) -> range:
        """The ranks of a node in the current attempt; empty if it has none."""
        record = self._core.record
        if record.assignment is not self._assignment:
            self._assignment = record.assignment
            self._places = {name: place for place, name in enumerate(record.assignment)}
        place = self._places.get(node)
        if place is None:
            return range(0)
        each = record.ranks // len(record.assignment)
        return range(place * each, (place + 1) * each)

    def _check_rank(self, rank: pb.RankStatus, steps: int, now: float) -> None:
        _at_most("report.step", rank.step, steps)
        own = rank.step if self._core.policy.reports_steps else steps
        _at_most("report.saved_step", rank.saved_step, own)
        _at_most("report.saved_attempt", rank.saved_attempt, self._core.record.attempt)
        _at_most("report.snapshot_step", rank.snapshot_step, own)
        _at_most("report.snapshot_attempt", rank.snapshot_attempt, self._core.record.attempt)
        for name in ("step_seconds", "stall_seconds", "snapshot_seconds"):
            if not 0.0 <= getattr(rank, name) <= _LONGEST_S:
                raise _refused(f"report.{name}", getattr(rank, name), "seconds up to a year")
        for name in ("flops", "peak_flops"):
            if not 0.0 <= getattr(rank, name) < math.inf:
                raise _refused(f"report.{name}", getattr(rank, name), "a number >= 0")
        for name in ("progress_at", "groups_at", "loaded_at", "first_step_at"):
            if at := getattr(rank, name):
                possible = _possible_time(at, now, _RUN_AGE_S)
                if possible != at:
                    setattr(rank, name, possible)
        if len(rank.phase) > 64:
            rank.phase = rank.phase[:64]

    def _check_snapshots(self, field: str, snapshots: Any) -> None:  # noqa: ANN401 - a repeated field
        steps = self._steps
        for snapshot in snapshots:
            _at_most(f"{field}.step", snapshot.step, steps)
            _at_most(f"{field}.attempt", snapshot.attempt, self._core.record.attempt)


def shorten(message: Message) -> None:
    """Cut every text and list of a message, and of the messages in it, to its bound."""
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            _shorten_map(value)
        elif field.is_repeated:
            del value[_ITEMS:]
            if field.message_type is not None:
                for item in value:
                    shorten(item)
            elif field.cpp_type == FieldDescriptor.CPPTYPE_STRING and any(
                len(text) > TEXT_CHARACTERS for text in value
            ):
                value[:] = [text[:TEXT_CHARACTERS] for text in value]
        elif field.message_type is not None:
            shorten(value)
        elif field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
            most = _REPORT_CHARACTERS if field.name == "exit_report" else TEXT_CHARACTERS
            if len(value) > most:
                setattr(message, field.name, value[:most])


def _shorten_map(values: Any) -> None:  # noqa: ANN401 - protobuf's map of text to text
    for name in list(values):
        if len(name) > TEXT_CHARACTERS or len(values[name]) > TEXT_CHARACTERS:
            del values[name]


def _possible_time(at: float, now: float, age_s: float) -> float:
    if math.isnan(at):
        return now
    return min(max(at, now - age_s), now + _AHEAD_S)


def _match(field: str, text: str, pattern: re.Pattern[str], expected: str) -> None:
    if not pattern.fullmatch(text):
        raise _refused(field, text, expected)


def _one_of(field: str, rank: int, own: range, node: str) -> None:
    if rank not in own:
        expected = (
            f"{own.start} to {own.stop - 1}, the ranks of {node}" if own else f"none: {node} has no ranks"
        )
        raise _refused(field, rank, expected)


def _at_most(field: str, value: float, most: float) -> None:
    if value > most:
        raise _refused(field, value, f"at most {most}")


def _refused(field: str, value: object, expected: str) -> RefusedMessageError:
    return RefusedMessageError(f"{field} is {value!r:.100}, expected {expected}")
