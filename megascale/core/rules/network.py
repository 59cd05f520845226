"""NICs, InfiniBand and RoCE links, switches, names and sockets."""

from __future__ import annotations

from typing import Final

from megascale.core.rules.model import DEVICE, EXCEPTION, HARDWARE, PEER, LogRule, log_rule

_MLX = "Linux mlx5 driver; NVIDIA networking manuals"
_IB = "InfiniBand counters; Minder; Meta RSC (port counters)"
_DOCS = r"https?://docs|\bsee https?://|\bdocs?\b|\bmeans\b"

_NIC: Final[tuple[LogRule, ...]] = (
    log_rule(
        "nic-firmware",
        (
            r"mlx5\w*.*(?:health compromised|reached miss count|health_care|poll_health"
            r"|Fatal error|device's health|unrecoverable|ext_synd\w* 0x[0-9a-f]*[1-9a-f]|assert_var"
            r"|firmware (?:fatal|internal) error|FW (?:fatal|tracer.*assert)|INTERNAL_ERROR"
            r"|health poll failed)"
        ),
        ("network", "replace_node"),
        words="mlx5",
        weight=HARDWARE,
        min_level="debug",
        source=_MLX,
        unless=r"recover(?:ed|y (?:done|succe))|bad (?:param|resource|system state)\(|health ok",
        example=(
            "mlx5_core 0000:c1:00.0: poll_health:824:(pid 0): device's health compromised -"
            " reached miss count"
        ),
    ),
    log_rule(
        "nic-command",
        (
            r"mlx5\w*.*(?:cmd\w*.*(?:timeout|timed out|failed)|wait_func.*timeout"
            r"|Will cause a leak of a command resource|TX timeout|transmit queue.*timed out|CQ error on CQN)"
            r"|NETDEV WATCHDOG: .*transmit queue \d+ timed out|(?:ib|eth|ens|enp|rdma|bnxt|ice"
            r"|irdma|efa)\w*.*(?:Tx hang|adapter reset|firmware hang|admin queue.*(?:timeout|hang"
            r"|error))"
        ),
        ("network", "restart"),
        words="mlx5|netdev watchdog|tx hang|adapter reset|firmware hang|admin queue",
        weight=HARDWARE,
        min_level="debug",
        source=_MLX,
        unless=r"failed reg access|access[ _]reg\(|access reg|bad (?:param|resource|operation|system state)",
        example="NETDEV WATCHDOG: ens2f0 (mlx5_core): transmit queue 14 timed out 5120 ms",
    ),
    log_rule(
        "nic-cable",
        (
            r"Port module event.*(?:Cable (?:unplugged|error|is shorted)|High Temperature"
            r"|Bus stuck|unsupported|Long Range|Unknown identifier|status: error|EEPROM)|(?:cable"
            r"|transceiver|optic\w*|module \d+)\b.*\b(?:unplugged|removed|fault\w*|failed"
            r"|rx power (?:low|loss)|loss of signal)|\bLOS detected|insufficient power"
        ),
        ("network", "alert"),
        words="port module|cable|transceiver|optic|module|los |insufficient power",
        weight=HARDWARE,
        min_level="debug",
        source=_MLX,
        unless=(
            rf"{_DOCS}|plugged and enabled|No module named|\.(?:Failed|Error)|kernel module|python"
            rf"|ModuleNotFound"
        ),
        example=(
            "mlx5_core 0000:0c:00.1: Port module event[error]: module 1, Cable error, Bus stuck"
            " (I2C or data shorted)"
        ),
    ),
    log_rule(
        "link-down",
        (
            r"\b(?:link|carrier|port)\b[^,;|`]{0,40}?\b(?:is |becomes |went |state:? |status:? "
            r"|changed to |to )?(?:down|DOWN|lost|inactive|flap(?:ped|ping)?)\b"
            r"|\bNIC\b.{0,30}\bdown\b|state (?:changed )?(?:from ACTIVE )?to DOWN"
            r"|^\s*(?:phys )?state:\s+\d: (?:DOWN|Disabled|Polling)|phys_state: ?(?:\d: ?)?(?:Disabled"
            r"|Polling|LinkErrorRecovery)|\bno carrier\b"
            r"|IBV_EVENT_PORT_ERR|all slaves? (?:are )?down"
            r"|bonding: .*(?:making interface \S+ down|link status definitely down)"
            r"|switch \S+ (?:is )?(?:down|unreachable)|\b(?:(?-i:ToR)|leaf|spine)\b\S* [^,;]*\b(?:down"
            r"|unreachable)\b"
        ),
        ("network", "alert"),
        words="link|carrier|port|nic|state|phys_state|slave|bonding|switch|tor|leaf|spine",
        weight=HARDWARE,
        min_level="debug",
        source=f"{_MLX}; links flap for 2-10 s and come back (MegaScale 6.3)",
        unless=(
            rf"{_DOCS}|nvlink|SATA|Slot\(|pciehp|download|shut(?:ting)? ?down|shutdown|slow(?:ed"
            rf"|ing)? ?down|link_downed\b|support|report\b|import|transport layer|ACPI|virbr"
            rf"|docker\d|veth|cali\w{{6}}|\blo\b"
        ),
        example="mlx5_core 0000:9a:00.0 ens7f0np0: Link down",
    ),
    log_rule(
        "link-counters",
        (
            r"\b(?:link_downed|symbol_errors?|port_rcv_errors|link_error_recovery"
            r"|local_link_integrity_errors|port_rcv_remote_physical_errors"
            r"|excessive_buffer_overrun_errors|rx_crc_errors_phy|rx_symbol_err_phy"
            r"|link_down_events_phy|local_ack_timeout_err|packet_seq_err|rnr_nak_retry_err"
            r"|out_of_sequence|roce_adp_retrans_to|rx_discards_phy|rx_prio\d_pause)\b\"?\s*(?:[=:]"
            r"|increased by|rose by|delta)\s*\+?[1-9]\d*"
        ),
        ("network", "alert"),
        words="_err|link_downed|_phy|link_error|_errors|out_of_sequence|roce_adp|rx_prio",
        weight=DEVICE,
        source=_IB,
        example="ibcheck mlx5_3 port 1: symbol_error=4123 link_downed=3",
    ),
    log_rule(
        "ib-event",
        (
            r"ibv_\w+(?:\(\))? (?:call )?failed|ib_query_port failed|RDMA (?:device|NIC).*(?:lost"
            r"|removed|missing|not found)|\bIBV_WC_(?!SUCCESS)\w+|IB (?:port|link) error"
            r"|failed to (?:modify|create) QP|ibv_reg_mr|Subnet manager.*(?:lost|unreachable"
            r"|not found)|opensm.*(?:err|fail)"
        ),
        ("network", "restart"),
        words="ibv_|ib_query|rdma|ib port|ib link|qp|subnet manager|opensm",
        weight=DEVICE,
        source=_IB,
        unless=r"NCCL",
        example="ibv_modify_qp failed with 110 Connection timed out",
    ),
)

_NAMES: Final[tuple[LogRule, ...]] = (
    log_rule(
        "dns",
        (
            r"Temporary failure in name resolution|Name or service not known|nodename nor servname"
            r"|getaddrinfo (?:failed|ENOTFOUND|EAI_AGAIN)|gaierror|NameResolutionError"
            r"|could not resolve host|Could not resolve|no such host|server misbehaving"
            r"|UnknownHostException|SERVFAIL|NXDOMAIN|DNS (?:lookup|resolution|query).*(?:fail"
            r"|timed? ?out)|No address associated with hostname|failed to resolve"
        ),
        ("network", "restart"),
        words=(
            "resol|name or service|nodename|getaddrinfo|gaierror|such host|misbehaving"
            "|unknownhost|servfail|nxdomain|dns|no address associated"
        ),
        weight=EXCEPTION,
        source="resolver errors (RFC 3493 EAI codes)",
        unless=r"dependency|conflict|resolve symbol",
        example="socket.gaierror: [Errno -3] Temporary failure in name resolution",
    ),
    log_rule(
        "unreachable",
        (
            r"No route to host|Network is unreachable|Destination Host Unreachable|Host is down"
            r"|EHOSTUNREACH|ENETUNREACH|NoRouteToHostException|\[Errno 1(?:13|01|12)\]"
        ),
        ("network", "restart"),
        words="route to host|unreachable|host is down|ehostunreach|enetunreach|noroute|errno 1",
        weight=EXCEPTION,
        source="socket errors",
        example="ConnectionError: [Errno 113] No route to host",
    ),
    log_rule(
        "connection-lost",
        (
            r"Connection (?:reset|refused|timed out|closed|aborted|lost)\b|ConnectionResetError"
            r"|ConnectionRefusedError|ConnectionAbortedError|Broken pipe|BrokenPipeError"
            r"|ECONNRESET|ECONNREFUSED|ETIMEDOUT|\[Errno (?:32|104|110|111)\]|Read timed out"
            r"|ReadTimeout\b|ConnectTimeout\b|ConnectionError\b|Max retries exceeded"
            r"|RemoteDisconnected|IncompleteRead|ChunkedEncodingError|SSLError|SSL: \w+"
            r"|TLS handshake (?:timeout|fail)|rpc error: code = (?:Unavailable|DeadlineExceeded)"
            r"|StatusCode\.(?:UNAVAILABLE|DEADLINE_EXCEEDED)|failed to connect to all addresses"
            r"|socket hang up|Socket Timeout|i/o timeout|Transport endpoint|ServerDisconnected\w*"
            r"|HTTPError: (?:HTTP Error )?(?:429|5\d\d)\b|\bTransportError\b|ClientConnector\w*Error"
            r"|LocalEntryNotFoundError|upstream connect error"
        ),
        ("network", "restart"),
        words=(
            "connection|broken pipe|brokenpipe|econn|etimedout|errno|timed out|timeout"
            "|max retries|disconnected|incompleteread|chunkedencoding|ssl|tls|rpc error"
            "|statuscode|failed to connect|socket|transport endpoint|clientconnector"
            "|localentrynotfound|upstream|httperror|transporterror"
        ),
        weight=PEER,
        min_level="error",
        source="socket, HTTP and gRPC client errors; Unicron severity 3",
        unless=rf"{_DOCS}|certificate|timeout ?[=:] ?\d+|unauthori[sz]ed",
        example="ConnectionResetError: [Errno 104] Connection reset by peer",
    ),
)

RULES: Final[tuple[LogRule, ...]] = (*_NIC, *_NAMES)
