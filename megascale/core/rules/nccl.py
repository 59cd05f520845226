"""NCCL, gloo and torch.distributed. The layer that reports is where it gave up, not where it broke."""

from __future__ import annotations

from typing import Final

from megascale.core.rules.model import DEVICE, EXCEPTION, HARDWARE, PEER, SYMPTOM, LogRule, log_rule

_NCCL = "NCCL error codes and troubleshooting guide"
_IB = "NCCL net_ib.cc; InfiniBand work completion status codes"
_TORCH = "PyTorch c10d sources (ProcessGroupNCCL, TCPStore)"
_DOCS = r"https?://docs|\bdocumentation\b|\bmeans\b"

_CAUSES: Final[tuple[LogRule, ...]] = (
    log_rule(
        "nccl-ib-port",
        (
            r"NET/IB ?:.*(?:async(?:hronous)? (?:fatal )?event|port error|port active lost"
            r"|device fatal)|ibv_async_event.*(?:port|fatal)"
        ),
        ("network", "restart"),
        words="net/ib|ibv_async",
        weight=HARDWARE,
        source="OPT-175B logbook (port down)",
        unless=r"port active\b|client reregistration|GID table change|SM change|LID change",
        example=(
            "gpu-31:772:1190 [6] misc/ibvwrap.cc:199 NCCL WARN NET/IB : mlx5_6:1 Got async event : port error"
        ),
    ),
    log_rule(
        "nccl-ib-flush",
        (
            r"(?:Got completion|got completion).*(?:status=5\b|status=IBV_WC_WR_FLUSH_ERR"
            r"|error 5\b|status=WR_FLUSH)"
        ),
        ("network", "restart"),
        words="got completion",
        scope="consequence",
        weight=SYMPTOM + 5,
        source=_IB,
        example=(
            "n3:9:9 [0] NCCL WARN NET/IB : Got completion from peer 10.0.3.4<51001> with status=5"
            " opcode=0 len=0 vendor err 249 (Recv)"
        ),
    ),
    log_rule(
        "nccl-ib-completion",
        (
            r"got completion (?:from peer|with error)|IBV_WC_RETRY_EXC_ERR|IBV_WC_RNR_RETRY_EXC"
            r"|transport retry counter exceeded|RNR retry counter exceeded"
            r"|Local QP operation error|remote (?:access|operation|invalid request) error"
        ),
        ("network", "restart"),
        words="got completion|ibv_wc|retry counter|qp operation|remote ",
        weight=PEER + 5,
        source=_IB,
        unless=r"S3|HTTP",
        example=(
            "h12:220:815 [4] transport/net_ib.cc:1295 NCCL WARN NET/IB : Got completion from peer"
            " 10.4.2.9<43210> with status=12 opcode=129 len=0 vendor err 129 (Recv)"
        ),
    ),
    log_rule(
        "nccl-version",
        (
            r"NCCL WARN.*(?:version mismatch|Cuda driver version|incompatible|plugin.*(?:version"
            r"|failed to load))|undefined symbol: nccl|libnccl\S*: (?:cannot open|version)"
        ),
        ("framework", "fail_job"),
        words="nccl",
        weight=EXCEPTION,
        source=_NCCL,
        unless=r"No plugin found|NET/Plugin",
        example=(
            "a1:1:1 [0] NCCL WARN Mismatched NCCL version detected : rank 0 version 22005 rank 4"
            " version 21903; version mismatch"
        ),
    ),
    log_rule(
        "nccl-usage",
        (
            r"ncclInvalidUsage|ncclInvalidArgument|Duplicate GPU detected|invalid usage\b.*NCCL"
            r"|NCCL.*invalid (?:usage|argument)|NCCL WARN .*(?:invalid (?:root|argument|usage"
            r"|device|comm|reduction)|mismatch(?:ed)?.*(?:version|size))"
            r"|mismatch between collectives|Detected mismatch|inconsistent (?:shapes|collectives)"
        ),
        ("user_code", "fail_job"),
        words="nccl|duplicate gpu|mismatch|inconsistent",
        weight=EXCEPTION,
        source=_NCCL,
        unless=r"NET/|\bRC: -|errno|ibv_|fi_\w+|\b(?:hip|cu(?:da)?)[A-Z]\w+ failed",
        example=(
            "n1:55:90 [1] init.cc:781 NCCL WARN Duplicate GPU detected : rank 1 and rank 0 both"
            " on CUDA device 1b000"
        ),
    ),
    log_rule(
        "nccl-shm",
        (
            r"NCCL WARN.*(?:shm_open|shared memory|/dev/shm|posix_fallocate|ncclShm\w*)"
            r"|Error while (?:creating|attaching to) shared memory segment"
        ),
        ("host", "restart"),
        words="shm|shared memory|fallocate",
        weight=DEVICE,
        source=_NCCL,
        example=(
            "w9:410:981 [2] misc/shmutils.cc:72 NCCL WARN Error: failed to extend"
            " /dev/shm/nccl-Zk3Qp to 9637892 bytes"
        ),
    ),
    log_rule(
        "nccl-cuda",
        r"ncclUnhandledCudaError|unhandled cuda error",
        ("gpu", "restart"),
        words="ncclunhandled|unhandled cuda",
        weight=PEER + 5,
        source=_NCCL,
        example="ncclUnhandledCudaError: Call to CUDA function failed.",
    ),
    log_rule(
        "nccl-nvlink",
        r"NCCL WARN.*(?:NVLS|NVLink|P2P|peer access|p2p|Ipc(?:Get|Open)).*(?:fail|error|unable|could not)",
        ("gpu", "restart"),
        words="nccl warn",
        weight=DEVICE,
        source=_NCCL,
        unless=r"disabl|fall",
        example="dgx2:14:77 [3] transport/nvls.cc:166 NCCL WARN NVLS bind failed: error 401",
    ),
    log_rule(
        "nccl-ib-setup",
        (
            r"NCCL WARN.*(?:Call to ibv_\w+ failed|NET/IB ?:.*(?:Unable|No device|fail|error)"
            r"|ibv_\w+ (?:failed|timed out))|Call to ibv_\w+ failed|No (?:IB|RoCE) device"
            r"|\bprov_err(?:no)?\b|^err: \d+, (?:message|prov)|NET/Socket ?:.*(?:fail|error|unexpected)"
            r"|NET/OFI.*(?:fail|error|completion|couldn't|unable)"
            r"|Failed to (?:find|initialize) .*NET"
        ),
        ("network", "restart"),
        words="ibv_|net/|no ib|no roce|prov_err|err: ",
        weight=DEVICE,
        source=_NCCL,
        unless=r"Using|plugin",
        example=(
            "h3:11:44 [0] misc/ibvwrap.cc:106 NCCL WARN Call to ibv_modify_qp failed with error"
            " Connection timed out errno 110"
        ),
    ),
)

_PEERS: Final[tuple[LogRule, ...]] = (
    log_rule(
        "nccl-peer-closed",
        (
            r"(?:\bsocket(?:Progress|Start|Try|Poll|Finalize|Wait|Send|Recv|Accept|Connect)\w*|socket\.cc"
            r"|\bNet ?:"
            r"|bootstrap\w*|NCCL WARN).*(?:Connection closed by remote peer"
            r"|Connection reset by peer|Connection refused|Connection timed out|Broken pipe"
            r"|No route to host|failed ?: |retry count exceeded)"
            r"|NCCL WARN.*(?:Connect to \S+ failed|Accept|Timeout waiting|remote process)"
        ),
        ("network", "restart"),
        words="socket|net |net:|bootstrap|nccl warn",
        weight=PEER,
        source=_NCCL,
        unless=r"wandb|http|TCPStore|SocketImpl|redis|s3",
        example=(
            "r5:301:877 [2] misc/socket.cc:49 NCCL WARN socketProgress: Connection closed by"
            " remote peer h9<47114>"
        ),
    ),
    log_rule(
        "nccl-remote",
        (
            r"ncclRemoteError|remote process exit(?:ed|ing)"
            r"|A call failed possibly due to a network error"
        ),
        ("network", "restart"),
        words="ncclremoteerror|remote process|call failed possibly",
        weight=PEER,
        source=_NCCL,
        example=(
            "ncclRemoteError: A call failed possibly due to a network error or a remote process"
            " exiting prematurely."
        ),
    ),
    log_rule(
        "nccl-timeout",
        (
            r"Watchdog caught collective operation timeout|collective operation timeout"
            r"|Timed out (?:waiting for|in) .*(?:barrier|collective|all_?reduce)|monitoredBarrier"
            r"|\bcollective .*timed out|Timeout at NCCL work|NCCL (?:operation|communicator|collective"
            r"|watchdog) .*tim(?:ed|e)[ -]?out|NCCL timeout(?: in\b| error| at\b| after|:)"
            r"|Rank \d+ failed to pass monitoredBarrier|Watchdog timed out|WorkNCCL\(.*(?:ran for"
            r"|timed? out)|ran for \d+ milliseconds before timing out"
        ),
        ("network", "restart"),
        words="timeout|timed out|time-out|timing out|monitoredbarrier",
        weight=PEER - 5,
        source=_TORCH,
        unless=_DOCS,
        example=(
            "[rank11]:[E416 03:12:44.101 ProcessGroupNCCL.cpp:632] [Rank 11] Watchdog caught"
            " collective operation timeout: WorkNCCL(SeqNum=91, OpType=ALLREDUCE,"
            " Timeout(ms)=600000) ran for 600071 milliseconds before timing out."
        ),
    ),
    log_rule(
        "nccl-system",
        r"ncclSystemError|unhandled system error",
        ("network", "restart"),
        words="ncclsystemerror|unhandled system",
        weight=PEER,
        source=_NCCL,
        example=(
            "ncclSystemError: System call (e.g. socket, malloc) or external library call failed"
            " or device error."
        ),
    ),
    log_rule(
        "nccl-internal",
        r"ncclInternalError|NCCL.*internal error|Internal check failed",
        ("framework", "restart"),
        words="ncclinternalerror|internal",
        weight=PEER,
        source=_NCCL,
        unless=r"HTTP|S3|Server Error",
        example=(
            "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:2251,"
            " internal error - please report this issue to the NCCL developers"
        ),
    ),
    log_rule(
        "nccl-warn",
        r"\b(?:\w*CCL|CCOM|FLAGCX) WARN .*(?:fail(?:ed|ure)?|error|time ?out|truncated|timed? ?out|abort"
        r"|corrupt|unreachable|unexpected)",
        ("network", "restart"),
        words="ccl warn|ccom warn|flagcx warn",
        weight=PEER - 5,
        source=_NCCL,
        unless=(
            r"disabl|ignor|libibverbs|No plugin|plugin|Missing|NCCL_\w+ (?:set|is)|nccl_topo"
            r"|performance|deprecat|topology|NUMA|iommu|ACS"
        ),
        example=(
            "x2:19:75 [0] proxy.cc:1336 NCCL WARN [Proxy Service 0] Failed to execute operation"
            " Connect from rank 0, retcode 3"
        ),
    ),
    log_rule(
        "gloo-peer",
        (
            r"\bgloo\b.*(?:Connection closed by peer|Connection reset by peer"
            r"|connectFullMesh failed|connectTo|Timed out waiting|Application timeout"
            r"|Connect(?:ion)? timeout|Read error|Write error|Broken pipe|op\.|preamble|SO_ERROR"
            r"|Socket)|Gloo connectFullMesh failed|gloo::\w+|Connection closed by peer \["
        ),
        ("network", "restart"),
        words="gloo|closed by peer",
        weight=PEER,
        scope="consequence",
        source="gloo tcp transport",
        unless=r"Rank \d+ is connected to|interface",
        example=(
            "RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed"
            " by peer [10.6.1.4]:51820"
        ),
    ),
    log_rule(
        "store-unreachable",
        (
            r"client socket has (?:failed|timed out)|server socket (?:on|has) .*(?:failed"
            r"|timed out|EADDRINUSE)|(?:TCPStore|c10d store|rendezvous|Rendezvous|StoreTimeout"
            r"|DistStoreError|waitForInput: |DistNetworkError).*(?:tim(?:ed|e) ?out|failed|fail|refused"
            r"|unreachable|closed)|DistNetworkError|DistStoreError|RendezvousConnectionError"
            r"|RendezvousTimeoutError|RendezvousClosedError|(?:EADDRINUSE"
            r"|address already in use).*(?:port|socket|server)|wait timeout after \d+ms"
            r"|Timed out after \d+ seconds waiting for clients|Socket Timeout"
            r"|The (?:IPv[46] )?network addresses of .* cannot be retrieved"
        ),
        ("network", "restart"),
        words=(
            "socket|tcpstore|store|rendezvous|distnetwork|address already in use|eaddrinuse"
            "|wait timeout|waiting for clients|network addresses"
        ),
        weight=PEER,
        source=_TORCH,
        unless=(
            r"recvValue|sendBytes|should dump|exception dump flag|feature store|app store"
            r"|datastore|parameter store"
        ),
        example=(
            "torch.distributed.DistNetworkError: The client socket has timed out after 600000ms"
            " while trying to connect to (10.2.0.5, 29500)."
        ),
    ),
    log_rule(
        "ucx-ofi",
        (
            r"\b(?:UCX|UCT|libfabric|OFI|OPAL|ORTE|PMIX|MPI)\b.*\b(?:ERROR|error|fail(?:ed|ure)"
            r"|timed? out|abort\w*|unreachable)"
        ),
        ("network", "restart"),
        words="ucx|uct|libfabric|ofi|opal|orte|pmix|mpi",
        weight=PEER - 5,
        source="UCX, libfabric and Open MPI messages",
        min_level="error",
        unless=r"component|import|compil",
        example="UCX  ERROR   rc_mlx5_iface.c: Transport retry count exceeded on mlx5_0:1/RoCE; MPI error",
    ),
)

_SYMPTOMS: Final[tuple[LogRule, ...]] = (
    log_rule(
        "nccl-teardown",
        (
            r"Some NCCL operations have failed or timed out"
            r"|To avoid data inconsistency, we are taking the entire process down"
            r"|NCCL communicator was aborted|Process group watchdog thread terminated"
            r"|ncclCommAbort|was aborted on rank|Communicator (?:was|has been) aborted"
            r"|last (?:enqueued|completed) (?:NCCL )?work"
            r"|abort(?:ing)? (?:NCCL )?communicator|failed collective|detected by watchdog|timed out in "
            r"blocking wait"
            r"|workMetaList_|ncclCommWatchdog"
        ),
        ("framework", "restart"),
        words=(
            "nccl|data inconsistency|watchdog|aborted|enqueued|completed|failed collective|blocking wait"
            "|workmeta"
        ),
        scope="consequence",
        weight=SYMPTOM,
        source=_TORCH,
        example=(
            "[E ProcessGroupNCCL.cpp:475] Some NCCL operations have failed or timed out. Due to"
            " the asynchronous nature of CUDA kernels"
        ),
    ),
    log_rule(
        "nccl-heartbeat",
        (
            r"heartbeat monitor(?:ing)?(?: thread)?.*(?:timed? out|terminat|abort)"
            r"|Watchdog got stuck for|ProcessGroupNCCL's watchdog (?:got stuck|detected)"
            r"|Heartbeat monitor timed out|Terminating the process after attempting to dump"
            r"|Could not acquire GIL"
        ),
        ("framework", "restart"),
        words="heartbeat|watchdog|terminating the process|acquire gil",
        scope="consequence",
        weight=SYMPTOM,
        source=_TORCH,
        example=(
            "[F ProcessGroupNCCL.cpp:1557] [PG 0 Rank 2] [PG ID 0 Rank 2] ProcessGroupNCCL's"
            " watchdog got stuck for 480 seconds without making progress in monitoring enqueued"
            " collectives"
        ),
    ),
    log_rule(
        "store-teardown",
        (
            r"recv(?:Value|Bytes|Vector\w*)? failed on SocketImpl|send(?:Bytes"
            r"|Value)? failed on SocketImpl|\"should dump\" flag|exception dump flag"
            r"|Received a (?:global )?(?:dump|timeout) signal|dump signal due to"
            r"|Broken pipe.*TCPStore|TCPStore server has shut down"
            r"|Observed (?:flight recorder )?dump|Flight ?recorder|Failed to (?:check|set"
            r"|get) .*TCPStore"
        ),
        ("framework", "none"),
        words="socketimpl|should dump|dump flag|dump signal|timeout signal|tcpstore|flight",
        scope="consequence",
        weight=SYMPTOM - 5,
        source=_TORCH,
        example=(
            "[rank4]:[W409 11:40:12.3 TCPStore.cpp:125] [c10d] recvValue failed on"
            " SocketImpl(fd=71, addr=[a]:40112, remote=[b]:29500): Connection reset by peer"
        ),
    ),
    log_rule(
        "killed",
        (
            r"exitcode\s*:\s*-9\b|Signal 9 \(SIGKILL\)|received SIGKILL"
            r"|exit(?:ed)? ?(?:with )?_?(?:code|status)\"?[ :=]*137\b|^Killed$"
            r"|\b(?:exit\w*|terminat\w+|killed|died|ended|received|got)(?: \w+){0,2} signal:? 9\b"
            r"|died with <Signals.SIGKILL|: (?:\d+ )?Killed\b|terminated with signal SIGKILL"
        ),
        ("oom", "restart"),
        words="-9|sigkill|137|signal 9|signal: 9|killed",
        weight=SYMPTOM + 10,
        source="a SIGKILL nobody sent is the OOM killer",
        min_level="debug",
        unless=r"DataLoader|Killed process|grace period|forcibly|force|\btasks? [\d,\-]+: Killed",
        example="exitcode  : -9 (pid: 80211)",
    ),
    log_rule(
        "child-failed",
        (
            r"ChildFailedError|Process(?:Raised|Exited)Exception|exitcode\s*:\s*(?:-?\d+) \(pid: \d+\)"
            r"|failed \(exitcode: "
            r"|Root Cause \(first observed failure\)|WorkerGroup.*FAILED"
            r"|RendezvousGracefulExitError|worker group failed"
            r"|\btasks? [\d,\-]+: (?:Exited with exit code [1-9]|Killed|Aborted|Segmentation fault|Bus error)"
            r"|local_rank: \d+ \(pid: \d+\) of binary|agent .*FAILED|traceback : (?:To enable"
            r"|Signal)"
        ),
        ("framework", "restart"),
        words=(
            "childfailed|processraised|processexited|exitcode|root cause|worker group|workergroup"
            "|rendezvousgraceful"
            "|local_rank|failed|traceback :|task"
        ),
        scope="consequence",
        weight=SYMPTOM,
        source="torch.distributed.elastic",
        unless=(
            r"exitcode *: 0|\(exitcode: (?:-11|-7|-15|143)\)|exitcode *: (?:-(?:11|7|15)|143)\b|\b[Rr]aylet\b"
        ),
        example="torch.distributed.elastic.multiprocessing.errors.ChildFailedError:",
    ),
    log_rule(
        "signal-stop",
        (
            r"SignalException|\bbypass\w* sigterm|got signal: ?(?:15|2)\b|(?:[Rr]eceived|caught|got)(?: "
            r"a| signal)* "
            r"(?:SIGTERM|15 |Signals\.SIGTERM)"
            r"|death signal, shutting down|exitcode\s*:\s*(?:-15|143)|\(exitcode: (?:-15|143)\)|Signal "
            r"15 \(SIGTERM\)|sigterm"
            r" received|exit(?:ed)?(?: \w+)? (?:with )?(?:code|status)[ :=]*143\b|^Terminated$"
            r"|terminated by signal:? 15"
            r"|died with <Signals\.SIGTERM|instance will be reclaimed"
        ),
        ("host", "alert"),
        words="signal|sigterm|-15|terminated|143|reclaimed",
        weight=SYMPTOM - 15,
        source="torch.distributed.elastic; 143 = 128 + SIGTERM",
        advice=(
            "ended by SIGTERM (exit 143): somebody ended the process, or its node is being taken away "
            "(preemption,"
            " drain, scancel, time limit); no fault of the node"
        ),
        unless=(
            r"SIGTERM is|notice configuration|handler (?:is )?(?:set|registered|installed)|[Ss]ending "
            r".*closing signal"
        ),
        example="torch.distributed.elastic.multiprocessing.api.SignalException: Process 71 got signal: 15",
    ),
    log_rule(
        "dist-backend",
        (
            r"DistBackendError|NCCL error in: |NCCL error:|RuntimeError: NCCL|unhandled NCCL"
            r"|NCCL Error \d"
        ),
        ("network", "restart"),
        words="distbackenderror|nccl error|unhandled nccl|runtimeerror: nccl",
        scope="consequence",
        weight=SYMPTOM + 5,
        source=_TORCH,
        example=(
            "torch.distributed.DistBackendError: NCCL error in:"
            " /pytorch/torch/csrc/distributed/c10d/NCCLUtils.hpp:328"
        ),
    ),
)

RULES: Final[tuple[LogRule, ...]] = (*_CAUSES, *_PEERS, *_SYMPTOMS)
