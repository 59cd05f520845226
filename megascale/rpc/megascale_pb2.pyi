from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Fence(_message.Message):
    __slots__ = ("node", "incarnation", "term", "attempt", "seq")
    NODE_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    node: str
    incarnation: str
    term: int
    attempt: int
    seq: int
    def __init__(self, node: _Optional[str] = ..., incarnation: _Optional[str] = ..., term: _Optional[int] = ..., attempt: _Optional[int] = ..., seq: _Optional[int] = ...) -> None: ...

class AgentMessage(_message.Message):
    __slots__ = ("fence", "hello", "report", "exit", "log", "result", "evidence", "hardware", "segments")
    FENCE_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    EXIT_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    fence: Fence
    hello: Hello
    report: Report
    exit: RankExit
    log: LogMatch
    result: CommandResult
    evidence: Evidence
    hardware: HardwareEvent
    segments: SegmentTimes
    def __init__(self, fence: _Optional[_Union[Fence, _Mapping]] = ..., hello: _Optional[_Union[Hello, _Mapping]] = ..., report: _Optional[_Union[Report, _Mapping]] = ..., exit: _Optional[_Union[RankExit, _Mapping]] = ..., log: _Optional[_Union[LogMatch, _Mapping]] = ..., result: _Optional[_Union[CommandResult, _Mapping]] = ..., evidence: _Optional[_Union[Evidence, _Mapping]] = ..., hardware: _Optional[_Union[HardwareEvent, _Mapping]] = ..., segments: _Optional[_Union[SegmentTimes, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("pid", "ranks", "labels", "snapshots", "host", "pod")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PID_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    POD_FIELD_NUMBER: _ClassVar[int]
    pid: int
    ranks: _containers.RepeatedScalarFieldContainer[int]
    labels: _containers.ScalarMap[str, str]
    snapshots: _containers.RepeatedCompositeFieldContainer[Commit]
    host: str
    pod: str
    def __init__(self, pid: _Optional[int] = ..., ranks: _Optional[_Iterable[int]] = ..., labels: _Optional[_Mapping[str, str]] = ..., snapshots: _Optional[_Iterable[_Union[Commit, _Mapping]]] = ..., host: _Optional[str] = ..., pod: _Optional[str] = ...) -> None: ...

class RankStatus(_message.Message):
    __slots__ = ("rank", "pid", "step", "phase", "micro_batch", "tokens", "loss", "grad_norm", "step_seconds", "stall_seconds", "progress_at", "groups_at", "loaded_at", "first_step_at", "saved_step", "saved_attempt", "flops", "peak_flops", "snapshot_step", "snapshot_attempt", "snapshot_seconds")
    RANK_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    MICRO_BATCH_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    GRAD_NORM_FIELD_NUMBER: _ClassVar[int]
    STEP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    STALL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_AT_FIELD_NUMBER: _ClassVar[int]
    GROUPS_AT_FIELD_NUMBER: _ClassVar[int]
    LOADED_AT_FIELD_NUMBER: _ClassVar[int]
    FIRST_STEP_AT_FIELD_NUMBER: _ClassVar[int]
    SAVED_STEP_FIELD_NUMBER: _ClassVar[int]
    SAVED_ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    FLOPS_FIELD_NUMBER: _ClassVar[int]
    PEAK_FLOPS_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_STEP_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    rank: int
    pid: int
    step: int
    phase: str
    micro_batch: int
    tokens: int
    loss: float
    grad_norm: float
    step_seconds: float
    stall_seconds: float
    progress_at: float
    groups_at: float
    loaded_at: float
    first_step_at: float
    saved_step: int
    saved_attempt: int
    flops: float
    peak_flops: float
    snapshot_step: int
    snapshot_attempt: int
    snapshot_seconds: float
    def __init__(self, rank: _Optional[int] = ..., pid: _Optional[int] = ..., step: _Optional[int] = ..., phase: _Optional[str] = ..., micro_batch: _Optional[int] = ..., tokens: _Optional[int] = ..., loss: _Optional[float] = ..., grad_norm: _Optional[float] = ..., step_seconds: _Optional[float] = ..., stall_seconds: _Optional[float] = ..., progress_at: _Optional[float] = ..., groups_at: _Optional[float] = ..., loaded_at: _Optional[float] = ..., first_step_at: _Optional[float] = ..., saved_step: _Optional[int] = ..., saved_attempt: _Optional[int] = ..., flops: _Optional[float] = ..., peak_flops: _Optional[float] = ..., snapshot_step: _Optional[int] = ..., snapshot_attempt: _Optional[int] = ..., snapshot_seconds: _Optional[float] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("ranks",)
    RANKS_FIELD_NUMBER: _ClassVar[int]
    ranks: _containers.RepeatedCompositeFieldContainer[RankStatus]
    def __init__(self, ranks: _Optional[_Iterable[_Union[RankStatus, _Mapping]]] = ...) -> None: ...

class RankExit(_message.Message):
    __slots__ = ("rank", "attempt", "exit_code", "signal", "at", "step", "exit_report", "log_tail", "injected", "host_note")
    RANK_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    EXIT_REPORT_FIELD_NUMBER: _ClassVar[int]
    LOG_TAIL_FIELD_NUMBER: _ClassVar[int]
    INJECTED_FIELD_NUMBER: _ClassVar[int]
    HOST_NOTE_FIELD_NUMBER: _ClassVar[int]
    rank: int
    attempt: int
    exit_code: int
    signal: int
    at: float
    step: int
    exit_report: str
    log_tail: _containers.RepeatedScalarFieldContainer[str]
    injected: bool
    host_note: str
    def __init__(self, rank: _Optional[int] = ..., attempt: _Optional[int] = ..., exit_code: _Optional[int] = ..., signal: _Optional[int] = ..., at: _Optional[float] = ..., step: _Optional[int] = ..., exit_report: _Optional[str] = ..., log_tail: _Optional[_Iterable[str]] = ..., injected: _Optional[bool] = ..., host_note: _Optional[str] = ...) -> None: ...

class LogMatch(_message.Message):
    __slots__ = ("rank", "attempt", "rule", "category", "action", "line", "at")
    RANK_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    LINE_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    rank: int
    attempt: int
    rule: str
    category: str
    action: str
    line: str
    at: float
    def __init__(self, rank: _Optional[int] = ..., attempt: _Optional[int] = ..., rule: _Optional[str] = ..., category: _Optional[str] = ..., action: _Optional[str] = ..., line: _Optional[str] = ..., at: _Optional[float] = ...) -> None: ...

class HardwareEvent(_message.Message):
    __slots__ = ("sign", "code", "text", "at", "rule", "category", "action")
    SIGN_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    sign: str
    code: int
    text: str
    at: float
    rule: str
    category: str
    action: str
    def __init__(self, sign: _Optional[str] = ..., code: _Optional[int] = ..., text: _Optional[str] = ..., at: _Optional[float] = ..., rule: _Optional[str] = ..., category: _Optional[str] = ..., action: _Optional[str] = ...) -> None: ...

class SegmentTimes(_message.Message):
    __slots__ = ("attempt", "ranks")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    attempt: int
    ranks: _containers.RepeatedCompositeFieldContainer[RankSegments]
    def __init__(self, attempt: _Optional[int] = ..., ranks: _Optional[_Iterable[_Union[RankSegments, _Mapping]]] = ...) -> None: ...

class RankSegments(_message.Message):
    __slots__ = ("rank", "first_step", "compute_s")
    RANK_FIELD_NUMBER: _ClassVar[int]
    FIRST_STEP_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_S_FIELD_NUMBER: _ClassVar[int]
    rank: int
    first_step: int
    compute_s: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, rank: _Optional[int] = ..., first_step: _Optional[int] = ..., compute_s: _Optional[_Iterable[float]] = ...) -> None: ...

class CommandResult(_message.Message):
    __slots__ = ("command_id", "ok", "reason", "unreaped", "store_port", "snapshots", "wrong_numbers", "gemm_speed")
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    OK_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    UNREAPED_FIELD_NUMBER: _ClassVar[int]
    STORE_PORT_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    WRONG_NUMBERS_FIELD_NUMBER: _ClassVar[int]
    GEMM_SPEED_FIELD_NUMBER: _ClassVar[int]
    command_id: str
    ok: bool
    reason: str
    unreaped: _containers.RepeatedScalarFieldContainer[int]
    store_port: int
    snapshots: _containers.RepeatedCompositeFieldContainer[Commit]
    wrong_numbers: str
    gemm_speed: float
    def __init__(self, command_id: _Optional[str] = ..., ok: _Optional[bool] = ..., reason: _Optional[str] = ..., unreaped: _Optional[_Iterable[int]] = ..., store_port: _Optional[int] = ..., snapshots: _Optional[_Iterable[_Union[Commit, _Mapping]]] = ..., wrong_numbers: _Optional[str] = ..., gemm_speed: _Optional[float] = ...) -> None: ...

class RankEvidence(_message.Message):
    __slots__ = ("rank", "process_state", "step", "phase", "micro_batch", "stack", "collectives")
    RANK_FIELD_NUMBER: _ClassVar[int]
    PROCESS_STATE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    MICRO_BATCH_FIELD_NUMBER: _ClassVar[int]
    STACK_FIELD_NUMBER: _ClassVar[int]
    COLLECTIVES_FIELD_NUMBER: _ClassVar[int]
    rank: int
    process_state: str
    step: int
    phase: str
    micro_batch: int
    stack: _containers.RepeatedScalarFieldContainer[str]
    collectives: int
    def __init__(self, rank: _Optional[int] = ..., process_state: _Optional[str] = ..., step: _Optional[int] = ..., phase: _Optional[str] = ..., micro_batch: _Optional[int] = ..., stack: _Optional[_Iterable[str]] = ..., collectives: _Optional[int] = ...) -> None: ...

class Evidence(_message.Message):
    __slots__ = ("command_id", "ranks")
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    command_id: str
    ranks: _containers.RepeatedCompositeFieldContainer[RankEvidence]
    def __init__(self, command_id: _Optional[str] = ..., ranks: _Optional[_Iterable[_Union[RankEvidence, _Mapping]]] = ...) -> None: ...

class DriverMessage(_message.Message):
    __slots__ = ("term", "command_id", "welcome", "host_store", "launch", "kill", "save", "collect_evidence", "shutdown", "check_numbers", "measure_speed")
    TERM_FIELD_NUMBER: _ClassVar[int]
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    HOST_STORE_FIELD_NUMBER: _ClassVar[int]
    LAUNCH_FIELD_NUMBER: _ClassVar[int]
    KILL_FIELD_NUMBER: _ClassVar[int]
    SAVE_FIELD_NUMBER: _ClassVar[int]
    COLLECT_EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    SHUTDOWN_FIELD_NUMBER: _ClassVar[int]
    CHECK_NUMBERS_FIELD_NUMBER: _ClassVar[int]
    MEASURE_SPEED_FIELD_NUMBER: _ClassVar[int]
    term: int
    command_id: str
    welcome: Welcome
    host_store: HostStore
    launch: Launch
    kill: Kill
    save: Save
    collect_evidence: CollectEvidence
    shutdown: Shutdown
    check_numbers: CheckNumbers
    measure_speed: MeasureSpeed
    def __init__(self, term: _Optional[int] = ..., command_id: _Optional[str] = ..., welcome: _Optional[_Union[Welcome, _Mapping]] = ..., host_store: _Optional[_Union[HostStore, _Mapping]] = ..., launch: _Optional[_Union[Launch, _Mapping]] = ..., kill: _Optional[_Union[Kill, _Mapping]] = ..., save: _Optional[_Union[Save, _Mapping]] = ..., collect_evidence: _Optional[_Union[CollectEvidence, _Mapping]] = ..., shutdown: _Optional[_Union[Shutdown, _Mapping]] = ..., check_numbers: _Optional[_Union[CheckNumbers, _Mapping]] = ..., measure_speed: _Optional[_Union[MeasureSpeed, _Mapping]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("attempt", "report_period_s")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    REPORT_PERIOD_S_FIELD_NUMBER: _ClassVar[int]
    attempt: int
    report_period_s: float
    def __init__(self, attempt: _Optional[int] = ..., report_period_s: _Optional[float] = ...) -> None: ...

class HostStore(_message.Message):
    __slots__ = ("attempt",)
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    attempt: int
    def __init__(self, attempt: _Optional[int] = ...) -> None: ...

class Launch(_message.Message):
    __slots__ = ("attempt", "node_rank", "nodes", "store_host", "store_port", "resume", "lineage", "tier", "revision", "save_every_steps")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    NODE_RANK_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    STORE_HOST_FIELD_NUMBER: _ClassVar[int]
    STORE_PORT_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    SAVE_EVERY_STEPS_FIELD_NUMBER: _ClassVar[int]
    attempt: int
    node_rank: int
    nodes: int
    store_host: str
    store_port: int
    resume: Commit
    lineage: _containers.RepeatedCompositeFieldContainer[LineageEntry]
    tier: str
    revision: str
    save_every_steps: int
    def __init__(self, attempt: _Optional[int] = ..., node_rank: _Optional[int] = ..., nodes: _Optional[int] = ..., store_host: _Optional[str] = ..., store_port: _Optional[int] = ..., resume: _Optional[_Union[Commit, _Mapping]] = ..., lineage: _Optional[_Iterable[_Union[LineageEntry, _Mapping]]] = ..., tier: _Optional[str] = ..., revision: _Optional[str] = ..., save_every_steps: _Optional[int] = ...) -> None: ...

class Commit(_message.Message):
    __slots__ = ("step", "attempt")
    STEP_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    step: int
    attempt: int
    def __init__(self, step: _Optional[int] = ..., attempt: _Optional[int] = ...) -> None: ...

class LineageEntry(_message.Message):
    __slots__ = ("attempt", "resumed_from")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FROM_FIELD_NUMBER: _ClassVar[int]
    attempt: int
    resumed_from: Commit
    def __init__(self, attempt: _Optional[int] = ..., resumed_from: _Optional[_Union[Commit, _Mapping]] = ...) -> None: ...

class Kill(_message.Message):
    __slots__ = ("attempt", "deadline_s")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    attempt: int
    deadline_s: float
    def __init__(self, attempt: _Optional[int] = ..., deadline_s: _Optional[float] = ...) -> None: ...

class Save(_message.Message):
    __slots__ = ("attempt", "then_stop")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    THEN_STOP_FIELD_NUMBER: _ClassVar[int]
    attempt: int
    then_stop: bool
    def __init__(self, attempt: _Optional[int] = ..., then_stop: _Optional[bool] = ...) -> None: ...

class CollectEvidence(_message.Message):
    __slots__ = ("attempt",)
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    attempt: int
    def __init__(self, attempt: _Optional[int] = ...) -> None: ...

class Shutdown(_message.Message):
    __slots__ = ("reason", "restart")
    REASON_FIELD_NUMBER: _ClassVar[int]
    RESTART_FIELD_NUMBER: _ClassVar[int]
    reason: str
    restart: bool
    def __init__(self, reason: _Optional[str] = ..., restart: _Optional[bool] = ...) -> None: ...

class CheckNumbers(_message.Message):
    __slots__ = ("deadline_s",)
    DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    deadline_s: float
    def __init__(self, deadline_s: _Optional[float] = ...) -> None: ...

class MeasureSpeed(_message.Message):
    __slots__ = ("duration_s", "deadline_s")
    DURATION_S_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    duration_s: float
    deadline_s: float
    def __init__(self, duration_s: _Optional[float] = ..., deadline_s: _Optional[float] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class JobStatus(_message.Message):
    __slots__ = ("document",)
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    document: bytes
    def __init__(self, document: _Optional[bytes] = ...) -> None: ...

class CommandRequest(_message.Message):
    __slots__ = ("command", "node", "reason", "by")
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    command: str
    node: str
    reason: str
    by: str
    def __init__(self, command: _Optional[str] = ..., node: _Optional[str] = ..., reason: _Optional[str] = ..., by: _Optional[str] = ...) -> None: ...

class CommandReply(_message.Message):
    __slots__ = ("ok", "message")
    OK_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    ok: bool
    message: str
    def __init__(self, ok: _Optional[bool] = ..., message: _Optional[str] = ...) -> None: ...

class RevisionRequest(_message.Message):
    __slots__ = ("node", "revision")
    NODE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    node: str
    revision: str
    def __init__(self, node: _Optional[str] = ..., revision: _Optional[str] = ...) -> None: ...

class ManifestRequest(_message.Message):
    __slots__ = ("manifest",)
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    manifest: str
    def __init__(self, manifest: _Optional[str] = ...) -> None: ...

class RevisionReply(_message.Message):
    __slots__ = ("manifest",)
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    manifest: str
    def __init__(self, manifest: _Optional[str] = ...) -> None: ...
