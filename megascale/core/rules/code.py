"""Exceptions and messages of training programs: user code, data, framework."""

from __future__ import annotations

from typing import Final

from megascale.core.rules.model import EXCEPTION, SYMPTOM, LogRule, log_rule

_PY = (
    "Python exceptions; ByteRobust (TypeError, IndexError ... = roll the code back); Acme"
    " table of script errors"
)
_DATA = "data loading libraries; Acme (dataset faults)"
_TORCH = "PyTorch error messages"
_AT = r"^\s*(?:[\w.]+:\s)?(?:[\w<>]+\.)*"  # an exception line begins with its type

_DATA_RULES: Final[tuple[LogRule, ...]] = (
    log_rule(
        "data-missing",
        _AT
        + (
            r"(?:FileNotFoundError|OSError|RuntimeError|AssertionError"
            r"|ValueError)\b.*(?:/(?:data(?:sets?|_\w+)?|corpus|corpora|shards?|tokens?|tokenized"
            r"|train(?:ing)?_data|pile|c4)/|\.(?:bin|idx|jsonl?(?:\.\w+)?|parquet|arrow"
            r"|tfrecord\w*|tar|npy|mds|zst|csv|tsv)\b)"
        ),
        ("data", "fail_job"),
        words="filenotfound|oserror|runtimeerror|assertionerror|valueerror",
        weight=EXCEPTION,
        source=_DATA,
        unless=(
            r"config|\.ya?ml|tokenizer|checkpoint|ckpt|hostfile|param|Errno (?:5|12|13|24|28|30"
            r"|107|108|116|121|122)\]|ds_config|vocab|merges"
        ),
        example=(
            "FileNotFoundError: [Errno 2] No such file or directory: '/mnt/corpus/pile_00_text_document.idx'"
        ),
    ),
    log_rule(
        "data-damaged",
        _AT
        + (
            r"(?:JSONDecodeError|UnicodeDecodeError|ArrowInvalid|ArrowTypeError|BadGzipFile"
            r"|BadZipFile|ReadError|UnidentifiedImageError|UnpicklingError|EOFError|ParserError"
            r"|DataLossError|ZstdError|LZMAError|DecodeError|DatasetGenerationError"
            r"|DatasetGenerationCastError|DataFilesNotFoundError|DatasetNotFoundError"
            r"|NonMatchingSplitsSizesError|NonMatchingChecksumError|DataError|InvalidDataError"
            r"|zlib\.error|struct\.error|struct\.Error|error: Error -[35] while decompressing)\b"
        ),
        ("data", "fail_job"),
        words=(
            "decodeerror|arrow|badgzip|badzip|readerror|unidentified|unpickling|eoferror"
            "|parsererror|dataloss|zstd|lzma|dataset|nonmatching|dataerror|dataerr|zlib|struct."
        ),
        weight=EXCEPTION,
        source=_DATA,
        unless=(
            r"ImportError|No module|config|JSONDecodeError.*(?:config|tokenizer)|struct\.Struct"
            r"|checkpoint|ckpt|\.pth?\b|model_optim|mp_rank|state_dict"
        ),
        example="json.decoder.JSONDecodeError: Expecting ',' delimiter: line 1 column 4096 (char 4095)",
    ),
    log_rule(
        "data-inconsistent",
        (
            r"(?:dataset|data ?file|index(?:ed)?(?: dataset| file)?|shard|sample|document|record"
            r"|corpus|bin file|idx)\b.*\b(?:corrupt\w*|damaged|truncated|does not match"
            r"|doesn't match|mismatch|out of range|invalid magic|bad magic|malformed|checksum"
            r"|is empty|unsupported format|header)|Index file doesn't match expected format"
            r"|num_samples should be a positive integer|token id \d+ .*(?:vocab|out of)"
            r"|mmap length is greater than file size|corrupt(?:ed)? (?:record|sample|shard|dataset"
            r"|example|image|parquet)|not a parquet file|Parquet magic bytes not found"
            r"|truncated file: eof|cannot reshape array.*memmap|buffer (?:size must be a multiple"
            r"|is smaller than requested)|offset must be non-negative and no greater than buffer"
            r" length|Sizes? of (?:dataset|tensors?) .*dataset"
        ),
        ("data", "fail_job"),
        words=(
            "dataset|data file|datafile|index|shard|sample|document|record|corpus|bin file|idx"
            "|token id|mmap|corrupt|parquet|memmap|buffer|offset|truncated file"
        ),
        weight=EXCEPTION + 2,
        min_level="error",
        source=_DATA,
        unless=(
            r"IndexError: (?:list|tuple|index \d+ is out of bounds)|size mismatch for|checkpoint"
            r"|row remap|skipp|dropp|discard|filter|too long|CUDA|weight|link_"
        ),
        example=(
            "ValueError: Index file doesn't match expected format. Make sure that --dataset-impl"
            " is configured properly."
        ),
    ),
)

_USER: Final[tuple[LogRule, ...]] = (
    log_rule(
        "user-config",
        (
            r"error: (?:unrecognized arguments|the following arguments are required|argument \S+: "
            r"|ambiguous option|invalid choice)|(?:ConfigKeyError|ConfigAttributeError"
            r"|MissingMandatoryValue|ConfigCompositionException|OverrideParseException"
            r"|MissingConfigException|InterpolationKeyError|ValidationError|HydraException"
            r"|InstantiationException|UsageError|DeepSpeedConfigError|ScannerError|TOMLDecodeError"
            r"|DuplicateKeyError)\b|Could not override|In '[^']+': |Key '[^']+' (?:is )?not in"
            r"|unrecognized (?:configuration|arguments)|No such option|Missing (?:option|argument)"
            r"|Error: Invalid value for|world size \(\d+\) is not divisible|is not divisible by"
            r"|must be divisible|not a multiple of|^usage: \S+\.py|^\S*python\S*: can't open file '"
            r"|^Error executing job with overrides"
        ),
        ("user_code", "fail_job"),
        words=(
            "error: |config|missing|override|interpolation|validation|hydra|instantiation|usage"
            "|scanner|tomldecode|duplicatekey|in '|key '|unrecognized|no such option|divisible"
            "|multiple of|can't open file|error executing"
        ),
        weight=EXCEPTION,
        min_level="error",
        source="argparse, Hydra, OmegaConf, pydantic, Megatron argument checks",
        unless=r"MAC verification|certificate|CUDA|shard",
        example="pretrain_gpt.py: error: unrecognized arguments: --micro-bacth-size 4",
    ),
    log_rule(
        "user-hub",
        (
            r"Can't load (?:tokenizer|the configuration|config|the model)"
            r"|is not a (?:local folder and is not a valid model identifier"
            r"|valid model identifier)|(?:OSError|ValueError).*(?:tokenizer|pretrained"
            r"|from_pretrained)|gated repo|GatedRepoError|RepositoryNotFoundError"
            r"|EntryNotFoundError|tokenizer .*(?:not found|missing|mismatch)|HFValidationError"
            r"|does not appear to have a file named|Unrecognized model in"
            r"|HTTPError: 40[134].*huggingface"
        ),
        ("user_code", "fail_job"),
        words=(
            "load|model identifier|tokenizer|pretrained|gated|repositorynotfound|entrynotfound"
            "|hfvalidation|appear to have|unrecognized model|huggingface"
        ),
        weight=EXCEPTION,
        min_level="error",
        source="Hugging Face hub client",
        unless=r"offline|timed? out|Connection|LocalEntryNotFound",
        example=(
            "OSError: Can't load tokenizer for 'acme/llm-tok'. If you were trying to load it from"
            " a hub, make sure you don't have a local directory with the same name."
        ),
    ),
    log_rule(
        "framework-library",
        _AT
        + (
            r"(?:ImportError|OSError|RuntimeError|ModuleNotFoundError)\b.*(?:undefined symbol"
            r"|cannot open shared object file|version `\w+_[\d.]+' not found|compiled (?:with"
            r"|against|using)|ABI|incompatible architecture)|(?:GLIBC|GLIBCXX"
            r"|CXXABI)_[\d.]+' not found|numpy\.dtype size changed|Error building extension"
            r"|ninja: build stopped"
            r"|CUDA_HOME (?:does not exist|environment variable is not set)|Failed to import \w+\.\w+"
            r"|error while loading shared libraries"
        ),
        ("framework", "fail_job"),
        words=(
            "import|shared object|undefined symbol|glibc|cxxabi|dtype size|shared libraries"
            "|compiled|incompatible|abi|building extension|ninja: |cuda_home"
        ),
        weight=EXCEPTION + 2,
        source="dynamic linker and extension modules",
        unless=r"libcuda\.so|libnvidia",
        example="ImportError: /opt/venv/flash_attn_2_cuda.so: undefined symbol: _ZN2at4_ops5zeros",
    ),
    log_rule(
        "framework-compiler",
        (
            r"\b(?:BackendCompilerFailed|InternalTorchDynamoError|InductorError|LoweringException"
            r"|CompilationError)\b"
        ),
        ("framework", "fail_job"),
        words="compil|dynamo|inductor|lowering",
        weight=EXCEPTION + 2,
        min_level="error",
        source="torch.compile and Triton: the same graph fails to compile again",
        unless=r"CUDA error|out of memory",
        example="torch._dynamo.exc.BackendCompilerFailed: backend='inductor' raised:",
    ),
    log_rule(
        "framework-assert",
        r"\bINTERNAL ASSERT FAILED\b",
        ("framework", "restart"),
        words="internal assert",
        weight=EXCEPTION + 1,
        min_level="error",
        source="torch's c10/util/Exception.h: an invariant of its own is broken",
        unless=r"CUDA error|NCCL error",
        example=(
            'RuntimeError: it != handles.end() INTERNAL ASSERT FAILED at "/build/c10/cuda/pool.cpp":88,'
            " please report a bug to PyTorch."
        ),
    ),
    log_rule(
        "driver-library",
        (
            r"(?:libcuda|libnvidia-ml|libnvidia-\w+)\.so\S*: cannot open shared object"
            r"|Could not load (?:dynamic )?library '?lib(?:cuda|nvidia)"
        ),
        ("gpu", "replace_node"),
        words="libcuda|libnvidia",
        weight=EXCEPTION,
        source="NVIDIA driver libraries missing on the host",
        example="ImportError: libcuda.so.1: cannot open shared object file: No such file or directory",
    ),
    log_rule(
        "numbers",
        (
            r"\b(?:found|detected|encountered|got|saw) (?:an? )?(?:NaNs?|Inf|non-finite)\b|\b(?:NaNs?|Inf)"
            r"(?: or (?:NaN|Inf))?(?: \w+){0,2} (?:detected|found|encountered|in (?:the )?(?:loss|grad\w*"
            r"|local|forward|backward|weights|activations?|logits|output))\b|\b(?:loss"
            r"|grad[_ ]?norm|gradients?|lm loss|logits)\b['\"]?\s*(?:is|became|was|=|:|->|has"
            r"|contains?)\s*(?:NaN|nan|inf|Inf)\b|Unexpected result (?:nan|inf)"
            r"|returned nan values|loss (?:exploded|diverged|spike)|non-finite (?:loss|grad\w*"
            r"|values?)|FloatingPointError|minimum (?:loss )?scale|scale already at minimum"
            r"|number of nan iterations:\s+[1-9]|\bloss\s+nan\b|validateUpdateFailed"
            r"|silent data corruption|SDC detected"
        ),
        ("user_code", "alert"),
        words=(  # not "inf", which is in every INFO
            "nan|inf |inf,|inf)|inf'|inf:|inf]|inf}|inf;|inf.|exploded|diverged|spike|non-finite"
            "|floatingpoint|minimum scale|loss scale|scale already|silent data|sdc"
        ),
        weight=EXCEPTION,
        min_level="info",
        source="Megatron-core loss checks; ByteRobust table 2 (NaN: 3 infrastructure, 1 user)",
        unless=(
            r"check[_-](?:for[_-])?nan|nan_(?:check|to_num|policy)|detect_anomaly|(?:no|0"
            r"|zero) nan|nan[ :=]+0\b|ignore_?nan"
            r"|-inf\b.*mask|mask\w* .*-inf|skip_nan|enable\w* .*nan|max_\w+=inf|=inf,"
            r"|skipped iterations:\s+[1-9]\d* \| number of nan iterations:\s+0|: inf\b.*(?:max|limit|best)"
            r"|best \w+ (?:=|:|is)? ?inf|inf (?:to|->)|patience"
            r"|early stopp|spike[ _]threshold"
        ),
        example=(
            "RuntimeError: Rank 12, node gpu-3, device 4, iteration 20411: Unexpected result nan"
            " (message='found NaN in local forward loss calculation')"
        ),
    ),
    log_rule(
        "user-runtime",
        (
            r"mat1 and mat2 shapes|shapes? cannot be multiplied|size mismatch for"
            r"|Error\(s\) in loading state_dict|(?:Missing|Unexpected) key\(s\) in state_dict"
            r"|The size of tensor a|Expected all tensors to be on the same device"
            r"|does not require grad|backward through the graph a second time"
            r"|Expected to have finished reduction|modified by an inplace operation"
            r"|expected scalar type|is invalid for input of size|Sizes of tensors must match"
            r"|Expected (?:tensor|input|\d-dimensional)|dimension out of range"
            r"|CheckpointError: torch\.utils\.checkpoint|Tensors must have same"
            r"|Expected .* but got|unused parameters|stack expects each tensor|cannot be cast"
            r"|not implemented for '(?:Half|BFloat16|Long|Int|Float)|index out of range in self"
            r"|DataParallel|No backend type associated"
            r"|Default process group has not been initialized|Boolean value of Tensor"
            r"|inconsistent tensor size|Input type .* and weight type|must match the size"
            r"|torch\._dynamo\.exc\.(?:Unsupported|UserError)|no_sync|already been marked as ready"
            r"|leaf Variable that requires grad|OutOfResources: "
        ),
        ("user_code", "fail_job"),
        words=(
            "mat1|shape|mismatch|state_dict|size|tensor|grad|graph a second|expected|inplace"
            "|scalar type|dimension|index out of|cannot be cast|not implemented|dataparallel"
            "|backend type|process group|boolean|weight type|dynamo"
            "|unused param|no_sync|marked as ready|leaf variable|checkpointerror"
            "|outofresources"
        ),
        weight=EXCEPTION,
        min_level="error",
        source=_TORCH,
        unless=r"CUDA error|NCCL|dataset|collective|checksum|connection|\bGPUs?,? (?:but )?(?:found|got)",
        example="RuntimeError: mat1 and mat2 shapes cannot be multiplied (4096x1024 and 2048x512)",
    ),
    log_rule(
        "user-permission",
        _AT + r"PermissionError\b",
        ("storage", "fail_job"),
        words="permissionerror",
        weight=EXCEPTION,
        source="POSIX EACCES",
        example="PermissionError: not allowed to write '/ckpt/run-41/iter_0'",
    ),
    log_rule(
        "user-exception",
        _AT
        + (
            r"(?:TypeError|AttributeError|KeyError|IndexError|NameError|UnboundLocalError"
            r"|ValueError|AssertionError|NotImplementedError|ZeroDivisionError|SyntaxError"
            r"|IndentationError|TabError|RecursionError|ModuleNotFoundError|ImportError"
            r"|FileNotFoundError|IsADirectoryError|NotADirectoryError|FileExistsError"
            r"|OverflowError|ArithmeticError|LookupError|StopIteration|UnicodeEncodeError"
            r"|PicklingError|LinAlgError|AxisError|CalledProcessError|JSONDecodeError"
            r"|PydanticUserError|TypeCheckError)\b(?::|$|\()"
        ),
        ("user_code", "fail_job"),
        words="error|stopiteration",
        weight=EXCEPTION,
        min_level="error",
        source=_PY,
        example="KeyError: 'attention_mask'",
    ),
    log_rule(
        "data-stalled",
        r"DataLoader timed out after",
        ("data", "restart"),
        words="dataloader timed out",
        weight=EXCEPTION,
        source="PyTorch DataLoader",
        example="RuntimeError: DataLoader timed out after 300.0 seconds",
    ),
    log_rule(
        "timeout-error",
        _AT + r"(?:(?:\w*TimeoutError|TimeoutExpired)\b|\w+(?:Error|Exception): .*\btimed out\b)",
        ("network", "restart"),
        words="timeout|timed out",
        weight=EXCEPTION - 10,
        source=_PY,
        example="TimeoutError: timed out",
    ),
    log_rule(
        "user-runtime-other",
        _AT + r"(?:RuntimeError|Exception|OSError|IOError|SystemError|ReferenceError)\b(?::|$)",
        ("user_code", "restart"),
        words="error|exception",
        weight=EXCEPTION - 10,
        min_level="error",
        source=_PY,
        example="RuntimeError: scheduler state is missing the group of the embedding",
    ),
    log_rule(
        "java-exception",
        r"^\s*(?:Caused by: )?(?:java|org|com)\.[\w.]+(?:Exception|Error)\b",
        ("framework", "restart"),
        words="exception|error",
        weight=SYMPTOM + 10,
        min_level="error",
        source="JVM clients",
        example="java.io.IOException: Filesystem closed",
    ),
    log_rule(
        "library-exception",
        _AT + r"\w+(?:Error|Exception)\b: .|^(?:\w+\.)+\w+(?:Error|Exception):?\s*$",
        ("user_code", "restart"),
        words="error|exception",
        weight=SYMPTOM + 15,
        min_level="error",
        source=_PY,
        unless=r"https?://docs|error: 0",
        example="mytrainer.errors.BatchPlanError: bucket 9 has no sequence",
    ),
)

RULES: Final[tuple[LogRule, ...]] = (*_DATA_RULES, *_USER)
