"""NVIDIA driver events: XID of GPUs, SXid of NVSwitches.

The action is the one for a single event. replace_node is set only where one event proves a defect;
`correlate` raises repeated events to replace_node. 43, 45, 63 and 92 alone are benign.
"""

from __future__ import annotations

from typing import Final

from megascale.core.rules.model import HARDWARE, Action, Category, LogRule, log_rule

_NVIDIA = "NVIDIA XID catalog"
_FLEETS = "NVIDIA XID catalog; fleet reports (Meta RSC, Fire-Flyer 2, Aegis)"

# The kernel's own line in all driver generations, then what tools make of it.
_KERNEL = r"\bXid \([^)]*\)\s*:\s*"
_TOOLS = (
    r"(?:XidCriticalError: Xid=|DCGM_FI_DEV_XID_ERRORS\{[^}]*\}\s+|\bXID (?:error "
    r"|event )?(?:detected|occurred)\s*[:=]\s*)"
)

# code: (class, action, meaning)
XID_CODES: Final[dict[int, tuple[Category, Action, str]]] = {
    8: ("gpu", "restart", "GPU stopped processing"),
    13: ("user_code", "restart", "Graphics SM Warp Exception on (GPC 1, TPC 4): Out Of Range Address"),
    31: (
        "user_code",
        "restart",
        "Ch 00000018, intr 10000000. MMU Fault: ENGINE GRAPHICS faulted @ 0x7f1c_8a000000",
    ),
    32: ("gpu", "restart", "Channel ID 00000022 intr 00008000 Invalid or corrupted push buffer stream"),
    38: ("gpu", "restart", "Driver firmware error"),
    43: ("benign", "none", "pid=3120, name=python3, Ch 0000001a"),
    44: ("gpu", "restart", "Graphics Engine fault during context switch"),
    45: ("benign", "none", "pid=3120, name=python3, Ch 00000011"),
    46: ("gpu", "restart", "GPU stopped processing"),
    48: ("gpu", "replace_node", "DBE (double bit error) ECC error on GPU"),
    61: ("gpu", "restart", "Internal micro-controller breakpoint"),
    62: ("gpu", "restart", "Internal micro-controller halt"),
    63: ("benign", "none", "Row Remapper: New row marked for remapping, reset gpu to activate."),
    64: ("gpu", "replace_node", "Row Remapper: remapping failure occurred"),
    68: ("gpu", "restart", "NVDEC0 Exception"),
    69: ("gpu", "restart", "Class Error: ChId 0011, Class 0000c7c0"),
    74: ("gpu", "restart", "NVLink: fatal error detected on link 3(0x10000, 0x0, 0x0, 0x0)"),
    79: ("gpu", "replace_node", "GPU has fallen off the bus."),
    92: ("benign", "none", "High single-bit ECC error rate"),
    94: ("gpu", "restart", "Contained: SM (0x1). RST: No, D-RST: No"),
    95: ("gpu", "replace_node", "Uncontained: FBHUB. RST: Yes, D-RST: No"),
    109: ("gpu", "restart", "Ch 0000000f, errorString CTX SWITCH TIMEOUT, Info 0x24c009"),
    110: ("gpu", "restart", "Security fault"),
    119: ("gpu", "restart", "Timeout after 6s of waiting for RPC response from GPU2 GSP!"),
    120: ("gpu", "restart", "GSP task exception: load access page fault"),
    121: ("gpu", "alert", "C2C link error"),
    122: ("gpu", "alert", "SPI RPC failure"),
    123: ("gpu", "alert", "PMU communication failure"),
    136: ("gpu", "restart", "NVLink link training failed"),
    137: ("gpu", "restart", "NVLink FLA privilege error"),
    140: ("gpu", "replace_node", "Unrecovered ECC error in SRAM"),
    143: ("gpu", "restart", "GPU initialization failure"),
    155: ("gpu", "alert", "NVLink SW defined error"),
    156: ("gpu", "alert", "Resource retirement event"),
    157: ("gpu", "alert", "Resource retirement failure"),
    158: ("gpu", "restart", "GPU fatal timeout"),
    171: ("gpu", "replace_node", "Uncorrectable DRAM error in addition to 48"),
    172: ("gpu", "replace_node", "Uncorrectable SRAM error in addition to 48"),
}
_NVLINK5: Final = "14[4-9]|150"


def _xid(code: str, identifier: str, meaning: tuple[Category, Action], text: str, rest: str = "") -> LogRule:
    return log_rule(
        identifier,
        rf"(?:{_KERNEL}|{_TOOLS})(?:{code})\b{rest}",
        meaning,
        words="xid",
        weight=HARDWARE,
        min_level="debug",
        source=_FLEETS,
        example=f"[81542.118] NVRM: Xid (PCI:0000:3b:00): {text}",
    )


# 154 says itself what to do; whatever needs an empty node means another node for the job.
_RECOVERY: Final[tuple[LogRule, ...]] = (
    _xid(
        "154",
        "xid-154-none",
        ("benign", "none"),
        "154, GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)",
        r".*\bto 0x\w+ \(None\)",
    ),
    _xid(
        "154",
        "xid-154-drain-p2p",
        ("gpu", "alert"),
        "154, GPU recovery action changed from 0x0 (None) to 0x3 (Drain P2P)",
        r".*\bto 0x\w+ \(Drain P2P\)",
    ),
    _xid(
        "154",
        "xid-154",
        ("gpu", "replace_node"),
        "154, GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)",
    ),
)

_NVLINK: Final[tuple[LogRule, ...]] = (
    _xid(
        _NVLINK5,
        "xid-nvlink5-nonfatal",
        ("gpu", "alert"),
        "144, SAW_MVB Nonfatal XC0 i0 Link 02 (0x00000001 0x00000008 0x0 0x0 0x0 0x0)",
        r".*\bNon-?fatal\b",
    ),
    _xid(
        _NVLINK5,
        "xid-nvlink5",
        ("gpu", "restart"),
        "149, NETIR_LINK_EVT Fatal XC0 i0 Link 07 (0x026001c6 0x0 0x0 0x0 0x0 0x0)",
    ),
)

_SWITCH: Final[tuple[LogRule, ...]] = (
    log_rule(
        "sxid-nonfatal",
        r"\bSXid \([^)]*\)\s*:\s*\d+,.*\bNon-?fatal\b|\bNVSwitch non-?fatal error\b",
        ("benign", "none"),
        words="sxid|nvswitch non",
        weight=HARDWARE,
        min_level="debug",
        source="NVIDIA Fabric Manager guide, SXid errors",
        example=(
            "nvidia-nvswitch2: SXid (PCI:0000:c4:00.0): 12028, Non-fatal, Link 28 egress"
            " non-posted PRIV error"
        ),
    ),
    log_rule(
        "sxid-fatal",
        r"\bSXid \([^)]*\)\s*:\s*\d+,.*\bFatal\b|(?<!non-)\bfatal error: NVSwitch\b.*\bSXid\b",
        ("gpu", "replace_node"),
        words="sxid",
        weight=HARDWARE,
        min_level="debug",
        source="NVIDIA Fabric Manager guide, SXid errors",
        example="nvidia-nvswitch0: SXid (PCI:0000:c1:00.0): 20034, Fatal, Link 30 LTSSM Fault Up",
    ),
    log_rule(
        "sxid-other",
        r"\bSXid \([^)]*\)\s*:\s*\d+",
        ("gpu", "alert"),
        words="sxid",
        weight=HARDWARE,
        min_level="debug",
        source="NVIDIA Fabric Manager guide, SXid errors",
        example="nvidia-nvswitch1: SXid (PCI:0000:84:00.0): 22013, Data {0x000001c0, 0x00bd5c8a}",
    ),
)

_LOST: Final = log_rule(
    "gpu-fallen-off-bus",
    r"\bfallen off the bus\b",
    ("gpu", "replace_node"),
    words="fallen off the bus",
    weight=HARDWARE,
    min_level="debug",
    unless=(
        r"^\s*[-*#>|]|\b(?:means|indicates|docs?|documentation|if (?:a|the) GPU has|when (?:a|the) GPU has"
        r"|https?://)\b"
    ),
    source=_NVIDIA,
    example="NVRM: GPU 0000:2b:00.0: GPU has fallen off the bus.",
)

RULES: Final[tuple[LogRule, ...]] = (
    *_RECOVERY,
    *_NVLINK,
    *(
        _xid(str(code), f"xid-{code}", (category, action), f"{code}, {text}")
        for code, (category, action, text) in XID_CODES.items()
    ),
    _xid(r"[1-9]\d*", "xid-other", ("gpu", "alert"), "7, unknown event"),
    *_SWITCH,
    _LOST,
)
