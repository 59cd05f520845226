"""What looks like trouble and is none. These come before all rules but the driver's own events."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from megascale.core.rules.model import NOTE, LogRule, log_rule

_NCCL = "NCCL log levels; PyTorch sources"
_HABIT = "ways in which programs report that all is well"
_KERNEL = "Linux kernel messages"


def _benign(
    identifier: str,
    pattern: str,
    words: str,
    example: str,
    source: str = _HABIT,
    *,
    unless: str | None = None,
) -> LogRule:
    return log_rule(
        identifier,
        pattern,
        ("benign", "none"),
        words=words,
        weight=NOTE,
        min_level="debug",
        unless=unless,
        source=source,
        example=example,
    )


RULES: Final[tuple[LogRule, ...]] = (
    _benign(
        "nccl-info",
        r"\bNCCL (?:INFO|TRACE)\b|^\s*NCCL version [\d.]+",
        "nccl info|nccl trace|nccl version",
        "node-7:4410:4871 [3] NCCL INFO transport/net.cc:1298 -> 6",
        _NCCL,
    ),
    _benign(
        "native-frame",
        r"^\s*(?:frame #\d+:|#\d+ 0x|Exception raised from \w+ at )",
        "frame #|#|exception raised from",
        ("frame #3: c10d::ProcessGroupNCCL::heartbeatMonitor() + 0x379 (0x7fee3177bad9 in libtorch_cuda.so)"),
        _NCCL,
    ),
    _benign(
        "zero-count",
        r"(?<![\w.])(?:(?<!\w )(?:0|zero) (?:[\w/\-]+ ){0,2}(?=\w+s\b)|(?:with|had|has|found|saw|and|of"
        r"|reported"
        r"|are|were) (?:0|zero) (?:[\w/\-]+ ){0,2}(?=\w+s\b)|(?:no|without(?: any)?) (?:(?:new|more|other"
        r"|known|fatal"
        r"|uncorrected|uncorrectable|critical|ECC|XID|NCCL|CUDA|CRC|link|network|I/O|disk|such) )*)"
        r"(?:errors?|failures?|faults?|warnings?|xids?|issues?|problems?|exceptions?|timeouts?"
        r"|retries)\b",
        "error|failure|fault|warning|xid|issue|problem|exception|timeout|retr",
        "health check finished: 0 errors, 12 links checked",
        unless=r"error: no |no (?:such|space)\b|without warning|\bfail(?:ed|s|ure)? (?:with|to|in)\b",
    ),
    _benign(
        "zero-counter",
        (
            r"(?<![a-z])(?:err(?:or)?s?|fail(?:ures?|ed)?|faults?|down(?:ed)?|timeouts?|discards"
            r"|dropped|drops|xid|ecc|rate|nan|restarts"
            r"|oom_kill)[\w.\-/]*\"?\s*[=:]\s*\"?(?:0+(?:\.0+)?%?|none|null|false|\[\]"
            r"|N/A)(?![\w.])"
        ),
        "err|fail|fault|down|timeout|discard|drop|xid|ecc|rate|nan|restarts|oom",
        "step 1200 loss=2.31 error_rate=0.0 skipped=0",
        unless=(
            r"[=: ]\s*\"?[1-9]\d* ?(?:errors|failures|failed)|(?:errors?|failed|failures?|downed"
            r"|discards|uncorr\w*)\"?\s*[=:]\s*[1-9]|Traceback|^\S*(?:Error|Exception): |\btraps: "
            r"|[:=]\s*nan\b"
        ),
    ),
    _benign(
        "recovered",
        (
            r"(?<!un)(?<!not )(?<!be )(?<!n't )\b(?:recovered|re-?connected|re-?established"
            r"|restored|succeeded|successful(?:ly)?|came back|self-healed|cleared|resolved"
            r"|alive again)\b"
        ),
        (
            "recovered|connected|established|restored|succeeded|success|came back|healed|cleared"
            "|resolved|alive"
        ),
        "retry 2 succeeded after Connection reset by peer",
        unless=(
            r"\b(?:not|never|could|cannot|can't|un|failed to be)\b.{0,20}(?:recovered|connected"
            r"|restored|resolved)|^\S*(?:Error|Exception): |fail(?:ed|ure) after|Temporary failure"
            r"|could not be resolved|SIGKILL"
        ),
    ),
    _benign(
        "retrying",
        (
            r"\b(?:will (?:be )?re-?tr(?:y|ied)|re-?trying|retry (?:attempt )?#?\d+"
            r"|attempt \d+ ?(?:/|of) ?\d+|backing off|try(?:ing)? again in)\b"
        ),
        "retry|retri|re-try|attempt|backing off|again in",
        (
            "WARNING urllib3.connectionpool: Retrying (Retry(total=4)) after connection broken by"
            " 'NewConnectionError'"
        ),
        unless=(
            r"retries exceeded|exhausted|giving up|gave up|no more retries|\battempt (\d+) ?(?:/"
            r"|of) ?\1\b.*fail"
        ),
    ),
    _benign(
        "falling-back",
        r"\bfall(?:ing|s)?[ -]?back\b|\bfallback\b|\bdefaulting to\b|\busing default\b",
        "fall|default",
        "could not import apex (ModuleNotFoundError), falling back to torch layernorm",
    ),
    _benign(
        "handled",
        (
            r"\b(?:ignor(?:ed|ing)|(?<!not )skipp?(?:ed|ing)(?! step\. Attempted)|suppress(?:ed"
            r"|ing)|tolerated|(?<!not )continuing|non-critical|harmless|expected (?:error|failure"
            r"|exception))\b"
        ),
        "ignor|skip|suppress|tolerated|continuing|non-critical|harmless|expected",
        "Exception ignored in: <function _ConnectionBase.__del__ at 0x7f33a1>",
        unless=(
            r"NaN|no checkpoint|^\S*(?:Error|Exception): |detected invalid context|PLEG|BackOff|ErrImage"
            r"|Skipped \d+ previous|skipping reset|expected error rate"
        ),
    ),
    _benign(
        "link-up",
        (
            r"\blink (?:is |becomes |status:? )?(?:up|ready|active|init)\b|\bcarrier acquired\b"
            r"|\bstate (?:changed )?(?:to )?(?:ACTIVE|up)\b|module \d+, (?:Cable |status: )?plugged"
        ),
        "link|carrier|state|plugged",
        "mlx5_core 0000:9a:00.0 ib3: Link up",
        _KERNEL,
    ),
    _benign(
        "server-ok",
        (
            r"\bserver \S+ OK$|\bConnection (?:to \S+ )?restored\b|\b(?:osd|mon|mds)\d+ (?:up"
            r"|recovery completed|reconnect success)\b"
        ),
        "server|restored|osd|mon|mds",
        "nfs: server nas-2 OK",
        _KERNEL,
    ),
    _benign(
        "corrected",
        (
            r"(?<!un)(?<!un-)\bcorrect(?:ed|able)\b(?!.*\buncorrect)|\bEDAC .*\b\d+ CE\b"
            r"|severity=Correct|single[- ]bit(?! ECC error rate)|\bCE count\b|\[Corrected\]"
        ),
        "correct|edac|single|ce count",
        "pcieport 0000:40:01.1: AER: Corrected error received: 0000:41:00.0",
        _KERNEL,
        unless=r"\b(?:not|could not|cannot) be corrected|correctable[_ ]error rate exceeded",
    ),
    _benign(
        "python-warning",
        (
            r"\b(?:Deprecation|Future|User|Runtime|Resource|PendingDeprecation|Syntax|Import"
            r"|Experimental|Unicode|Bytes)Warning\b"
        ),
        "warning",
        "/opt/app/train.py:88: FutureWarning: torch.cuda.amp.autocast(args...) is deprecated",
        "Python warnings",
    ),
    _benign(
        "loss-scaler",
        r"\b(?:loss[ _-]?scal\w+|OVERFLOW!)",
        "scal|overflow!",
        "OVERFLOW! Rank 3 Skipping step. Attempted loss scale: 65536, reducing to 32768",
        "mixed precision scalers",
        unless=r"minimum (?:loss )?scale|scale already at minimum|[:=]\s*nan\b|nan iterations:\s+[1-9]",
    ),
    _benign(
        "wandb-offline",
        r"^\s*wandb: ",
        "wandb:",
        "wandb: Network error (ConnectionError), entering retry loop.",
        "Weights and Biases client",
    ),
    _benign(
        "nccl-tried",
        r"Call to bind failed ?: Address already in use|peer access is already enabled",
        "call to bind failed|peer access",
        ("gpu-3:901:977 [1] misc/socket.cc:320 NCCL WARN Call to bind failed : Address already in use"),
        _NCCL,
    ),
    _benign(
        "torchrun-closing",
        (
            r"\b(?:Sending process \d+ closing signal|closing signal SIG\w+"
            r"|destroy_process_group\(\) was not called|Setting OMP_NUM_THREADS)"
        ),
        "closing signal|destroy_process_group|omp_num_threads",
        (
            "W0611 10:02:11.120 1873 torch/distributed/elastic/multiprocessing/api.py:897]"
            " Sending process 1923 closing signal SIGTERM"
        ),
        _NCCL,
    ),
    _benign(
        "settings",
        (
            r"\b\w*(?:timeout|handler|threshold|interval|tolerance|policy|limit)\w*\b(?: (?:is"
            r"|was))? (?:set to|configured|changed to|updated to|registered|installed|enabled"
            r"|loaded)\b|\b(?:loading|loaded|registering|registered|installing|enabling|enabled"
            r"|importing|initiali[sz]ing|starting) \S*(?:error|fault|fail|exception|oom|retry"
            r"|nan)\S*"
        ),
        ("set to|configured|changed to|updated to|regist|install|enabl|load|import|initiali|starting"),
        "watchdog timeout set to 1800 s, error_handler enabled",
    ),
    _benign(
        "network-profile",
        r"^network: (?:NCCL_IB_TIMEOUT=|collectives end after |flight recorder: |communicators are made by )",
        "network: ",
        "network: flight recorder: the last 200 collectives of each rank are written to flight/ on a timeout",
        "the first lines of a rank's log, from the job's network profile",
    ),
    _benign(
        "documentation",
        (
            r"\b(?:documentation|runbook|explains?|means that|for (?:more|further) (?:information|details)"
            r"|patterns? (?:loaded|are|like|list)|watch(?:ing|er)? (?:for|started))\b|\bsee https?://"
        ),
        "documentation|runbook|explain|means that|information|details|pattern|watch|see http",
        "Runbook: CUDA error: device-side assert triggered means that an index is out of range",
        unless=(
            r"^\S*(?:Error|Exception): |traceback :|\bSEE SLURMCTLD|NVRM|LustreError|CUDA error: .+Search for"
            r"|fail(?:ed|ure)\b.*\bfor details"
        ),
    ),
    replace(
        _benign(
            "markup",
            r"^\s*(?:[-*+] |\d{1,2}\. |#{1,6} |> |\|.*\|\s*$|[│╭╰])",
            "",
            "- Xid 79: the GPU fell off the bus | `CUDA error: unknown error`",
            unless=r"\bERR!",
        ),
        words=("- ", "* ", "+ ", ". ", "# ", "> ", "|", "│", "╭", "╰"),
    ),
    _benign(
        "probe-event",
        (r"\b(?:Readiness|Liveness|Startup) probe failed\b|\bBack-off pulling\b|\bFailedScheduling\b"),
        "probe failed|back-off|failedscheduling",
        (
            "Warning  Unhealthy  2m  kubelet  Readiness probe failed: Get"
            " http://10.1.4.2:8080/ready: connect: connection refused"
        ),
        "kubelet events",
    ),
    _benign(
        "check-passed",
        (
            r"\b(?:passed|all good|is healthy|looks healthy|status[:=] ?(?:ok|healthy))\b"
            r"|\[ ?OK ?\]|\bresult[:=] ?pass"
        ),
        "passed|all good|healthy|status|ok|result",
        "dcgmi diag: Memory test ........ Passed",
        unless=r"failed|\bbe passed|passed to|not passed",
    ),
    _benign(
        "shutdown-clean",
        (
            r"\b(?:exit(?:ed)?(?: with)?(?: code| status)?[ :=]*0\b|(?:job|run|training"
            r"|experiment) (?:completed|finished)|KeyboardInterrupt|received SIGINT"
            r"|Cancelled by user)"
        ),
        "exit|completed|finished|keyboardinterrupt|sigint|cancelled by",
        "process 4 exited with code 0",
    ),
)
