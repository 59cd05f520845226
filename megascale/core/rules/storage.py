"""Local disks, parallel and network file systems, object stores, checkpoints."""

from __future__ import annotations

from typing import Final

from megascale.core.rules.model import DEVICE, EXCEPTION, HARDWARE, LogRule, log_rule

_KERNEL = "Linux block layer and file system messages"
_PARALLEL = "Lustre, GPFS, Ceph, BeeGFS and NFS client messages"
_OBJECT = "S3, GCS, Azure and HDFS client errors"
_DOCS = r"https?://docs|\bdocumentation\b|\bmeans\b"

_LOCAL: Final[tuple[LogRule, ...]] = (
    log_rule(
        "disk-full",
        (
            r"No space left on device|ENOSPC|\[Errno 28\]|disk (?:is )?full\b"
            r"|^\S+(?:\s+[\d.,]+[KMGTP]?i?B?){3}\s+(?:100|9[89])%\s+/(?!snap|proc|sys|dev/shm)|file "
            r"?system (?:is )?full|not enough (?:disk|free) space|disk usage .*(?:100%"
            r"|9[89]%)|DSQuotaExceeded|no free space|Out of (?:disk )?space"
        ),
        ("storage", "alert"),
        words="space|enospc|errno 28|full|disk usage|100%|99%|98%",
        weight=DEVICE,
        min_level="debug",
        source="ByteRobust table 1 (disk space 5%)",
        unless=rf"\bdev/shm|inotify|{_DOCS}|address space|free space: [\d.]+ ?[GT]",
        example="OSError: [Errno 28] No space left on device: '/scratch/ckpt/iter_4200'",
    ),
    log_rule(
        "quota",
        (
            r"Disk quota exceeded|EDQUOT|\[Errno 122\]|quota (?:is |has been )?exceeded"
            r"|QuotaExceeded|over quota|block limit reached"
        ),
        ("storage", "fail_job"),
        words="quota|edquot|errno 122|block limit",
        weight=DEVICE,
        source=_PARALLEL,
        unless=r"cpu quota|api quota|rate",
        example="OSError: [Errno 122] Disk quota exceeded",
    ),
    log_rule(
        "disk-error",
        r"\bI/O error, dev \w+|Buffer I/O error|blk_update_request: (?:I/O|critical)"
        r"|critical (?:medium|target) error|Medium Error|Unrecovered read error"
        r"|nvme\w*:? .*(?:I/O \d+ .*(?:timeout|QID)|timeout, (?:aborting|reset|disable"
        r"|completion polled)|[Dd]isabling device after reset|controller is down|Device not ready"
        r"|Abort status|failed"
        r"|removing after probe|I/O (?:timeout|error)|critical warning|Identify.*failed)"
        r"|\bata\d+.*(?:failed command|exception Emask|hard resetting|link is slow|COMRESET)"
        r"|SMART .*(?:FAIL|fail)|\bmd\d+: .*(?:Disk failure|failed)|\bmd/raid\S*:.*(?:fail"
        r"|Disk failure)|device-mapper: .*fail|failed to (?:read|write) sector"
        r"|NVMe .*(?:media error|read-only mode|spare below)|\bno available path - failing I/O"
        r"|sd \d+:\d+:\d+:\d+: .*(?:FAILED Result|rejecting I/O|offline|Sense Key)|lost async page write"
        r"|(?:BTRFS|superblock).*I/O error|I/O error while (?:reading|writing) superblock",
        ("storage", "replace_node"),
        words=(
            "i/o|blk_update|medium|critical target|unrecovered|nvme|ata|smart|md|raid|device-mapper"
            "|sector|sd |async page"
        ),
        weight=HARDWARE,
        min_level="debug",
        source=_KERNEL,
        unless=(r"nvme-cli|percentage|\b0 media|Smart\w+ |smart_|critical_warning\s*[:=]\s*0"),
        example="nvme nvme3: I/O 214 QID 7 timeout, aborting",
    ),
    log_rule(
        "filesystem-error",
        (
            r"EXT4-fs error \(device|EXT4-fs \S+ ?\(device .*I/O error"
            r"|EXT4-fs \([^)]*\): .*(?:failed|aborted|I/O error|Remounting)"
            r"|XFS \(\S+\): .*(?:error|shut(?:ting)? down|Corruption|metadata I/O|log I/O)"
            r"|BTRFS (?:error|critical)|JBD2: .*(?:error|abort|Detected)"
            r"|Remounting filesystem read-only|Read-only file system|\[Errno 30\]|EROFS"
            r"|Pool '\S+' has encountered an uncorrectable I/O failure|Structure needs cleaning"
            r"|ZFS.*(?:FAULTED|SUSPENDED|DEGRADED)"
            r"|attempt to access beyond end of device|Beyond EOF|Aborting journal on device|Detected "
            r"aborted journal"
        ),
        ("storage", "replace_node"),
        words=(
            "ext4|xfs|btrfs|jbd2|journal|read-only|errno 30|erofs|structure needs|zfs|end of device"
            "|beyond eof|pool '"
        ),
        weight=HARDWARE,
        min_level="debug",
        source=_KERNEL,
        unless=r"errors=|mounted filesystem|bind-mount|fs\.readOnly|readOnlyRootFilesystem",
        example=(
            "EXT4-fs error (device nvme0n1p2): ext4_find_entry:1682: inode #131: comm python3:"
            " reading directory lblock 0"
        ),
    ),
    log_rule(
        "io-errno",
        r"\[Errno (?:5|121)\]|\bErrnoException: Cannot (?:read|write)"
        r"|\bInput/output error\b|Remote I/O error|\bEIO\b",
        ("storage", "restart"),
        words="errno 5]|errno 121|errnoexception|input/output|remote i/o|eio",
        weight=DEVICE,
        source="POSIX EIO",
        example="OSError: [Errno 5] Input/output error: '/mnt/data/shard-00017.bin'",
    ),
)

_MOUNTED: Final[tuple[LogRule, ...]] = (
    log_rule(
        "stale-handle",
        r"Stale (?:NFS )?file handle|ESTALE|\[Errno 116\]",
        ("storage", "restart"),
        words="stale|errno 116",
        weight=DEVICE,
        min_level="debug",
        source=_PARALLEL,
        example="OSError: [Errno 116] Stale file handle: '/nfs/ckpt/latest'",
    ),
    log_rule(
        "nfs",
        (
            r"(?<!mount\.)\bnfs\w*: .*(?:not responding|timed out|error|fail\w*|lost|expired|reclaim)"
            r"|\bRPC: .*(?:timed out|failed|unreachable)|\bNFS\b.*(?:timed? ?out|unavailable"
            r"|not responding|\bhung\b|server error|unreachable)|rpc\.statd.*(?:fail|not running)"
            r"|nfs4_\w+.*(?:fail|error)"
        ),
        ("storage", "alert"),
        words="nfs|rpc: |rpc.statd",
        weight=DEVICE,
        min_level="error",
        source=_PARALLEL,
        unless=r"grpc|mount\.nfs",
        example="nfs: server filer-2.cluster not responding, still trying",
    ),
    log_rule(
        "lustre-slow",
        (
            r"\bLustre: .*(?:slow reply"
            r"|Connection to \S+ .*was lost; in progress operations using this service"
            r" will wait|network error|timed out|not available)"
        ),
        ("storage", "alert"),
        words="lustre: ",
        weight=DEVICE,
        min_level="debug",
        source=_PARALLEL,
        unless=r"Skipped \d+ previous",
        example=(
            "Lustre: 2449:0:(client.c:2141:ptlrpc_expire_one_request()) @@@ Request sent has timed out for"
            " slow reply"
        ),
    ),
    log_rule(
        "lustre",
        (
            r"\bLustre(?:Error)?: .*(?:lost|evicted|fail\w*|timed? ?out|error|-(?:5|107|108|110|4"
            r"|30)\b|unhealthy|refus\w*|inactive|wait for recovery|LBUG|ASSERTION)"
            r"|\bLNet\w*: .*(?:Timed out|error|fail\w*|unreachable|No route|down)|\bLNetError"
            r"|\bo2iblnd|LustreError"
        ),
        ("storage", "restart"),
        words="lustre|lnet|o2iblnd",
        weight=DEVICE,
        min_level="debug",
        source=_PARALLEL,
        unless=r"Skipped \d+ previous",
        example=(
            "LustreError: 11-0: work-OST0007-osc-ffff9a: operation ost_read to node 10.9.0.7@o2ib"
            " failed: rc = -107"
        ),
    ),
    log_rule(
        "parallel-fs",
        (
            r"\b(?:mmfs\w*|GPFS|Spectrum Scale|Storage Scale)\b.*(?:lost|overdue|expired|unmount\w*"
            r"|fail\w*|error|expel\w*|panic"
            r"|stale|unavailable|deadlock|quorum|long waiters|down\b)|\b(?:libceph"
            r"|ceph)\b.*(?:socket closed|session lost|hung|evict\w*|blocklist\w*|blacklist\w*"
            r"|denied|reset|timed? ?out|down|HEALTH_ERR|slow (?:ops|requests)|wrong peer"
            r"|closed our session)|\bBeeGFS|\b(?:beegfs|juicefs|weka\w*|glusterfs|fuse|s3fs"
            r"|gcsfuse|alluxio|cpfs|pfs|daos|vast|wekafs)\b.*(?:not connected|disconnected|fail\w*"
            r"|error|timed? ?out|unavailable|lost|unreachable|died)"
            r"|is being expelled|lease renewal is overdue|^Disk failure\. Volume|Transport endpoint is "
            r"not connected|\[Errno 107\]"
            r"|cannot send after transport endpoint shutdown|\[Errno 108\]|Socket not connected"
        ),
        ("storage", "restart"),
        words=(
            "mmfs|gpfs|spectrum|storage scale|expelled|lease|disk failure|ceph|beegfs|juicefs|weka"
            "|gluster|fuse|s3fs|alluxio|cpfs|pfs|daos"
            "|vast|transport endpoint|errno 10|socket not connected"
        ),
        weight=DEVICE,
        min_level="debug",
        source=_PARALLEL,
        unless=r"refuse|ConnectionRefused|diffuse",
        example="OSError: [Errno 107] Transport endpoint is not connected: '/mnt/juicefs/ds'",
    ),
    log_rule(
        "mount-failed",
        (
            r"mount(?:\.\w+)?: .*(?:fail\w*|timed out|unknown filesystem|wrong fs type"
            r"|access denied|Connection|can't)|MountVolume\.\w+ failed|FailedMount\b"
            r"|FailedAttachVolume|Unable to (?:attach or )?mount volumes"
            r"|timed out waiting for the condition.*(?:volume|mount)|AttachVolume\.\w+ failed"
            r"|Multi-Attach error|failed to mount"
        ),
        ("storage", "restart"),
        words="mount|attach",
        weight=DEVICE,
        min_level="debug",
        source="ByteRobust table 1 (mount 2.1%); kubelet events",
        unless=r"FailedAttach: 0",
        example='MountVolume.SetUp failed for volume "ckpt" : rpc error: code = DeadlineExceeded',
    ),
)

_OBJECT_RULES: Final[tuple[LogRule, ...]] = (
    log_rule(
        "object-missing",
        (
            r"NoSuchBucket|NoSuchKey|The specified (?:bucket|key|container|blob) does not exist"
            r"|BucketNotFound|BlobNotFound|ContainerNotFound|InvalidBucketName|404 (?:GET|HEAD"
            r"|Not Found).*(?:storage\.googleapis|s3|bucket)|An error occurred \((?:404"
            r"|NoSuch\w+)\)|(?:bucket|blob|(?:s3|gcs) object) .*(?:does not exist|not found)"
            r"|PermanentRedirect"
            r"|AuthorizationHeaderMalformed|IllegalLocationConstraint"
        ),
        ("storage", "fail_job"),
        words=(
            "nosuch|does not exist|notfound|invalidbucket|404|not found|permanentredirect"
            "|authorizationheader|illegallocation"
        ),
        weight=DEVICE,
        source=_OBJECT,
        unless=r"\bdefaulting\b|huggingface|\.py\b",
        example=(
            "botocore.errorfactory.NoSuchBucket: An error occurred (NoSuchBucket) when calling"
            " the PutObject operation"
        ),
    ),
    log_rule(
        "object-denied",
        (
            r"AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken"
            r"|TokenRefreshRequired|NoCredentialsError|Unable to locate credentials"
            r"|PartialCredentialsError|CredentialRetrievalError|InvalidToken|RequestTimeTooSkewed"
            r"|AuthenticationFailed|DefaultCredentialsError|RefreshError|(?:403"
            r"|401) (?:Client Error|Forbidden|Unauthorized|POST|GET|PUT)"
            r"|An error occurred \((?:403|401|Forbidden)\)|AccessControlException"
            r"|Permission .* denied on resource|SASL.*fail|GSSException|Kerberos.*(?:fail|expired)"
            r"|Ticket expired|does not have storage\.\w+ access"
        ),
        ("storage", "fail_job"),
        words=(
            "accessdenied|accesskey|signature|token|credential|timetooskewed|authentication"
            "|refresherror|403|401|accesscontrol|permission|sasl|gss|kerberos|ticket|storage."
        ),
        weight=DEVICE,
        source=_OBJECT,
        unless=r"huggingface|wandb|gated repo|HfHub|hf\.co|vocab|special token|pad_token|eos_token",
        example="botocore.exceptions.NoCredentialsError: Unable to locate credentials",
    ),
    log_rule(
        "object-busy",
        (
            r"(?-i:\bSlowDown\b)|\bSlow Down\b|\bServiceUnavailable\b|RequestTimeout\b"
            r"|InternalError\b.*(?:operation|S3|request)|(?:50[0-4]|429) (?:Server Error|Service Unavailable"
            r"|Internal Server Error|Bad Gateway|Gateway Time-?out|Too Many Requests|POST|GET|PUT)"
            r"|An error occurred \((?:50\d|SlowDown|InternalError|ServiceUnavailable"
            r"|RequestTimeout|Throttling\w*)\)|TooManyRequests|Throttling(?:Exception|Error)"
            r"|EndpointConnectionError"
            r"|ReadTimeoutError|ConnectTimeoutError|ConnectionClosedError|ResponseStreamingError"
            r"|S3 (?:error|exception|request).*|\b(?:s3|gcs|gs|oss|cos|tos|azure|blob|minio"
            r"|aiobotocore|s3fs|gcsfs)\b[^;,]{0,120}?(?:timed out|\btime-?out\b"
            r"|fail\w*|unavailable|reset|error)"
            r"|HttpError.*(?:50\d|429)|GoogleAPICallError|\bRetryError|ServerBusy|OperationTimedOut"
            r"|FSTimeoutError"
            r"|[Cc]ould not connect to the endpoint|[Uu]nable to connect to endpoint|HTTP Error 50\d"
            r"|Slow Down"
        ),
        ("storage", "restart"),
        words=(
            "slowdown|unavailable|requesttimeout|internalerror|50|429|toomany|throttling|endpoint"
            "|timeouterror|closederror|streaming|s3|gcs|gs:|oss|cos|tos|azure|blob|minio"
            "|aiobotocore|httperror|googleapi|retryerror|serverbusy|timedout"
        ),
        weight=DEVICE,
        min_level="error",
        source="Acme (S3: 10 events); S3 and GCS error lists",
        unless=(
            r"huggingface|hf\.co|wandb|loss|cosine|\bHF\b|(?:AttributeError|KeyError|TypeError"
            r"|ValueError|ModuleNotFoundError|ImportError|NameError): "
        ),
        example=(
            "botocore.exceptions.ClientError: An error occurred (503) when calling the GetObject"
            " operation (reached max retries: 4): Slow Down"
        ),
    ),
    log_rule(
        "hdfs",
        (
            r"\b(?:hdfs|HDFS|Hdfs|DFSClient|DFSOutputStream|DataStreamer|NameNode|DataNode"
            r"|namenode|libhdfs\w*)\b.*(?:fail\w*|error|exception|timed? ?out|safe mode"
            r"|could not|cannot|missing block|bad datanode|standby|unavailable|refused)"
            r"|BlockMissingException|Could not obtain block|SafeModeException|StandbyException"
            r"|NotReplicatedYetException|could only be (?:written|replicated) to \d+"
            r"|All datanodes .* are bad|LeaseExpiredException|hdfs\w+: .*error"
        ),
        ("storage", "restart"),
        words=(
            "hdfs|dfsclient|dfsoutput|datastreamer|namenode|datanode|hadoop|blockmissing"
            "|obtain block|safemode|standby|notreplicated|replicated to|leaseexpired"
        ),
        weight=DEVICE,
        min_level="error",
        source="ByteRobust table 1 (HDFS 2%)",
        unless=r"File does not exist|FileNotFound",
        example=(
            "org.apache.hadoop.hdfs.BlockMissingException: Could not obtain block: BP-9"
            " file=/corpus/part-00031"
        ),
    ),
    log_rule(
        "checkpoint-damaged",
        (
            r"PytorchStreamReader failed|Error while deserializing header|SafetensorError"
            r"|invalid header or archive is corrupted|(?:checkpoint|ckpt|state[_ ]dict|\.pt"
            r"|\.safetensors|shard|snapshot)\S*\b.*(?:corrupt\w*|truncated|checksum (?:mismatch|fail|error)"
            r"|incomplete"
            r"|bad magic|hash mismatch|unexpected (?:EOF|end))|CheckpointException"
            r"|unexpected EOF, expected|storage has wrong (?:byte )?size"
            r"|checkpoint\w* .*(?:could not be (?:read|loaded|saved|written)|failed to (?:save"
            r"|load|write)|save failed|load failed)|failed to (?:save|write|load|persist"
            r"|upload) (?:\w+ )?checkpoint|CheckpointSaveError|CheckpointCorruptError"
            r"|inline_container\.cc|checkpoint (?:save|write) (?:failed|timed out)"
            r"|(?:UnpicklingError|EOFError|BadZipFile|DataLossError)\b.*(?:checkpoint|ckpt|\.pth?\b"
            r"|model_optim|mp_rank"
            r"|state_dict)"
        ),
        ("storage", "restart"),
        words=(
            "streamreader|deserializing|safetensor|archive|corrupt|truncated|checksum|incomplete"
            "|magic|mismatch|eof|checkpoint|wrong|inline_container|unexpected end|unpickling|badzip|dataloss"
        ),
        weight=EXCEPTION,
        source="PyTorch serialisation; safetensors",
        unless=r"dataset|jsonl|parquet|size mismatch for|No such file",
        example=(
            "RuntimeError: PytorchStreamReader failed reading zip archive: failed finding central directory"
        ),
    ),
)

RULES: Final[tuple[LogRule, ...]] = (*_LOCAL, *_MOUNTED, *_OBJECT_RULES)
