"""What looks like trouble and is none. These come before all rules but the driver's own events."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from megascale.core.rules.model import NOTE, Level, LogRule, log_rule

_NCCL = "NCCL log levels; PyTorch sources"
_HABIT = "ways in which programs report that all is well"
_KERNEL = "Linux kernel messages"
_FACTS = (  # with these a line with advice in it reports something that happened
    r"\btried to allocate\b|\b(?:[a-z]\w*\.)+\w*(?:Error|Exception)\b|\b\w+Error: |\berrno\b|\bassertion "
    r".*failed"
    r"|\bfail(?:ed|ure): |\bexit(?:ed)? (?:with )?(?:code|status)"
)


def _benign(
    identifier: str,
    pattern: str,
    words: str,
    example: str,
    source: str = _HABIT,
    *,
    unless: str | None = None,
    max_level: Level = "error",
    program: str | None = None,
) -> LogRule:
    return log_rule(
        identifier,
        pattern,
        ("benign", "none"),
        words=words,
        weight=NOTE,
        min_level="debug",
        max_level=max_level,
        program=program,
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
        unless=(
            r"error: no |no (?:such|space)\b|without warning|\bfail(?:ed|s|ure)? (?:with|to|in)\b|No error "
            r"message"
            r"|^\S*(?:Error|Exception): "
        ),
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
            r"|could not be resolved|SIGKILL|\bpoison\b|uncorrect"
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
        r"\bfall(?:ing|s)?[ -]?back\b|\bfallback\b|\bdefaulting to\b|\busing (?:default|internal)\b"
        r"|\b(?:using|going to) [\w /]+ instead\b",
        "fall|default|using internal|instead",
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
            r"|Skipped \d+ previous|skipping reset|expected error rate|Read-only file system|No space left"
            r"|Error syncing pod|I/O error|input/output error"
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
            r"|destroy_process_group\(\) was not called|Setting OMP_NUM_THREADS|Job step aborted: Waiting"
            r"|Press Ctrl-C|Terminating job step \d)"
        ),
        "closing signal|destroy_process_group|omp_num_threads|job step|ctrl-c",
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
        max_level="warning",
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
            rf"|fail(?:ed|ure)\b.*\bfor details|{_FACTS}"
        ),
        max_level="warning",
    ),
    replace(
        _benign(
            "markup",
            r"^\s*(?:[-*+] |\d{1,2}\. |\|.*\|\s*$|[│╭╰])",
            "",
            "- Xid 79: the GPU fell off the bus | `CUDA error: unknown error`",
            unless=rf"\bERR!|\|\s*(?:Fail\b|Warning\b.*\berror\b)|{_FACTS}",
            max_level="warning",
        ),
        words=("- ", "* ", "+ ", ". ", "|", "│", "╭", "╰"),
    ),
    _benign(
        "advice",
        (
            r"^\W*(?:If |When |Please |Check (?:whether|that|the|if)|Try |Make sure|Ensure|Note:|NOTE: "
            r"|Tip:|Hint:|Solution:|Possible"
            r" (?:Cause|reason)|For debugging|Consider |To (?:fix|resolve|debug|solve|suppress|enable"
            r"|disable|get|see|use)"
            r"|You (?:can|may|should|need)|This (?:can|may|might|could|usually|is usually|often)|Compile "
            r"with|Suggest"
            r"|\d\. Check|See also|Search for)\b|errors might be (?:asynchronously reported|incorrect)"
        ),
        (
            "if |when |please |check |try |make sure|ensure|note: |tip: |hint: |solution: "
            "|possible |for debugging"
            "|consider |to fix|to resolve|to debug|to solve|to suppress|to enable|to disable"
            "|to get|to see|to use"
            "|you can|you may|you should|you need|this can|this may|this might|this could"
            "|this usually|this is"
            "|this often|compile with|suggest|see also|search for|might be"
        ),
        "Please check network connectivity (including firewalls)",
        "advice that libraries print beside their errors",
        unless=_FACTS,
        max_level="warning",
    ),
    _benign(
        "c10d-tried",
        (
            r"^\[c10d\] The (?:(?:client|server) socket (?:has failed to (?:connect|bind|listen)|cannot "
            r"be initialized"
            r"|could not|has not)|(?:IPv[46] )?(?:hostname|network addresses) of )(?!.*\bany (?:local "
            r")?network address)"
        ),
        "[c10d]",
        "[W socket.cpp:697] [c10d] The client socket has failed to connect to [localhost]:29500 (errno: "
        "99 - Cannot"
        " assign requested address).",
        "PyTorch socket.cpp: it tries the next address, and logs an error when none is left",
        max_level="warning",
    ),
    _benign(
        "nccl-probe",
        (
            r"NCCL WARN .*(?:Failed to (?:open|load|find) \S*(?:lib|library|symbol|plugin)|Failed to "
            r"find CUDA library"
            r"|\bdlv?sym\b|\bdlopen\b|cannot open shared object|undefined symbol|\bplugin\b.*(?:not "
            r"found|No plugin)"
            r"|No plugin found|\bgdr(?:api|copy|wrap)?\b|GDRCOPY|Not Supported|not supported|real path"
            r"|Missing \S+ from kernel"
            r"|No eligible|no GPU Direct|NCCL_\w+ (?:set|is) |deprecat|P2P is disabled|\bACS\b|iommu"
            r"|NUMA balancing)"
        ),
        "nccl warn",
        "n1:55:90 [1] misc/gdrwrap.cc:55 NCCL WARN Failed to open libgdrapi.so",
        "NCCL probes libraries and features that it can do without",
        unless=r"version mismatch|libcudart|API mismatch",
    ),
    _benign(
        "libfabric-probe",
        r"fi_getinfo: provider \S+ returned -61|env(?:ironment)? variable not set|which this device does "
        r"not support",
        "fi_getinfo|variable not set|this device",
        "libfabric:72089:core:core:fi_getinfo_():889<warn> fi_getinfo: provider x returned -61 (No data "
        "available)",
        "libfabric asks each of its providers",
        max_level="warning",
    ),
    _benign(
        "journald",
        r".",
        "journald",
        "systemd-journald[512]: Failed to send WATCHDOG=1 notification message: Connection refused",
        "systemd-journald takes no part in a job",
        program=r"systemd-journald",
        unless=r"Read-only file system|No space left|Input/output error|Disk quota",
    ),
    _benign(
        "unit-state",
        r"^\s*(?:Active|Loaded|Docs|Main PID|Process|CGroup): |\.service\b.*\b(?:inactive|disabled"
        r"|masked|not-found)\b",
        "active: |loaded: |docs: |main pid: |process: |cgroup: |.service",
        "nvidia-fabricmanager.service   loaded    inactive   dead      NVIDIA fabric manager service",
        "systemctl: a unit that nobody started is no fault",
        unless=r"\bfailed\b|status=[1-9]|code=(?:killed|dumped)",
    ),
    _benign(
        "volume-in-use",
        r"^/dev/loop\d+\s.*\s\d+%\s+/|\s\d+%\s+/snap/",
        "/dev/loop|/snap/",
        "/dev/loop3   64M   64M     0 100% /snap/core20/1879",
        "df: images that are mounted read-only are always full",
    ),
    _benign(
        "kernel-habit",
        (
            r"^usb \d|^ACPI (?:BIOS )?Error|\bBAR \d+: (?:failed|no space)|module verification failed"
            r"|multicast join failed"
            r"|\bACCESS_REG\b|\baudit(?:\(|: type)|Machine check events logged|HANDLING MCE"
            r"|knvlinkDiscover|tainting kernel"
            r"|^Kernel command line:|errors=(?:remount|continue)|error status/mask|amdgpu.*(?:is "
            r"optional|not (?:available|supported)|uses VM inv)"
        ),
        "usb |acpi|bar |module verification|multicast|access_reg|audit|machine check events|handling mce"
        "|knvlink|taint"
        "|kernel command|errors=|error status/mask|amdgpu",
        "kernel: nvidia: module verification failed: signature and/or required key missing - tainting kernel",
        _KERNEL,
        unless=r"\btimeout\b",
    ),
    _benign(
        "library-habit",
        (
            r"Unable to register cu\w+ factory|already (?:been )?registered|preparing to dump debug info"
            r"|watcher started|printing (?:contents of|enroot) log|^\w+: if (?:the|you) |collector "
            r"failed|Failed to get system container stats|you can (?:safely )?ignore|can be (?:safely "
            r")?ignored|safely ignore"
        ),
        "factory|registered|preparing to dump|ignore|watcher started|printing |: if |collector failed"
        "|container stats",
        "E0000 00:00:1741 cuda_dnn.cc:8310] Unable to register cuDNN factory: a factory has already been "
        "registered",
    ),
    _benign(
        "source-line",
        r"^\s*(?:warnings\.warn\(|logg?(?:er|ing)\.\w+\(|print\(|raise \w+\(|return \w|self\.\w+[.(]"
        r"|assert \w)",
        "warn(|logg|print(|raise |return |self.|assert ",
        '  warnings.warn("Cannot initialize NVML")',
        "Python prints the source line below a warning and below a frame",
        unless=r"\bfailed\.?$",
    ),
    _benign(
        "other-unit",
        r".",
        "systemd",
        "systemd[1]: apt-daily.service: Failed with result 'exit-code'.",
        "units of systemd that take no part in a job",
        program=r"systemd",
        unless=(
            r"nvidia|nv-|dcgm|fabric|slurm|munge|kube|containerd|docker|crio|lustre|lnet|gpfs|mmfs|nfs"
            r"|ceph|beegfs|weka"
            r"|\.mount\b|mount |openib|rdma|opensm|chrony|megascale|ray|oom|OOM|Read-only|No space|kernel"
        ),
    ),
    _benign(
        "native-trace",
        r"^\s*@\s+0x[0-9a-f]+|^https://symbolize\.|^\s*\[0x[0-9a-f]+\]|TraceBack \(most recent call last\):$",
        "@ |symbolize|[0x|traceback",
        "    @     0x7fcf5129603b  (unknown)  raise",
        _NCCL,
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
