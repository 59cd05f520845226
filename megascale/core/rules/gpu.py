"""GPUs as seen through CUDA, cuBLAS, cuDNN, NVML, nvidia-smi, DCGM and the fabric manager."""

from __future__ import annotations

from typing import Final

from megascale.core.rules.model import DEVICE, EXCEPTION, HARDWARE, LogRule, log_rule

_CUDA = "CUDA runtime API error list; ByteRobust table 2 (illegal access: user 41, infrastructure 21)"
_NVML = "NVML API, nvidia-smi and DCGM health watches"
_DOCS = r"(?<!in )https?://|(?<!://)\bdocs?\b|\bfor example\b|\bmeans\b"  # CUDA's own texts say "in https://docs..."

_MEMORY: Final[tuple[LogRule, ...]] = (
    log_rule(
        "cuda-oom",
        r"CUDA out of memory|torch\.(?:cuda\.)?OutOfMemoryError|CUDA error: out of memory"
        r"|cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY"
        r"|Cuda failure.*out of memory|\bout of memory\b.*\b(?:GPU|CUDA|device)\b"
        r"|HIP out of memory|CUBLAS_STATUS_ALLOC_FAILED"
        r"|Failed to allocate memory on (?:the )?GPU"
        r"|RESOURCE_EXHAUSTED: .*memory|OOM when allocating tensor",
        ("oom", "fail_job"),
        words=(
            "out of memory|outofmemory|out_of_memory|memoryallocation|alloc_failed|failed to allocate"
            "|resource_exhausted|oom when"
        ),
        weight=DEVICE,
        source=_CUDA,
        unless=r"oom[-_ ]killer|cgroup|Killed process",
        example=(
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.50 GiB. GPU 3 has a"
            " total capacity of 79.11 GiB"
        ),
    ),
    log_rule(
        "cuda-ecc",
        (
            r"uncorrectable ECC error|cudaErrorECCUncorrectable|CUDA_ERROR_ECC_UNCORRECTABLE"
            r"|\b(?:double|multi)[- ]bit (?:ECC|error)|\bDBE\b.*\b(?:GPU|detected|retire)"
            r"|uncorrectable (?:memory )?error.*\bGPU\b|\bGPU\b.*\buncorrect(?:able|ed)\b.*\berror"
        ),
        ("gpu", "replace_node"),
        words="ecc|double|multi|dbe|uncorrect",
        weight=HARDWARE,
        source=_CUDA,
        unless=_DOCS,
        example="RuntimeError: CUDA error: uncorrectable ECC error encountered",
    ),
    log_rule(
        "gpu-row-remap-failed",
        (
            r"Remapping Failure Occurred\s*:\s*Yes|row remap\w* fail|unable to retire page"
            r"|remapped_rows\.failure[^0-9]*[1-9]"
        ),
        ("gpu", "replace_node"),
        words="remap|retire page",
        weight=HARDWARE,
        min_level="debug",
        source=_NVML,
        example="Remapping Failure Occurred : Yes",
    ),
    log_rule(
        "gpu-row-remap-pending",
        (
            r"(?:Remap\w*|Pending) .*Pending\s*:\s*Yes|row remap\w* (?:is )?pending"
            r"|^\s*Pending\s+: Yes|Retired pages pending"
        ),
        ("gpu", "alert"),
        words="pending",
        source=_NVML,
        example="GPU 4: row remapping pending, reset required",
    ),
)

_CODE: Final[tuple[LogRule, ...]] = (
    log_rule(
        "cuda-assert",
        (
            r"device-side assert triggered|cudaErrorAssert\b|CUDA_ERROR_ASSERT"
            r"|(?:block|thread)s?\s*[:：]?\s*\[\d+, ?\d+, ?\d+\].{0,300}?(?:assert\w*|断言)"
            r"|assert\w*.{0,300}?(?:block|thread)s?\s*[:：]?\s*\[\d+, ?\d+, ?\d+\]|device-side assert"
            r"|\.(?:cu|cuh|hip)\b.*\bassert(?:ion)?\b.*\bfailed"
        ),
        ("user_code", "fail_job"),
        words="assert|断言",
        weight=DEVICE,
        source=_CUDA,
        example="RuntimeError: CUDA error: device-side assert triggered",
    ),
    log_rule(
        "cuda-illegal-access",
        (
            r"an illegal memory access was encountered|illegal address during kernel"
            r"|cudaErrorIllegalAddress|CUDA_ERROR_ILLEGAL_ADDRESS|misaligned address"
            r"|an illegal instruction was encountered|CUDA_EXCEPTION_\d+|Warp Illegal Address"
            r"|invalid (?:program counter|address space)"
        ),
        ("user_code", "restart"),
        words="illegal|misaligned|cuda_exception|invalid",
        weight=EXCEPTION,
        source=_CUDA,
        example="torch.AcceleratorError: CUDA error: an illegal memory access was encountered",
    ),
    log_rule(
        "cuda-wrong-build",
        (
            r"no kernel image is available|kernel image is invalid|CUDA driver version is insufficient"
            r"|invalid device function|provided PTX was compiled with an unsupported toolchain"
            r"|driver on your system is too old|forward compatibility was attempted"
            r"|version of (?:the )?CUDA.*mismatch|detected CUDA version .* mismatches"
        ),
        ("framework", "fail_job"),
        words="kernel image|driver|device function|ptx|compatibility|mismatch",
        weight=EXCEPTION,
        source=_CUDA,
        example="RuntimeError: CUDA error: no kernel image is available for execution on the device",
    ),
    log_rule(
        "cuda-invalid-use",
        (
            r"CUDA error: invalid (?:argument|configuration argument|device ordinal"
            r"|resource handle)|CUBLAS_STATUS_INVALID_VALUE|CUDNN_STATUS_BAD_PARAM"
            r"|CUDNN_STATUS_NOT_SUPPORTED|too many resources requested for launch"
            r"|Torch not compiled with CUDA enabled"
        ),
        ("user_code", "fail_job"),
        words="invalid|bad_param|not_supported|resources requested|not compiled",
        weight=EXCEPTION,
        source=_CUDA,
        example="RuntimeError: CUDA error: invalid device ordinal",
    ),
)

_DEVICE: Final[tuple[LogRule, ...]] = (
    log_rule(
        "gpu-lost",
        r"\bGPU (?:is |was )?lost\b|GPU_IS_LOST|Unable to determine the device handle for GPU"
        r"|No devices were found|cudaErrorDevicesUnavailable|CUDA_ERROR_(?:NO_DEVICE"
        r"|DEVICE_UNAVAILABLE|SYSTEM_NOT_READY|SYSTEM_DRIVER_MISMATCH)"
        r"|system not yet initialized|no CUDA-capable device is detected"
        r"|No CUDA GPUs are available|\bGPUs?\b(?: #?[\w:.\-]*\d[\w:.\-]*)? ?(?:has |have |is |are |was "
        r"|were )?"
        r"(?:dropped (?:off|from|out)|disappeared|not found|missing)\b|\bregvalue: 0xffffffff"
        r"|expected \d+ GPUs?,? (?:but )?(?:found|got|saw) \d+|GPU requires reset"
        r"|hardware (?:has been )?(?:failed|lost).*GPU"
        r"|no healthy devices present|cannot allocate unhealthy devices|CUDA driver initialization failed"
        r"|GPU access blocked by the operating system|\bUnknown Error\b.*\bGPU|has fallen off",
        ("gpu", "replace_node"),
        words="gpu|device|system not yet|cuda|regvalue",
        weight=HARDWARE,
        source=_NVML,
        unless=_DOCS,
        example="Unable to determine the device handle for GPU0000:5D:00.0: Unknown Error",
    ),
    log_rule(
        "nvml-broken",
        (
            r"Failed to initialize NVML|NVML: (?:Driver/library version mismatch|Unknown Error"
            r"|GPU is lost)|couldn'?t communicate with the NVIDIA driver"
            r"|nvidia-smi (?:has )?(?:failed|timed out|hangs?|hung|not responding)|NVMLError_\w+"
            r"|NVRM: .*(?:RmInitAdapter|rm_init_adapter|probe routine failed)|NVRM: .*API mismatch"
        ),
        ("gpu", "replace_node"),
        words="nvml|nvidia driver|nvidia-smi|nvrm",
        weight=HARDWARE,
        source=_NVML,
        unless=r"not ?supported|NotSupported|FunctionNotFound",
        example="Failed to initialize NVML: Unknown Error",
    ),
    log_rule(
        "gpu-inforom",
        r"infoROM is corrupted",
        ("gpu", "alert"),
        words="inforom",
        min_level="debug",
        source=_NVML,
        example="WARNING: infoROM is corrupted at gpu 0000:0B:00.0",
    ),
    log_rule(
        "gsp-timeout",
        (
            r"\b(?-i:GSP)\b.*(?:timeout|timed out|crash|RPC .*fail|lockdown|exception|not responding)"
            r"|Timeout (?:after \d+s of )?waiting for RPC (?:response )?from GSP|_kgspRpcRecvPoll"
            r"|_issueRpcAndWait"
        ),
        ("gpu", "restart"),
        words="gsp|issuerpc",
        weight=HARDWARE,
        min_level="debug",
        source="NVIDIA XID 119, 120",
        example="NVRM: _kgspRpcRecvPoll: Timeout waiting for RPC from GSP2! Expected function 76",
    ),
    log_rule(
        "fabric-manager",
        (
            r"(?:fabric ?manager|nv-fabricmanager)\b.*(?:fail(?:ed|ure)|error|fatal|exited"
            r"|not running|abort)|\bdetected NVSwitch fatal error|NVSwitch fatal error|(?:fabric state"
            r"|Fabric Manager).*\b(?:Not Started"
            r"|In Progress|failure)|\bIMEX\b.*(?:fail|unavailable|lost)"
        ),
        ("gpu", "replace_node"),
        words="fabric|imex|nvswitch fatal",
        weight=HARDWARE,
        source="NVIDIA Fabric Manager guide",
        unless=rf"{_DOCS}|NOTHING_TO_DO|non-?fatal|\binactive\b|\bdisabled\b",
        example="nvidia-fabricmanager.service: Failed with result 'exit-code'.",
    ),
    log_rule(
        "nvlink-error",
        (
            r"\bNV ?Link\b[^|`]{0,80}?\b(?:error|fail(?:ed|ure)?|down|inactive|fatal|CRC|replay|recovery"
            r"|degraded|uncorrectable)|uncorrectable NVLink error|cudaErrorNvlinkUncorrectable"
            r"|\bNVSwitch\b.*\b(?:fatal|error|fail\w*|down)|DCGM_FR_(?:NVLINK|NVSWITCH)_\w+"
        ),
        ("gpu", "restart"),
        words="nvlink|nv link|nvswitch",
        weight=HARDWARE,
        source=_NVML,
        unless=rf"{_DOCS}|not supported|inForom|errors?: 0\b|no error",
        example="CUDA error: uncorrectable NVLink error detected during the execution",
    ),
    log_rule(
        "gpu-thermal",
        (
            r"(?:HW|SW|hardware|software) (?:thermal|power brake) slowdown\b.*(?:Active|detected"
            r"|engaged)(?!.*Not Active)|clocks?_(?:event"
            r"|throttle)_reasons\.\w+\"?\s*[=:]\s*\"?Active\b|\bGPU\b.*\b(?:overheat\w*"
            r"|thermal (?:violation|throttl\w+|shutdown|slowdown)|temperature .*(?:exceed\w*|above"
            r"|over|critical))|DCGM_FR_(?:CLOCK_THROTTLE|TEMP|THERMAL)\w+"
            r"|power cable.*(?:not connected|missing)"
        ),
        ("gpu", "alert"),
        words="slowdown|throttle|overheat|thermal|temperature|power cable",
        source=_NVML,
        unless=r":\s*Not Active|Inactive|can still perform|Recommended Action=NONE",
        example="GPU 2: HW Thermal Slowdown : Active",
    ),
    log_rule(
        "dcgm-unhealthy",
        (
            r"DCGM_FR_\w+|\b(?:dcgm|dcgmi)\b.*\b(?:fail(?:ed|ure)?|unhealthy|critical)\b|GpuDown"
            r"|device will go unhealthy|unhealthy GPU|GPU\w* (?:is |marked )?unhealthy"
            r"|Health (?:check|watch).*\b(?:Failure|unhealthy)\b.*GPU|^\|.*\bFail(?: - GPU|\s*\|)"
            r"|^\|.*\bGPU\b.*\berror\b|Overall Health: (?:Failure|Warning)|Detected a (?:WARNING"
            r"|FAILURE) in health system"
        ),
        ("gpu", "alert"),
        words="dcgm|unhealthy|gpudown|health|fail - gpu|fail |error",
        source=_NVML,
        unless=rf"{_DOCS}|can still perform|Recommended Action=NONE",
        example="dcgmi diag: PCIe test ........ Fail",
    ),
    log_rule(
        "cuda-launch-failure",
        r"unspecified launch failure|CUDA error: (?:unknown error|hardware stack error"
        r"|the launch timed out|an unspecified|launch failed|initialization error"
        r"|driver shutting down|operation not permitted when|context is destroyed)"
        r"|cudaErrorLaunch(?:Failure|Timeout)|CUDA_ERROR_(?:LAUNCH_FAILED|UNKNOWN"
        r"|LAUNCH_TIMEOUT|HARDWARE_STACK_ERROR|CONTEXT_IS_DESTROYED|EXTERNAL_DEVICE)"
        r"|CUDA-capable device\(s\) is/are busy or unavailable|CUDA unknown error"
        r"|external device error|Cuda failure (?:'|\d|4 |[a-z])|CUDA driver error|CUDA failure"
        r"|cudaErrorUnknown|hardware exception",
        ("gpu", "restart"),
        words="launch|cuda|hardware exception|external device",
        weight=DEVICE,
        source=_CUDA,
        example="RuntimeError: CUDA error: unspecified launch failure",
    ),
    log_rule(
        "cuda-library",
        (
            r"CUBLAS_STATUS_\w+|CUDNN_STATUS_\w+|CUSOLVER_STATUS_\w+|CUFFT_\w*(?:FAILED|ERROR)\w*"
            r"|cuBLAS error|cuDNN error|CUDA error when calling [`'](?:cublas|cudnn)"
        ),
        ("gpu", "restart"),
        words="cublas|cudnn|cusolver|cufft",
        weight=EXCEPTION,
        source=_CUDA,
        unless=r"STATUS_SUCCESS|_(?:BAD_PARAM|INVALID_VALUE|NOT_SUPPORTED)",
        example=(
            "RuntimeError: CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(handle)`"
        ),
    ),
    log_rule(
        "cuda-error",
        (
            r"\bCUDA error(?: \d+| at| in)?\s*[:(\]]|AcceleratorError: |c10::(?:CUDAError"
            r"|AcceleratorError)|CUDA runtime error|CUDA_ERROR_\w+"
            r"|\bcudaError[A-Z]\w+|Triton Error \[CUDA\]"
        ),
        ("gpu", "restart"),
        words="cuda|acceleratorerror",
        weight=EXCEPTION,
        source=_CUDA,
        unless=rf"{_DOCS}|cudaErrorNotReady|CUDA_LAUNCH_BLOCKING|CUDA error: no error",
        example="RuntimeError: CUDA error: the remote procedural call timed out",
    ),
    log_rule(
        "pin-memory-thread",
        r"in pin memory thread|Pin memory thread exited unexpectedly",
        ("gpu", "restart"),
        words="pin memory thread",
        weight=EXCEPTION,
        source="OPT-175B logbook (lost GPU)",
        example="RuntimeError: Caught RuntimeError in pin memory thread for device 5.",
    ),
)

RULES: Final[tuple[LogRule, ...]] = (*_MEMORY, *_CODE, *_DEVICE)
