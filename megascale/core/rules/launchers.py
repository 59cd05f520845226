"""What starts ranks and keeps them: Slurm, MPI, Ray, Kubernetes and container runtimes."""

from __future__ import annotations

from typing import Final

from megascale.core.rules.model import DEVICE, EXCEPTION, PEER, SYMPTOM, LogRule, log_rule

_SLURM = "Slurm and MUNGE messages"
_MPI = "Open MPI, PRRTE, MPICH and UCX messages"
_RAY = "Ray exceptions and messages of the raylet and the GCS"
_K8S = "Kubernetes API server, kubelet, containerd, runc, Apptainer, enroot"
_TROUBLE = (
    r"\b(?:error|fail(?:ed|ure|s|ing)?|fatal|unable|can ?not|can't|couldn't|could not|timed? ?out"
    r"|timeout|not respond\w*"
    r"|refused|denied|invalid|lost|reject\w*|exceed\w*|abort\w*|unreachable|down|drain\w*|missing|dead"
    r"|killed)\b"
)

_SLURM_RULES: Final[tuple[LogRule, ...]] = (
    log_rule(
        "slurm-refused",
        r"Invalid (?:account|partition|qos|feature|generic resource|job array)|Requested (?:node "
        r"configuration|partition"
        r" configuration|time limit).*(?:not available|invalid)|\b(?:QOS|Assoc)\w*(?:Limit|Grp)\w*"
        r"|violates accounting"
        r"|Job violates|Batch job submission failed: (?!Protocol|Socket|Unable to contact|Zero)",
        ("user_code", "fail_job"),
        words="invalid|requested|qos|assoc|violates|submission failed",
        weight=EXCEPTION,
        source=_SLURM,
        program=r"srun|sbatch|salloc|slurm\w+",
        unless=r"credential",
        example="sbatch: error: Batch job submission failed: Invalid account or account/partition combination"
        " specified",
    ),
    log_rule(
        "slurm-authentication",
        r"\bjob credential|\bMunge\b|\bmunge\w*[.:/].*(?:fail|error|denied|No such)|Protocol "
        r"authentication error|has"
        r" authentication error|^(?:error: )?Invalid credential|MUNGE",
        ("host", "restart"),
        words="credential|munge|authentication",
        weight=DEVICE,
        min_level="warning",
        source=_SLURM,
        unless=r"retrying|Successfully|Listening|Started",
        example="srun: error: Task launch for 47.0 failed on node n-c122: Invalid job credential",
    ),
    log_rule(
        "slurm-step",
        r"(?:Task|step|Application|task) launch (?:for \S+ )?failed|timeout waiting for task launch"
        r"|STEPD TERMINATED"
        r"|Unable to (?:create|confirm) (?:step|allocation|job)|Unable to contact slurm|Zero Bytes were "
        r"transmitted"
        r"|Socket timed out on send/recv|Kill task failed|(?:prolog|epilog)\w*\b.*(?:fail|error|timed"
        r"|hung|can ?not|could not)"
        r"|launch_\w+: .*fail"
        r"|Job/step already completing|slurm_receive_msg\w*: |NOT ENDING WITH SIGNALS",
        ("host", "restart"),
        words=(
            "launch|stepd|unable to|zero bytes|socket timed|kill task|prolog|epilog|slurm|job/step|not ending"
        ),
        weight=DEVICE,
        source=_SLURM,
        unless=r"_slurm_rpc_complete",
        example="srun: error: Unable to create step for job 31: Memory required by task is not available",
    ),
    log_rule(
        "slurm-other",
        rf"error: (?!couldn't chdir)|{_TROUBLE}",
        ("host", "restart"),
        words="slurm|srun|sbatch",
        weight=SYMPTOM + 5,
        source=_SLURM,
        program=r"srun|sbatch|salloc|slurm\w+",
        unless=r"aborted: Waiting|Terminating|temporarily disabled|still disabled|\binfo\b|chdir"
        r"|Exited with exit code|already complet|Job step aborted|CANCELLED|deprecated|error: NOTE|debug",
        example="slurmd[81]: error: cgroup namespace 'freezer' could not be mounted, aborting",
    ),
)

_RAY_RULES: Final[tuple[LogRule, ...]] = (
    log_rule(
        "ray-node",
        r"marked (?:as )?dead|missed too many heartbeats|\b[Rr]aylet\b.{0,30}\b(?:terminated|exited|died"
        r"|dead|crashed"
        r"|killed|fail\w*|unavailable|fate)|fate shares|node has (?:crashed|died|failed)|NodeDiedError"
        r"|LocalRayletDied"
        r"Error|\bGCS\b.*(?:unavailable|fail\w*|disconnect\w*|unable|lost|didn't receive|down|not reach)"
        r"|Failed to connect"
        r" to GCS|gcs_rpc_client.*(?:fail|timeout)|dashboard agent.*(?:fail|died)|The node .*\bdied\b",
        ("host", "restart"),
        words="marked|heartbeats|raylet|fate|node has|nodedied|gcs|dashboard agent|the node",
        weight=DEVICE,
        min_level="warning",
        source=_RAY,
        unless=r"object store current|Received address",
        example="(raylet, ip=10.0.0.7) Raylet is terminated. Termination is unexpected.",
    ),
    log_rule(
        "ray-actor",
        r"\b(?:RayActorError|ActorDiedError|ActorUnavailableError|WorkerCrashedError|Object\w*LostError"
        r"|OwnerDiedError"
        r"|ObjectFetchTimedOutError|ObjectFreedError|RaySystemError|RuntimeEnvSetupError"
        r"|PlacementGroup\w*Error)\b"
        r"|actor (?:died|is dead)|[Ww]orker died or was killed|worker(?: process)? (?:has )?died|owner "
        r"(?:has )?died"
        r"|Worker exit type: SYSTEM_ERROR|unexpected system error",
        ("framework", "restart"),
        words=(
            "rayactorerror|actordied|actorunavail|workercrashed|losterror|ownerdied|fetchtime"
            "dout|freederror|raysystem|runtimeenv|placementgroup|actor died|actor is dead|wor"
            "ker died|worker process|owner died|owner has|system_error|system error|raytasker"
            "ror"
        ),
        scope="consequence",
        weight=SYMPTOM + 15,
        source=_RAY,
        unless=r"DataLoader|sge|WorkerGroup",
        example="ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.",
    ),
)

_MPI_RULES: Final[tuple[LogRule, ...]] = (
    log_rule(
        "mpi-peer",
        r"\bORTE (?:daemon has|has lost|was unable|does not know)|\b(?:PRTE|PRRTE|prted?"
        r"|prterun)\b.*(?:lost|fail|unable"
        r"|error)|\bPMIX? ERROR|PMIx\w*.*(?:UNREACH|fail|error|timeout|lost)|\bHYD[TU]?_\w+"
        r"|\[(?:proxy|mpiexec)[^\]]*\].*(?:error|fail|lost)|Transport retry count exceeded|\bpml_ucx\b.*"
        r"(?:error|fail)|\bucp_\w+.*(?:fail|error|unreach)|\bBTL\b.*(?:fail|error|unable)"
        r"|\bbtl_\w+.*(?:fail|error|readv)"
        r"|Destination is unreachable|unable to (?:reach|connect to) (?:peer|another) MPI|peer MPI process"
        r"|OFI (?:call|poll|\w+ ?failed)|NVSHMEM.*(?:error|fail|abort)|lost communication with",
        ("network", "restart"),
        words="orte|prte|prrte|prted|pmi|hyd|proxy|mpiexec|transport retry|pml_ucx|ucp_|btl|destination is"
        "|unable to|mpi process|ofi |nvshmem|lost communication",
        weight=PEER,
        source=_MPI,
        unless=r"\bDEBUG\b|component",
        example="ORTE has lost communication with a remote daemon.",
    ),
    log_rule(
        "mpi-ended",
        r"MPI_ABORT was (?:invoked|called)|BAD TERMINATION OF ONE|Primary job +terminated"
        r"|MPI_ERRORS_ARE_FATAL"
        r"|Fatal error in (?:P?MPI_|internal_|PMPI)\w*|\b(?:mpirun|mpiexec|prterun)\b.*(?:noticed|exited"
        r"|detected|abort"
        r"|lost|fail)|caused collective abort|internal ABORT - process|^Abort\(\d+\)|application called "
        r"MPI_Abort|MPI_ERR_\w+|An error occurred in MPI_|KILLED BY SIGNAL|=   EXIT CODE:"
        r" [1-9]|processes? (?:have|has) (?:been )?aborted|non-zero (?:status|exit)",
        ("framework", "restart"),
        words=(
            "mpi_|mpirun|mpiexec|bad termination|primary job|prterun|killed by|exit code|coll"
            "ective abort|internal abort|abort(|been aborted|non-zero|in mpi"
        ),
        scope="consequence",
        weight=SYMPTOM,
        source=_MPI,
        example="MPI_ABORT was invoked on rank 0 in communicator MPI_COMM_WORLD",
    ),
)

_KUBERNETES_RULES: Final[tuple[LogRule, ...]] = (
    log_rule(
        "k8s-refused",
        r"is forbidden: |exceeded quota|admission webhook .*(?:denied|fail)|denied the request|violates "
        r"PodSecurity"
        r"|^The \w+ \"[^\"]*\" is invalid|: Invalid value: |error validating (?:data|\")|no matches for kind"
        r"|executable file not found in|: Required value|strict decoding error|unknown field \"",
        ("user_code", "fail_job"),
        words=(
            "forbidden|exceeded quota|admission|denied the|violates pod|is invalid|invalid value|error "
            "validating"
            "|no matches|executable file|required value|strict decoding|unknown field"
        ),
        weight=DEVICE,
        source=_K8S,
        unless=r"node \"|storage\.|bucket|403 Forbidden|s3",
        example='Error from server: admission webhook "v.example.io" denied the request: resource blocked',
    ),
    log_rule(
        "pod-rejected",
        r"UnexpectedAdmissionError|\bAllocate failed|Pod was rejected|\bOutOf(?:cpu|memory|pods|nvidia"
        r"|ephemeral)\w*"
        r"|TopologyAffinityError|device[ -]plugin\b.*(?:fail|error|unavailable|not reg|closed)|requested "
        r"number of devices"
        r"|FailedPreStopHook|FailedPostStartHook|NodeShutdown|Terminated: Pod was terminated"
        r"|NodeAffinity failed"
        r"|pod was (?:evicted|deleted) by",
        ("host", "restart"),
        words=(
            "unexpectedadmission|allocate failed|rejected|outof|topologyaffinity|device plugin|device-plugin"
            "|requested"
            " number|hook|nodeshutdown|terminated|nodeaffinity|pod was"
        ),
        weight=DEVICE,
        min_level="warning",
        source=_K8S,
        unless=r"nvml|GPU is lost",
        example="Pod Allocate failed due to requested number of devices unavailable for nvidia.com/gpu",
    ),
    log_rule(
        "container-failed",
        r"unable to start container process|\bexec failed\b|container (?:creation|start|init"
        r"|runtime)\b.*(?:fail|error|down"
        r"|not ready)|(?:Run|Create|Stop|Remove)PodSandbox|\bsandbox\b.*(?:fail|error|not found|unable)"
        r"|fail\w* to (?:create"
        r"|start|stop|kill|delete|exec|resize|pull|unpack|setup|reserve)\b.*(?:container|sandbox|task"
        r"|shim|runtime|image"
        r"|network|cgroup)|containers?/\w+ returned error|\bshim\b.*(?:fail|error|died|crash)|\b(?:pyxis"
        r"|enroot|singularity"
        r"|apptainer|podman|runc|crun|runsc|sarus|shifter)\b.*(?:fail|error|cannot|unable|could not"
        r"|fatal)|exec format error"
        r"|[Aa]rgument list too long|cni plugin|RuntimeReady=false|NetworkPluginNotReady"
        r"|CreateContainerConfigError"
        r"|Container \S+ termination failed|while mounting|container not (?:found|running)|OCI runtime",
        ("host", "restart"),
        words=(
            "container|exec |sandbox|shim|pyxis|enroot|singularity|apptainer|podman|runc|crun|runsc|sarus"
            "|shifter"
            "|list too long|cni plugin|runtimeready|networkplugin|mounting|oci runtime|fail"
        ),
        weight=DEVICE,
        min_level="error",
        source=_K8S,
        unless=(
            r"mount\.nfs|readiness|liveness|Failed to get system container stats|already exists|torch|dataset"
        ),
        example="FATAL:   container creation failed: mount /var/singularity error: while mounting",
    ),
    log_rule(
        "kubelet-node",
        r"[Ee]rror (?:getting|updating) node|Unable to (?:register|update) node|Error updating node status"
        r"|node \\?\"[^\"]+\" not found|[Ff]ailed to ensure lease|Container garbage collection failed"
        r"|Image garbage"
        r" collection failed|[Ss]kipping pod synchronization",
        ("host", "alert"),
        words="node|lease|garbage collection|synchronization",
        weight=DEVICE,
        min_level="error",
        source=_K8S,
        example='kubelet: E0811 10:00:00.1 1 k.go:8] "Error getting node" err="node \\"g7\\" not found"',
    ),
)

RULES: Final[tuple[LogRule, ...]] = (*_SLURM_RULES, *_RAY_RULES, *_MPI_RULES, *_KUBERNETES_RULES)
