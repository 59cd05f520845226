"""General rules by cause: errno, signal, exit status, device family. They are tried after the rules that know
a message, so that a wording that no rule knows still falls into the right class."""

from __future__ import annotations

from typing import Final

from megascale.core.rules.model import (
    EXCEPTION,
    HARDWARE,
    PEER,
    SYMPTOM,
    UNEXPLAINED,
    Action,
    Category,
    LogRule,
    log_rule,
)

_POSIX = "errno(3); the Linux kernel and C libraries report -errno"
_SIGNALS = "signal(7); shells and runtimes report 128 + signal"
_DEVICES = "names that Linux drivers give to devices"

# What something that went wrong says of itself.
TROUBLE: Final = (
    r"(?:\*ERROR\*|\berrors?\b(?!\s*(?:=|will|status/mask|rate|count))|\berr\b|\bfail(?:ed|ure|ures|s"
    r"|ing)?\b|\bfatal\b|\btim(?:ed?|ing)[ -]?out\b|\btimeout\b"
    r"|\babort(?:ed|ing)?\b|\bhang\b|\bhung\b|\bstuck\b|\bunable\b|\bcan ?not\b|\bcan't\b|\bcould(?: not"
    r"|n't)\b|\bnot respond"
    r"|\bunresponsive\b|\blost\b|\bcorrupt|\bcrash|\bpanic\b|\bunrecover|\buncorrect|\bexception\b"
    r"|\bdenied\b|\brefused\b"
    r"|\boffline\b|\bdead\b|\bexpired?\b|\boverdue\b|\bexpel|\bunhealthy\b|\bfault\b|\bexhausted\b"
    r"|\binsufficient\b"
    r"|\bhalted\b|\bunreachable\b|\bexceed(?:s|ed)\b|\binvalid\b|\billegal\b|\bunavailable\b"
    r"|\breject(?:s|ed|ing)\b|\bstalled\b|\bno such (?:file|device)|\bno longer available\b"
    r"|\bunexpected|\bassert(?:ion)?\b|\bissue detected\b|\bdegraded\b|\bremoved unexpectedly\b|\bgoing "
    r"down\b|\boverrun\b)"
)
_WORDS = (
    "err|fail|fatal|timeout|time out|timed out|timing out|time-out|abort|hang|hung|stuck|unable"
    "|cannot|can not|can't|could|not respond|unresponsive"
    "|lost|corrupt|crash|panic"
    "|unrecover|uncorrect|exception|denied|refused|offline|dead|expire|overdue|expel|unhealthy|fault"
    "|exhausted"
    "|insufficient|halted|unreachable|exceed|invalid|illegal|unavailable|reject|stalled|no such|no "
    "longer|unexpected|assert|issue|degraded|removed|down"
)
_HARMLESS = (
    r"\b(?:not supported|unsupported|recovered|succeeded|disabled by|no errors?|0 errors?|without error"
    r"|optional"
    r"|falling back|non-?fatal|corrected|error(?:s|_count)?\s*[:=]\s*0\b|fault tolerance)\b"
)

# (class, action): (names, numbers)
_ERRNO: Final[dict[str, tuple[tuple[Category, Action], str, str]]] = {
    "network": (
        ("network", "restart"),
        (
            "ECONN(?:RESET|REFUSED|ABORTED)|ETIMEDOUT|EHOST(?:UNREACH|DOWN)|ENET(?:UNREACH|DOWN|RESET)|EPIPE"
            "|EADDR(?:INUSE"
            "|NOTAVAIL)|EREMOTEIO"
        ),
        "32|98|99|10[0-4]|11[0-3]|WinError 100(?:5[0-9]|6[0-5])|100(?:5[0-9]|6[0-5])",
    ),
    "storage": (
        ("storage", "restart"),
        "EIO|ESTALE|EROFS|EUCLEAN|ENOTCONN|ESHUTDOWN",
        "5|30|107|108|116|117|121",
    ),
    "space": (("storage", "alert"), "ENOSPC", "28"),
    "quota": (("storage", "fail_job"), "EDQUOT", "122"),
    "memory": (("oom", "restart"), "ENOMEM", "12"),
    "limits": (("host", "restart"), "EMFILE|ENFILE|EAGAIN|EBUSY|ENOLCK", "11|16|23|24|37"),
    "access": (("storage", "fail_job"), "EACCES|EPERM", "13"),
    "device": (("host", "restart"), "ENODEV|ENXIO|EHWPOISON", "6|19|133"),
}
_EXAMPLES: Final = {
    "network": "connect to 10.0.0.7:29500: errno=110",
    "storage": "pwrite: errno = 5, /mnt/x",
    "space": "write: errno 28 on /scratch",
    "quota": "write: errno = 122 on /home",
    "memory": "OSError: [Errno 12] no se puede asignar memoria",
    "limits": "open: errno=24, /data/a.bin",
    "access": "open: errno=13, /data/a.bin",
    "device": "open /dev/x: errno=19",
}


def _errno(name: str) -> LogRule:
    meaning, names, numbers = _ERRNO[name]
    says = r"\berrno|\brc|\bret(?:urn(?:ed)?|code)?|\berr(?:or)?(?: code)?|\bstatus"
    return log_rule(
        f"errno-{name}",
        rf"\[Errno (?:{numbers})\]|\[WinError (?:{numbers})\]|\berrno(?: is)?\s*[:=(]?\s*-?(?:{numbers})\b"
        rf"|(?:{says})\s*[:=(]?\s*-(?:{numbers})\b|\b(?:{names})\b|\(-(?:{numbers})\)",
        meaning,
        words="errno|winerror|: -|= -|=-|(-|err -|rc -|ret -|code -|status -|" + _literals(names),
        weight=EXCEPTION if name != "network" else PEER,
        source=_POSIX,
        unless=rf"{_HARMLESS}|retrying|HTTP|https?://|\b(?:infiniband|mlx\d\w*|efa_\d+|libfabric)\b",
        example=_EXAMPLES[name],
    )


def _literals(names: str) -> str:
    """The fixed beginnings of errno names, lower case."""
    return "|".join(sorted({part.split("(")[0].lower() for part in names.split("|") if part.startswith("E")}))


ERRNO_RULES: Final[tuple[LogRule, ...]] = tuple(_errno(name) for name in _ERRNO)

_STATUS = (
    r"\b(?:exit(?:ed|s|ing)?|exit_?code|return(?:ed)?|status|terminated)(?: \w+){0,3}?(?: with)?(?: "
    r"exit)?(?: code| status)?"
)


def _exit(name: str, code: str, signal: str, meaning: tuple[Category, Action]) -> LogRule:
    return log_rule(
        f"exit-{name}",
        rf"{_STATUS}\"?\s*[:=(]?\s*(?:{code})\b|\b(?:killed|terminated|died|exited|caught|received|got|by|on)"
        rf"(?: \w+){{0,3}} (?:signal:? ?(?:{signal})\b|{name.upper()}\b)|\*\*\* {name.upper()}\b"
        rf"|{name.upper()} \(0x",
        meaning,
        words=f"{code}|signal|{name}",
        weight=SYMPTOM + 5,
        source=_SIGNALS,
        unless=r"grace|handler|SIGTERM is|closing signal",
        example=f"worker 3 exited with code {code.split('|', maxsplit=1)[0]}",
    )


EXIT_RULES: Final[tuple[LogRule, ...]] = (
    _exit("sigsegv", "139", "11", ("framework", "restart")),
    _exit("sigabrt", "134", "6", ("framework", "restart")),
    _exit("sigbus", "135", "7", ("host", "restart")),
    _exit("sigill", "132", "4", ("host", "restart")),
    _exit("sigfpe", "136", "8", ("framework", "restart")),
)

_FAMILIES: Final[tuple[tuple[str, str, Category, Action, str], ...]] = (
    (
        "nic",
        (
            r"\b(?:mlx[45]\w*|bnxt\w*|i40e|ixgbe|ice|irdma|efa(?:_\d+)?|hfi1\w*|qedr?|cxgb\d?|ena|mana"
            r"|gve|virtio_net|infiniband|ib(?:\d+|_\w+)|rdma\w*|rxe|RoCE|bond\d+|en(?:s|p|o)\d\w*"
            r"|eth\d+|rdma_cm|ipoib|libfabric|ofi_\w+|prov/efa|NET/OFI)\b"
        ),
        "network",
        "restart",
        "bnxt_en 0000:c1:00.0: Firmware not responding, status: 0x1",
    ),
    (
        "host",
        (
            r"\b(?:cgroups?|spank|SPANK|slurm\w*|proctrack|munged?|kubelet|containerd|dockerd?|runc"
            r"|raylet|Raylet\w*|GCS|ray::?\w*|CPU\d*|DIMM\w*|EDAC|mce|BMC|IPMI|PSU|hugepages?|NUMA"
            r"|sysfs|procfs)\b"
        ),
        "host",
        "restart",
        "error: cgroup namespace 'freezer' not mounted. aborting",
    ),
    (
        "disk",
        (
            r"\b(?:nvme\w*|sd[a-z]{1,2}\d?|sd \d+:\d+:\d+:\d+|scsi\d*|ata\d+(?:\.\d+)?|ahci|dm-\d+"
            r"|md\d+|mpt[23]sas\w*|megaraid\w*|loop\d+|EXT[34]-fs|XFS|BTRFS|JBD2|ZFS|overlayfs|NFS\w*"
            r"|nfs\d?|Lustre\w*|LNet\w*|GPFS|mmfs\w*|gluster\w*|ceph\w*|libceph|BeeGFS|beegfs\w*"
            r"|juicefs|weka\w*|s3fs|gcsfuse|fuse|CIFS|journal|mount\w*|bucket\w*|SetUpBucket"
            r"|OpenBucket)\b"
        ),
        "storage",
        "restart",
        "dm-4: the table could not be loaded: lost",
    ),
    (
        "gpu",
        (
            r"\b(?:NVRM|nvidia(?:-\w+)?|nv_?peer\w*|amdgpu|amdkfd|radeon|i915|GPUs?(?:[ :#\[]?\d+)?"
            r"|NVML|nvml\w*|DCGM\w*|dcgm\w*|nvswitch\w*|nvlink\w*|CUDA|NPU\d*|TPU|HPU|habanalabs"
            r"|davinci\w*|hisi\w*)\b"
        ),
        "gpu",
        "restart",
        "nv-hostengine: ERROR GPU 5 is unresponsive, marking it as lost",
    ),
    (
        "mpi",
        (
            r"(?:\b(?:MPI\w*|mpi(?:exec|run|/\w+)\w*|PMI\w*|pmix?\w*|hydra\w*|ORTE|PRTE|UCX|UCT|ucx"
            r"|NVSHMEM|OSHMEM|SHARP|HCOLL)\b)"
        ),
        "network",
        "restart",
        "pmixp_server.c:935: unexpected contribution from n3, invalid sequence",
    ),
)


def _family(name: str, devices: str, meaning: tuple[Category, Action], example: str) -> LogRule:
    return log_rule(
        f"device-{name}",
        rf"^(?=.*{devices}).*{TROUBLE}",
        meaning,
        words=_WORDS,
        weight=SYMPTOM + 15,
        min_level="error",
        source=_DEVICES,
        unless=(
            rf"{_HARMLESS}|\bcuda(?:rt|nn)?\b.*\bnot (?:found|available)|enp?\w*=|\bNCCL\b|\bwandb\b|retrying"
        ),
        example=example,
    )


DEVICE_RULES: Final[tuple[LogRule, ...]] = tuple(
    _family(name, devices, (category, action), example)
    for name, devices, category, action, example in _FAMILIES
)

_BUS_DEVICES: Final[tuple[tuple[str, str, Category, str, str], ...]] = (
    (
        "disk",
        r"nvme\w*|ahci|megaraid\w*|mpt[23]sas",
        "storage",
        "nvme|ahci|megaraid|mpt",
        "nvme 0000:02:00.0: AER: aer_status: 0x00040000 PCIe Bus Error: severity=Uncorrectable (Fatal)",
    ),
    (
        "nic",
        r"mlx[45]\w*|bnxt\w*|ice|i40e|efa|ena|irdma",
        "network",
        "mlx|bnxt|ice|i40e|efa|ena|irdma",
        ("mlx5_core 0000:9f:00.0: AER: PCIe Bus Error: severity=Uncorrected (Fatal), type=Transaction Layer"),
    ),
    (
        "gpu",
        r"nvidia|NVRM|amdgpu|habanalabs",
        "gpu",
        "nvidia|nvrm|amdgpu|habana",
        "nvidia 0000:3b:00.0: AER: PCIe Bus Error: severity=Uncorrected (Fatal), type=Transaction Layer",
    ),
)
BUS_RULES: Final[tuple[LogRule, ...]] = tuple(
    log_rule(
        f"pcie-error-of-{name}",
        rf"\b(?:{drivers})\b[^,]*(?:AER|DPC|PCIe Bus Error)\b.*(?:Uncorrect\w*|Fatal|can't recover"
        rf"|recovery failed)"
        rf"|\b(?:{drivers})\b.*(?:frozen state error|PCI error detected|removed after probe)",
        (category, "replace_node"),
        words=words,
        weight=HARDWARE,
        min_level="debug",
        source="Linux PCIe AER: the driver of the device is named before the address",
        unless=r"severity=Corrected|Corrected error|error status/mask",
        example=example,
    )
    for name, drivers, category, words, example in _BUS_DEVICES
)
NATIVE_ASSERT: Final = log_rule(
    "native-assert",
    r"\bAssertion\b.*\bfailed\b|\bassert ?\(.*\) failed|\bCheck failed: |\bcheck failure\b|\bAssertion "
    r"failed\b"
    r"|terminate called after throwing|\bPanic:|^panic: |\bfatal runtime error:|thread '.*' panicked at",
    ("framework", "restart"),
    words="assert|check fail|terminate called|panic",
    weight=EXCEPTION - 5,
    source="assertions of C and C++ libraries",
    unless=r"^\s*\w+Error: (?!.*Check failed)|AssertionError",
    example="hydra_pmi_proxy: src/pmi_wire.c:683: output: Assertion `!is_static(cmd)' failed.",
)

_PYTHON: Final = (
    r"(?-i:TypeError|AttributeError|KeyError|IndexError|NameError|ValueError|AssertionError"
    r"|NotImplementedError"
    r"|ZeroDivisionError|SyntaxError|ModuleNotFoundError|ImportError|FileNotFoundError|RuntimeError"
    r"|RayTaskError\(\w+\)"
    r"|UnboundLocalError|RecursionError|StopIteration|OverflowError)"
)
EXCEPTION_IN_TEXT: Final = log_rule(
    "exception-in-text",
    rf"^(?:[^\s\"'`]*[\d\])>:|,=\-]+\s+){{1,5}}(?:\w+\.)*{_PYTHON}(?::\s|$)|^(?:\w+\.)*RayTaskError\(\w+\)",
    ("user_code", "restart"),
    words="error|stopiteration",
    weight=SYMPTOM + 12,
    min_level="error",
    source="Python exceptions behind a prefix that is not known",
    example="t1v-w-0: | ValueError: range() arg 3 must not be zero",
)

_PROGRAMS: Final[tuple[tuple[str, str, Category, str], ...]] = (
    (
        "storage",
        r"mmfsd?|glusterfs\w*|ceph\w*|beegfs\w*|autofs|automount|mount\.\w+|rpc\.\w+",
        "storage",
        "mmfsd: the request of this node was refused",
    ),
    (
        "gpu",
        r"nv-hostengine|nvidia-\w+|nv-fabricmanager|dcgm\w*",
        "gpu",
        "nv-hostengine: connection of a client was lost",
    ),
    (
        "host",
        r"kubelet|dockerd|containerd|k3s|crio|systemd|mcelog|rasdaemon|ipmi\w*|chronyd|munged|slurmd",
        "host",
        "systemd[1]: chronyd.service: Failed with result 'exit-code'.",
    ),
    ("network", r"opensm|ibacm|lldpad|teamd", "network", "opensm[81]: the subnet is unreachable"),
)
PROGRAM_RULES: Final[tuple[LogRule, ...]] = tuple(
    log_rule(
        f"program-{name}",
        TROUBLE,
        (category, "alert"),
        words=_WORDS,
        weight=SYMPTOM,
        min_level="error",
        program=programs,
        source="daemons of a node",
        unless=rf"{_HARMLESS}|\bdebug\b|object has been modified|fail(?:ed)? open",
        example=example,
    )
    for name, programs, category, example in _PROGRAMS
)

UNKNOWN: Final = log_rule(
    "unknown-error",
    r"\b(?:error|fatal|panic|exception|failure|critical)\b ?[:!\]]|^\W*(?:failed|failure|unable|cannot"
    r"|can't|could not"
    r"|couldn't)\b|\b(?:failed|aborted|crashed|denied|refused|timed out|unreachable|could not be "
    r"\w+)\b\s*(?:$|[:!.,;]|with"
    r"\b|by\b|to\b|due\b|after\b|for\b)|(?-i:\b[A-Z]\w*(?:Error|Exception)\b)|错误|失败|エラー|ошибка"
    r"|\bFehler\b|\bfehlgeschlagen\b|\berreur\b|\béchec\b",
    ("unknown", "none"),
    words=(
        "error|fatal|panic|exception|fail|unable to|cannot|can't|could|denied|refused|timed out|corrupted"
        "|crashed"
        "|unhealthy|abort|unreachable|critical|错误|失败|エラー|ошибка|fehler|fehlgeschlagen|erreur|échec"
    ),
    weight=UNEXPLAINED,
    min_level="error",
    source="words of errors; no rule says what went wrong",
    unless=rf"{_HARMLESS}|\b(?:if|when|whether)\b.*\b(?:fail|error)|error[_-]?rate|[\w-]*fail[\w-]*=\w",
    example="the frobnicator could not be aligned",
)
