"""The host: kernel, processor, memory, PCIe, power, containers."""

from __future__ import annotations

from typing import Final

from megascale.core.rules.model import DEVICE, EXCEPTION, HARDWARE, LogRule, log_rule

_KERNEL = "Linux kernel messages"
_BOARD = "IPMI and kernel machine-check messages"
_K8S = "Kubernetes node conditions and kubelet events"
_DOCS = r"https?://docs|\bsee https?://|\bdocs?\b|\bmeans\b"

_MEMORY: Final[tuple[LogRule, ...]] = (
    log_rule(
        "oom-killer",
        r"Out of memory: Kill(?:ed)? process|Memory cgroup out of memory|invoked oom-killer"
        r"|oom-kill:constraint=|oom_reaper: reaped process|Detected \d+ oom[-_]kill event"
        r"|\boom[-_]kill(?:er)? event|Some of the step tasks have been OOM Killed"
        r"|\bOOMKill(?:ed|ing)\b|A process of this unit has been killed by the OOM killer"
        r"|Exceeded (?:job|step) memory limit|task \d+: Out Of Memory|oom-kill event"
        r"|OUT_OF_MEMORY\b|low on memory.*kill|Ray.*OOM"
        r"|killed.*due to (?:the node running low on memory|memory pressure)|^Killed \S+ due to memory "
        r"(?:pressure|used)"
        r"|sending SIG(?:TERM|KILL) to process .*\bbadness\b",
        ("oom", "restart"),
        words="out of memory|oom|memory limit|low on memory|out_of_memory|due to memory|badness",
        weight=DEVICE,
        min_level="debug",
        source=_KERNEL,
        unless=(
            r"OOM_KILL(?:ED)?[=: ]*(?:0|false|no)\b|OOMKilled\W+(?:false|0)"
            r"|oom_kill(?:er)?[_ ]?(?:disable|adj|score)|DEBUG"
        ),
        example=(
            "Memory cgroup out of memory: Killed process 48123 (python3) total-vm:912345kB, anon-rss:723456kB"
        ),
    ),
    log_rule(
        "allocation-failed",
        (
            r"Cannot allocate memory|std::bad_alloc|page allocation (?:failure|stalls)"
            r"|^\S*MemoryError\b|DefaultCPUAllocator: (?:can't allocate|not enough) memory"
            r"|unable to mmap \d+ bytes|numpy\S*_ArrayMemoryError"
            r"|Unable to allocate [\d.]+ [KMGT]iB|terminate called .*bad_alloc"
            r"|not enough memory: you tried to allocate|insufficient memory for the Java"
            r"|OutOfMemoryError: (?:Java|Direct|Meta|GC)"
        ),
        ("oom", "restart"),
        words="allocate|bad_alloc|allocation|memoryerror|mmap|not enough memory|insufficient memory",
        weight=EXCEPTION,
        source=_KERNEL,
        unless=r"CUDA|GPU|Too many open files",
        example="OSError: [Errno 12] Cannot allocate memory",
    ),
    log_rule(
        "worker-killed",
        (
            r"DataLoader worker \(pid(?:\(s\))? [\d, ]+\) is killed by signal: Killed"
            r"|DataLoader worker .*exited unexpectedly with exit code:? (?:-9|137)"
        ),
        ("oom", "restart"),
        words="dataloader worker",
        weight=EXCEPTION,
        source="PyTorch DataLoader; a SIGKILL nobody sent is the OOM killer",
        example="RuntimeError: DataLoader worker (pid 31337) is killed by signal: Killed.",
    ),
    log_rule(
        "shm-exhausted",
        (
            r"out of shared memory|insufficient shared memory|unable to (?:open|write to|allocate"
            r"|resize) shared memory|/dev/shm\S*[ :].*\b(?:No space left|is full|too small|exhausted)"
            r"|No space left on device.*/dev/shm|torch_shm_manager.*(?:error|fail)"
            r"|is killed by signal: Bus error|unable to write to file </torch"
            r"|Error while creating shared memory segment|\s(?:9[5-9]|100)%\s+/dev/shm\b|unable to mmap "
            r"\d+ bytes from file </torch"
        ),
        ("host", "fail_job"),
        unless=r"Too many open files",
        words="shared memory|/dev/shm|shm_manager|bus error|</torch",
        min_level="debug",
        advice=(
            "the shared memory at /dev/shm is too small; a container has 64 MiB unless told otherwise. "
            "Mount an emptyDir of "
            "medium Memory"
            " at /dev/shm (or --shm-size, --ipc=host) of about 2 GiB for each rank, or use fewer DataLoader "
            "workers"
        ),
        weight=DEVICE,
        source="PyTorch DataLoader; NCCL troubleshooting (shared memory)",
        example=(
            "ERROR: Unexpected bus error encountered in worker. This might be caused by"
            " insufficient shared memory (shm)."
        ),
    ),
)

_PROCESSOR: Final[tuple[LogRule, ...]] = (
    log_rule(
        "kernel-panic",
        (
            r"Kernel panic - not syncing|BUG: unable to handle|kernel BUG at|Oops: \d{4}"
            r"|general protection fault.*(?:\[#\d+\]|kernel)|Fatal exception in interrupt"
            r"|kernel NULL pointer dereference|watchdog: BUG: (?:soft|hard) lockup"
            r"|NMI watchdog: .*lockup|soft lockup - CPU#|hard LOCKUP"
            r"|rcu: INFO: rcu_\w+ (?:self-)?detected stall|rcu_\w+ (?:self-)?detected stalls?"
        ),
        ("host", "replace_node"),
        words="panic|bug:|bug at|oops|protection fault|fatal exception|null pointer|lockup|rcu",
        weight=HARDWARE,
        min_level="debug",
        source=_KERNEL,
        unless=_DOCS,
        example="watchdog: BUG: soft lockup - CPU#37 stuck for 22s! [python3:5123]",
    ),
    log_rule(
        "machine-check",
        (
            r"mce: \[Hardware Error\]: (?:CPU|Processor|RIP|TSC|.*Bank)"
            r"|Machine Check(?: Event| Exception)?: \d+ Bank \d+: [abef][0-9a-f]{15}|Machine Check(?: "
            r"Exception)?:|EDAC .*\b\d+ UE\b"
            r"|Uncorrected (?:hardware )?(?:memory )?error|Memory failure: 0x\w+"
            r"|\[Hardware Error\]:.*(?:fatal|uncorrect|recoverable|event severity: (?:fatal"
            r"|recoverable))|Uncorrectable (?:ECC|DIMM|memory)|hardware memory corruption"
            r"|MCA: .*(?:UC|fatal)|CATERR|IERR\b"
        ),
        ("host", "replace_node"),
        words=(
            "mce|machine check|edac|uncorrect|memory failure|hardware error|hardware memory|mca|caterr|ierr"
        ),
        weight=HARDWARE,
        min_level="debug",
        source=_BOARD,
        unless=(
            r"AER|GPU|CUDA|severity: (?:corrected|info)|nvme|CQE"
            r"|uncorrect\w*(?: \w+){0,3}\s*[:=]\s*0\b"
        ),
        example="EDAC MC1: 1 UE memory read error on CPU_SrcID#1_MC#0_Chan#1_DIMM#0",
    ),
    log_rule(
        "pcie-error",
        (
            r"PCIe Bus Error: severity=Uncorrect|AER: (?:Multiple )?Uncorrect\w* "
            r"|AER:.*(?:device recovery failed|Fatal)|DPC: (?:containment event"
            r"|unmasked uncorrectable)|pciehp.*(?:Link Down|Card not present)"
            r"|PCIe.*(?:link (?:width|speed)|bandwidth).*(?:degraded|downgrade\w*|reduced"
            r"|limited by)|Data Link Layer Link Active not set|\bPCIe\b.*\b(?:fatal error"
            r"|link (?:is )?down|link lost|training error)|Surprise Down"
            r"|can't change power state from D3cold|Unable to change power state"
            r"|device is inaccessible"
        ),
        ("host", "replace_node"),
        words="pcie|aer|dpc|link active|surprise|power state|inaccessible",
        weight=HARDWARE,
        min_level="debug",
        source=(
            "Linux PCIe AER, DPC and hot-plug drivers; Meta RSC (PCIe errors come with XID 79 in 43-63%)"
        ),
        unless=(
            rf"{_DOCS}|correctable errors? (?:status|mask)"
            rf"|available PCIe bandwidth, limited by .* (?:at|capable)"
        ),
        example="pcieport 0000:60:01.0: AER: Uncorrected (Fatal) error received: 0000:61:00.0",
    ),
    log_rule(
        "board-sensor",
        (
            r"(?:power supply|PSU)\b.{0,40}?(?:fail\w*|lost|AC lost|fault)|(?:fan"
            r"|chassis)\b.*\b(?:failure|failed|lower critical)|\b(?:ipmi|SEL|BMC"
            r"|IPMI)\b.*(?:critical (?:interrupt|going)|assert.*critical|non-recoverable)|(?:CPU"
            r"|Package|Core|Ambient|Inlet)\b.*temperature (?:above threshold|.*critical|.*exceed)"
            r"|thermal trip|(?:critical temperature reached|shutting down due to)"
        ),
        ("host", "alert"),
        words="power supply|psu|fan|chassis|ipmi|sel|bmc|temperature|thermal",
        source=_BOARD,
        unless=r"below threshold|back to normal|deassert|/speed normal|GPU",
        example="ipmi-sel: Power Supply 2 | PSU failure detected | Asserted",
    ),
    log_rule(
        "hung-task",
        r"blocked for more than \d+ seconds|hung_task: blocked|task \S+:\d+ blocked for",
        ("host", "alert"),
        words="blocked for",
        weight=DEVICE,
        min_level="debug",
        source=_KERNEL,
        example="INFO: task python3:8812 blocked for more than 120 seconds.",
    ),
    log_rule(
        "clock-unsynced",
        (
            r"(?:clock|time)\b.*\b(?:not synchroni[sz]ed|unsynchroni[sz]ed|stepped by [\d.]{3,}"
            r"|skew too (?:great|large)|wrong by -?[1-9]\d*(?:\.\d+)? seconds)|can't synchroni[sz]e"
            r"|clocksource: .*\bmark\w* .*unstable"
            r"|Can't synchronise: no selectable sources"
        ),
        ("host", "alert"),
        words="clock|synchroni|time",
        source="chrony, kernel clocksource",
        unless=r"TIME_ERROR",
        example="chronyd[811]: Can't synchronise: no selectable sources",
    ),
)

_PROCESS: Final[tuple[LogRule, ...]] = (
    log_rule(
        "segfault",
        (
            r"\bSegmentation fault\b|\bsegfault at\b|exitcode\s*:\s*-11\b|Signal 11 \(SIGSEGV\)"
            r"|SIGSEGV|traps: .*(?:general protection|trap)|signal (?:11|SIGSEGV)"
            r"|Fatal Python error|exited with signal 11|\*\*\* (?:stack smashing"
            r"|buffer overflow) detected|double free or corruption|free\(\): invalid|malloc\(\): "
            r"|corrupted (?:size vs|double-linked)|Aborted \(core dumped\)|Illegal instruction"
            r"|Process received signal|^Signal: \w+(?: \w+)* \(\d+\)|SIGABRT "
            r"received|SIGSEGV \(0x"
            r"|fatal error has been detected by the Java"
        ),
        ("framework", "restart"),
        words=(
            "segfault|segmentation|sigsegv|-11|signal 11|traps:|fatal python|smashing"
            "|overflow detected|double free|free()|malloc()|corrupted|core dumped"
            "|illegal instruction|received signal|signal: |sigabrt|by the java"
        ),
        weight=EXCEPTION,
        min_level="debug",
        source="MegaScale 5.4: segmentation faults are cured by a restart",
        unless=rf"{_DOCS}|CUDA error",
        example="python3[5512]: segfault at 10 ip 00007f3a9c sp 00007ffd error 4 in libnccl.so.2[7f3a00]",
    ),
    log_rule(
        "bus-error",
        r"\bBus error\b|SIGBUS|exitcode\s*:\s*-7\b",
        ("host", "restart"),
        words="bus error|sigbus|-7",
        weight=EXCEPTION,
        source="mapped file or shared memory gone",
        unless=r"PCIe",
        example="Bus error (core dumped)",
    ),
    log_rule(
        "worker-died",
        r"DataLoader worker \(pid(?:\(s\))? [\d, ]+\) (?:is killed by signal|exited unexpectedly)",
        ("host", "restart"),
        words="dataloader worker",
        weight=EXCEPTION - 5,
        source="PyTorch DataLoader; Acme (dataloader killed: infrastructure)",
        example="RuntimeError: DataLoader worker (pid(s) 9921) exited unexpectedly",
    ),
    log_rule(
        "too-many-files",
        (
            r"Too many open files|\[Errno 24\]|ulimit.*(?:exceeded|too low)"
            r"|Resource temporarily unavailable.*(?:fork|thread)|can't start new thread"
            r"|pthread_create failed|Cannot fork|fork: retry|No child processes.*fork|EAGAIN.*fork"
            r"|received 0 items of ancdata|nf_conntrack: table full|libgomp: Thread creation failed"
            r"|inotify (?:instances"
            r"|watches).*reached"
        ),
        ("host", "restart"),
        words="open files|errno 24|ulimit|temporarily unavailable|thread|fork|conntrack|inotify|ancdata",
        weight=EXCEPTION,
        source=_KERNEL,
        example="OSError: [Errno 24] Too many open files: '/data/shard-0042.bin'",
    ),
)

_NODE: Final[tuple[LogRule, ...]] = (
    log_rule(
        "node-lost",
        (
            r"\bNodeNotReady\b|[Nn]ode \S+ (?:is |status is now: ?|condition changed to "
            r"|has become )?(?:not ready|NotReady|unreachable|down\b)"
            r"|node\.kubernetes\.io/(?:unreachable|not-ready)|Kubelet stopped posting node status"
            r"|(?-i:NODE_FAIL(?:URE)?\b)|DUE TO NODE FAILURE|\bNode failure on \S+"
            r"|[Nn]odes? \S+ not responding"
            r"|error: Nodes \S+ not responding|\bPLEG is not healthy|NodeStatusUnknown"
            r"|^(?:Rebooting|Powering off)\.$|\breboot: (?:Restarting system|Power down)"
            r"|\bnode \S+ (?:died|crashed)\b|(?:host|machine|node|instance)(?: \S+)?"
            r" (?:is|was|became) (?:unreachable|terminated)|unexpectedly rebooted|has been rebooted|node_lost"
            r"|HealthCheckFailed|DUE TO JOB NOT ENDING WITH SIGNALS"
        ),
        ("host", "replace_node"),
        words=(
            "node|unreachable|not responding|pleg|reboot|powering off|terminated|healthcheckfailed|not ending"
        ),
        weight=HARDWARE,
        min_level="debug",
        source=f"{_K8S}; Slurm states",
        unless=(
            rf"{_DOCS}|network is unreachable|tolerat|node id:|ray\b|raylet|node-not-ready-grace|will be "
            rf"(?:evicted"
            rf"|terminated) if"
        ),
        example="Node gpu-0417 status is now: NodeNotReady",
    ),
    log_rule(
        "evicted-pressure",
        (
            r"(?-i:\bEvicted\b)(?! [Pp]ods)|The node was low on resource|(?:DiskPressure|MemoryPressure"
            r"|PIDPressure)\b|evict(?:ing|ion) (?:pod|manager).*(?:threshold|pressure|must evict)"
            r"|pod ephemeral local storage usage exceeds|Usage of EmptyDir volume .* exceeds"
            r"|exceeded its local ephemeral storage"
        ),
        ("host", "restart"),
        words="evict|low on resource|pressure|ephemeral|emptydir",
        weight=DEVICE,
        min_level="debug",
        source=_K8S,
        unless=(
            r"NodeHasNo(?:Disk|Memory)?\w*Pressure|HasSufficient|pressure[ =:]+(?:false|0)|False"
            r"|evicted (?:from )?(?:cache|key)|cache|LustreError|by (?:the )?(?:server|OST|MDT"
            r"|\S+-(?:OST|MDT))|blocklist|MDS"
        ),
        example=(
            "The node was low on resource: ephemeral-storage. Threshold quantity: 10Gi, available: 2Gi."
        ),
    ),
    log_rule(
        "preempted",
        (
            r"\bPreempt(?:ed|ing|ion)\b.*\b(?:pod|job|node|instance|by|notice)|DUE TO PREEMPTION"
            r"|(?:spot|preemptible|capacity).*(?:interruption|reclaim\w*|terminat\w+)"
            r"|ACPI.*(?:power button|shutdown).*|scheduled for (?:maintenance|retirement"
            r"|termination|host maintenance)|TerminationByKubernetes|TaintManagerEviction"
            r"|node is being drained|maintenance event"
        ),
        ("host", "replace_node"),
        words=(
            "preempt|spot|capacity|acpi|scheduled for|terminationby|taintmanager|drained|maintenance event"
        ),
        weight=DEVICE,
        min_level="debug",
        source=f"{_K8S}; cloud disruption notices",
        unless=(
            r"^\s*preempt_|PREEMPT(?:_DYNAMIC|_RT)?\b.*(?:SMP|kernel)|SMP PREEMPT"
            r"|preemptive cleanup|PreemptionPolicy|no preemption|context preempt"
        ),
        example=(
            "slurmstepd: error: *** JOB 4471 ON gpu-07 CANCELLED AT 2026-03-01T02:00:11 DUE TO PREEMPTION ***"
        ),
    ),
    log_rule(
        "time-limit",
        (
            r"DUE TO TIME LIMIT|\bDeadlineExceeded\b.*(?:job|pod|active)"
            r"|active longer than specified deadline|Job .*reached (?:its )?(?:time"
            r"|wall)[ -]?limit|PBS: job killed: walltime"
        ),
        ("host", "alert"),
        words="time limit|deadline|limit|walltime",
        source="Slurm, PBS and Kubernetes job deadlines",
        min_level="debug",
        unless=r"grpc|rpc error|context deadline",
        example=(
            "slurmstepd: error: *** STEP 4471.0 ON gpu-07 CANCELLED AT 2026-03-01T02:00:11 DUE TO"
            " TIME LIMIT ***"
        ),
    ),
    log_rule(
        "job-cancelled",
        (
            r"\*\*\* (?:JOB|STEP) \S+ ON \S+ CANCELLED AT (?:(?!DUE TO)[^*])*\*\*\*"
            r"|Job \d+ (?:was )?cancel+ed by user|scancel"
        ),
        ("benign", "none"),
        words="cancel",
        source="Slurm: a person cancelled it",
        min_level="debug",
        example="slurmstepd: error: *** JOB 7713 ON gpu-02 CANCELLED AT 2026-05-02T11:41:09 ***",
    ),
    log_rule(
        "container-runtime",
        (
            r"(?:failed to create (?:containerd task|shim|container)|OCI runtime (?:create"
            r"|exec) failed|CrashLoopBackOff|Back-off restarting failed container|CreateContainerError"
            r"|RunContainerError"
            r"|ContainerCannotRun|nvidia-container-cli: (?:\w+ )*error|FailedCreatePodSandBox"
            r"|container runtime is down|RPC error.*container|rpc error: code = .*containerd"
            r"|failed to start container|docker: Error response"
            r"|Cannot connect to the Docker daemon)"
        ),
        ("host", "restart"),
        words="container|oci|crashloop|sandbox|docker",
        weight=DEVICE,
        source=_K8S,
        unless=r"nvml error|driver rpc error",
        example=(
            "Error: failed to create containerd task: failed to create shim task: OCI runtime create failed"
        ),
    ),
    log_rule(
        "container-gpu",
        (
            r"nvidia-container-cli: .*(?:nvml error|driver rpc error|driver not loaded"
            r"|detection error)"
        ),
        ("gpu", "replace_node"),
        words="nvidia-container-cli",
        weight=HARDWARE,
        source="NVIDIA container toolkit",
        example="nvidia-container-cli: initialization error: nvml error: driver not loaded",
    ),
    log_rule(
        "image-pull",
        (
            r"\b(?:ErrImagePull|ImagePullBackOff|InvalidImageName|manifest unknown"
            r"|failed to pull image|(?-i:toomanyrequests))\b"
        ),
        ("host", "alert"),
        words="imagepull|invalidimage|manifest|pull image|toomanyrequests",
        source=_K8S,
        example='Failed to pull image "registry.local/train:v9": manifest unknown',
    ),
    log_rule(
        "cpu-overload",
        (
            r"load average .*(?:exceed|too high|above)|CPU (?:overload|starvation)"
            r"|cpu usage .*(?:exceed|above|critical)|CPU throttling"
        ),
        ("host", "alert"),
        words="load average|cpu",
        source="ByteRobust table 1 (CPU overload 11%)",
        example="CPU overload: load average 412.8 exceeds 2x cores",
    ),
)

RULES: Final[tuple[LogRule, ...]] = (*_MEMORY, *_PROCESSOR, *_PROCESS, *_NODE)
