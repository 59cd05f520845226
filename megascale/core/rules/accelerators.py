"""Accelerators that are not NVIDIA's: AMD, Ascend, TPU, and the status codes of XLA and gRPC."""

from __future__ import annotations

from typing import Final

from megascale.core.rules.model import (
    DEVICE,
    EXCEPTION,
    HARDWARE,
    PEER,
    Action,
    Category,
    LogRule,
    log_rule,
)

_AMD = "Linux amdgpu and amdkfd drivers; HIP and HSA error codes"
_ASCEND = "Ascend CANN, HCCL and torch_npu error codes"
_XLA = "XLA, libtpu and the coordination service of JAX"

_AMD_RULES: Final[tuple[LogRule, ...]] = (
    log_rule(
        "amd-ecc",
        r"amdgpu.*(?:[1-9]\d* (?:new )?uncorrectable|uncorrectable hardware error|\bpoison\b.*\b(?:consum"
        r"|creat|generat)\w*|RAS\b.*\b(?:fatal|uncorrect\w*)|bad page threshold)",
        ("gpu", "replace_node"),
        words="amdgpu",
        weight=HARDWARE,
        min_level="debug",
        source=_AMD,
        unless=r"\b0 (?:new )?uncorrect|not supported|corrected hardware errors? only",
        example="amdgpu 0000:c1:00.0: amdgpu: 2 uncorrectable hardware errors detected in umc block",
    ),
    log_rule(
        "amd-wrong-build",
        r"hipErrorNoBinaryForGpu|HIP error: (?:invalid device function|no kernel image)|hipErrorInvalidDevice"
        r"Function|Missing CO for these ISAs|Cannot find CO in the bundle|unable to find code object"
        r"|hipErrorInvalidKernelFile|hipErrorSharedObject\w+",
        ("framework", "fail_job"),
        words="hip|missing co|cannot find co|code object",
        weight=EXCEPTION,
        source=_AMD,
        unless=r"continue parsing",
        example='"hipErrorNoBinaryForGpu: Unable to find code object for all current devices!"',
    ),
    log_rule(
        "amd-illegal-access",
        r"Memory access fault by GPU|\[(?:gfx|mm)hub\d*\] ?(?:retry |no-retry )?page fault"
        r"|hipErrorIllegalAddress"
        r"|HSA_STATUS_ERROR_MEMORY_(?:FAULT|APERTURE_VIOLATION)|HSA_STATUS_ERROR_ILLEGAL_INSTRUCTION"
        r"|VM_(?:CONTEXT\d_|L2_)?PROTECTION_FAULT",
        ("user_code", "restart"),
        words="access fault by gpu|page fault|hiperrorillegal|hsa_status|protection_fault",
        weight=EXCEPTION,
        min_level="debug",
        source=_AMD,
        example="Memory access fault by GPU node-2 (Agent handle: 0x5640) on address 0x7fee. Reason: Page not"
        " present or supervisor privilege.",
    ),
    log_rule(
        "amd-oom",
        r"hipErrorOutOfMemory|hipErrorMemoryAllocation|HIP error: out of memory",
        ("oom", "fail_job"),
        words="hip",
        weight=DEVICE,
        source=_AMD,
        example="RuntimeError: HIP error: hipErrorOutOfMemory",
    ),
    log_rule(
        "amd-gpu",
        r"amdgpu.*(?:\*ERROR\*|\bring \S+ timeout|GPU reset (?:begin|fail)|\bfail(?:ed|ure)?\b|\bhang\b"
        r"|timed? ?out"
        r"|unrecoverable|not respond|device (?:is )?lost|fallen off|sq_intr: error|unable to)|HW "
        r"Exception by GPU"
        r"|GPU Hang\b|fence wait loop timeout|unsuccessful queues preemption|\*ERROR\*.*amdgpu"
        r"|\bamdkfd\b.*fail"
        r"|HSA_STATUS_ERROR\w*|\bhipError(?!NotReady)[A-Z]\w+|\bHIP (?:error|failure)\b ?[:(']|No HIP GPUs"
        r"|no ROCm-capable device|rocm.?smi\b.*(?:fail|error|unable)|GPU\[\d+\].*(?:fail|error|unable|lost)"
        r"|Triton Error \[HIP\]|\bMIOpen Error|rocBLAS error|ROCBLAS_STATUS_(?!SUCCESS)\w+",
        ("gpu", "restart"),
        words=(
            "amdgpu|hw exception|gpu hang|fence wait|preemption|amdkfd|hsa_status|hip|rocm|gpu[|miopen"
            "|rocblas"
        ),
        weight=HARDWARE,
        min_level="debug",
        source=_AMD,
        unless=r"reset succeeded|kernel errors might be|not available|is optional|DEBUG",
        example="amdgpu 0000:c1:00.0: amdgpu: ring gfx_0.0.0 timeout, signaled seq=4412, emitted seq=4414",
    ),
)

_ASCEND_RULES: Final[tuple[LogRule, ...]] = (
    log_rule(
        "npu-oom",
        r"\bNPU out of memory|\bEL0004\b|error code is 207001\b|ACL_ERROR_RT_MEMORY_ALLOCATION",
        ("oom", "fail_job"),
        words="npu out of|el0004|207001|memory_allocation",
        weight=DEVICE,
        source=_ASCEND,
        example=(
            "RuntimeError: NPU out of memory. Tried to allocate 1.26 GiB (NPU 3; 60.97 GiB total capacity)"
        ),
    ),
    log_rule(
        "npu-ecc",
        r"\bHBM\b.*(?:multi.?bit|uncorrect\w*|\bECC\b)|error code is 507054\b|\bnpu\b.*multi.?bit ECC",
        ("gpu", "replace_node"),
        words=("hbm|507054|npu "),
        weight=HARDWARE,
        source=_ASCEND,
        unless=r"\b0 (?:multi|uncorrect)|errors?: 0\b|count ?[:=] ?0\b",
        example="npu-smi: HBM uncorrected errors on NPU 3",
    ),
    log_rule(
        "hccl-arguments",
        r"\bEI000[1345]: |HCCL.*(?:inconsistent|ranktable|rank ?table).*",
        ("user_code", "fail_job"),
        words="ei000|hccl",
        weight=EXCEPTION,
        source=_ASCEND,
        example="EI0005: The arguments for collective communication are inconsistent between ranks",
    ),
    log_rule(
        "hccl-error",
        r"\bEI\d{4}: |\bERR02\d{3}\b|\bHCCL\b.*(?:error|fail|time)|\bHccl\w+.*(?:error|fail)|hccl api failed"
        r"|\bHCCP\b.*(?:error|fail)|\bERR020\d\d",
        ("network", "restart"),
        words="ei0|ei9|err02|hccl|hccp",
        weight=PEER,
        source=_ASCEND,
        example="EI0002: The wait execution of the Notify register times out.",
    ),
    log_rule(
        "npu-error",
        r"\bE(?:[A-HJ-Z]\d{4}|[1-9]\d{4}): |\bERR0[01345]\d{3}\b|\baicore\b.*(?:error|exception|timeout)"
        r"|\baicpu\b"
        r".*(?:error|exception|timeout)|\brt[A-Z]\w+ execute failed|runtime result = [1-9]|retCode=0x[1-9a-f]"
        r"|\bnpuSynchronize\w+.*(?:error|fail)|\bNPU\b.*\b(?:error|fault|lost|fail\w*|unhealthy|hang)"
        r"|reason=\[(?:driver error|task timeout|stream sync timeout|aicore|vector core|suspect)"
        r"|\bACL (?:stream|error)\b|error code ?(?:is|:|=)? ?(?:107|207|507)\d{3}\b|StreamOverflow|The "
        r"Inner error is reported"
        r"|Kernel Run failed|\blaunch failed for \w+|errno:\s?[15]\d{5}\b|task_exception\b.*error code"
        r"|\btsd client\b.*fail|tasks in the specified stream are not completed|\bacl api failed"
        r"|\bdrv\w+ failed",
        ("gpu", "restart"),
        words=(
            "ee1|ee9|eh9|ej0|el0|el9|ez0|ez3|ez9|e19999|e39999|e89999|e40|err0|aicore|aicpu|e"
            "xecute failed|runtime result|retcode|npusync| npu|npu |reason=[|tsd client|speci"
            "fied stream|acl |error code|streamoverflow|inner error|kernel run failed|launch "
            "failed|errno:|task_exception|drv"
        ),
        weight=EXCEPTION,
        source=_ASCEND,
        unless=r"NVRM|npu_fusion|enable npu",
        example="EZ9999: Inner Error! there is an aicore error exception, core id is 11",
    ),
)

_XLA_RULES: Final[tuple[LogRule, ...]] = (
    log_rule(
        "xla-oom",
        r"\bRESOURCE_EXHAUSTED\b.*(?:memory|allocat|\bHBM\b|\bbytes\b|That was not possible)|\bRan out "
        r"of memory in"
        r" memory space|Attempting to (?:allocate|reserve) [\d.]+[KMGT]i?B?\. That was not possible",
        ("oom", "fail_job"),
        words="resource_exhausted|ran out of memory|attempting to",
        weight=DEVICE,
        source=_XLA,
        unless=r"message larger than max",
        example="jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED: Attempting to allocate 11.25G. That was not"
        " possible. There are 9.10G free.",
    ),
    log_rule(
        "tpu-in-use",
        r"TPU is already in use|libtpu.*(?:lockfile|already in use)|/dev/(?:accel|vfio/)\d+\S*.*(?:busy"
        r"|in use)",
        ("host", "restart"),
        words="already in use|lockfile|/dev/accel|/dev/vfio",
        weight=DEVICE,
        source=_XLA,
        example=(
            "RuntimeError: Unable to initialize backend 'tpu': ABORTED: The TPU is already in use by process"
            " with pid 4412."
        ),
    ),
    log_rule(
        "tpu-error",
        r"Core halted unexpectedly|\b(?:TPU|TensorCore|SparseCore|libtpu|accel\d+)\b.*\b(?:halt\w*"
        r"|unhealthy|hung|hang"
        r"|lost|fault|driver error|fatal|failed|bad state|reset)|\bICI\b.*\b(?:link|fail\w*|down|error)"
        r"|slice (?:health|is unhealthy)|\b(?:neuron\w*|nrt_\w+|NRT)\b.*(?:fail|error|timeout|hang|NERR"
        r"|HW_ERR)"
        r"|\bNRT_(?:EXEC|FAILURE|TIMEOUT|QUEUE|RESOURCE|UNINIT)\w*|\bhabanalabs\b.*(?:fail|error|reset"
        r"|hang)|synStatus"
        r"(?!Success)\w+",
        ("gpu", "restart"),
        words="halted|tpu|tensorcore|sparsecore|accel|ici |slice|neuron|nrt|habanalabs|synstatus",
        weight=HARDWARE,
        source=_XLA,
        unless=(
            r"falling back|not installed|precondition|nvalid argument|Cancelled|DEADLINE_EXCEEDED"
            r"|UNAVAILABLE|heartbeat"
        ),
        example="RuntimeError: INTERNAL: Core halted unexpectedly: No error message available",
    ),
    log_rule(
        "xla-peers",
        r"heartbeat (?:timeout|request failed|timed out)|coordination service.*(?:fail|error|unavail"
        r"|shut|timed)"
        r"|\bBarrier (?:timed out|failed|has been)|with a different incarnation"
        r"|CoordinationService(?:Error|Agent)"
        r"|/job:\w+/\S*task:\d+.*(?:failed|preempted|crashed|ERROR|disconnect)|Terminating process "
        r"because the JAX"
        r" distributed service|connection to (?:the )?coordinator",
        ("network", "restart"),
        words="heartbeat|coordination|barrier|incarnation|/job:|distributed service|coordinator",
        weight=PEER,
        source=_XLA,
        unless=r"[Ww]atchdog|monitoredBarrier|kubelet|raylet|GCS",
        example="UNAVAILABLE: Task /job:jax_worker/replica:0/task:37 heartbeat timeout.",
    ),
)

_STATUS = "absl and gRPC status codes"
_CODES: Final[tuple[tuple[str, str, tuple[Category, Action], str], ...]] = (
    (
        "unavailable",
        "UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED|Cancelled|Deadline Exceeded",
        ("network", "restart"),
        "XlaRuntimeError: DEADLINE_EXCEEDED: Failed to connect to remote server",
    ),
    (
        "invalid",
        "INVALID_ARGUMENT|FAILED_PRECONDITION|OUT_OF_RANGE|UNIMPLEMENTED|Failed precondition",
        ("user_code", "fail_job"),
        "XlaRuntimeError: INVALID_ARGUMENT: Executable expected parameter 0 of size 4096",
    ),
    (
        "denied",
        "PERMISSION_DENIED|UNAUTHENTICATED",
        ("storage", "fail_job"),
        "tensorstore: PERMISSION_DENIED: no access to the bucket",
    ),
    (
        "data-loss",
        "DATA_LOSS",
        ("data", "fail_job"),
        "tensorstore: DATA_LOSS: record at 4096 ends early",
    ),
    ("internal", "INTERNAL", ("framework", "restart"), "XlaRuntimeError: INTERNAL: no tile was found"),
)
STATUS_RULES: Final[tuple[LogRule, ...]] = tuple(
    log_rule(
        f"status-{name}",
        rf"(?-i:\b(?:{codes})\b)(?:: |\]| desc)",
        meaning,
        words=codes.lower(),
        weight=EXCEPTION,
        source=_STATUS,
        example=example,
    )
    for name, codes, meaning, example in _CODES
)

RULES: Final[tuple[LogRule, ...]] = (*_AMD_RULES, *_ASCEND_RULES, *_XLA_RULES)
