"""Connects to the driver of a job: reads its address and the caller's token, and opens a channel."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from megascale.errors import UnreachableError
from megascale.rpc.megascale_pb2_grpc import DriverStub

METADATA_KEY: Final = "authorization"
STATUS_BYTES: Final = 4 << 20
"""Most bytes of a status document."""
_TO_DRIVER_BYTES: Final = 2 << 20
_FROM_DRIVER_BYTES: Final = 4 * STATUS_BYTES
CHANNEL_OPTIONS: Final = (
    ("grpc.max_send_message_length", _TO_DRIVER_BYTES),
    ("grpc.max_receive_message_length", _FROM_DRIVER_BYTES),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_http_proxy", 0),
    # A call that receives GOAWAY from the server is retried by gRPC immediately and without limit, which
    # leaks memory at 250 MB/s (seen with grpcio 1.85). All callers have their own retries with backoff.
    ("grpc.enable_retries", 0),
)
SERVER_OPTIONS: Final = (
    ("grpc.max_receive_message_length", _TO_DRIVER_BYTES),
    ("grpc.max_send_message_length", _FROM_DRIVER_BYTES),
    ("grpc.max_metadata_size", 32 << 10),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Agents ping every 10 s, also while the driver sends no data. By default a server ends a connection with
    # so many pings.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
)


@dataclass(frozen=True, slots=True)
class DriverAddress:
    """The contents of `driver.json`: the driver's "host:port", process id and term."""

    endpoint: str
    pid: int
    term: int


@dataclass(frozen=True, slots=True)
class Trust:
    """How to verify the certificate of a driver on another machine.

    Attributes:
        ca_file: PEM file of CA certificates; read for every connection, because they are rotated.
        server_name: name expected in the driver's certificate, regardless of its address.
    """

    ca_file: Path
    server_name: str


def read_address(path: Path) -> DriverAddress | None:
    """Read the address that the newest driver wrote; None if the file is missing or cannot be parsed."""
    try:
        data = json.loads(path.read_text())
        return DriverAddress(str(data["endpoint"]), int(data["pid"]), int(data["term"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def read_token(path: Path) -> str:
    """Read the caller's token.

    Raises:
        UnreachableError: the file does not exist, so no driver was started for this run.
    """
    try:
        return path.read_text().strip()
    except FileNotFoundError as error:
        raise UnreachableError(f"{path} does not exist: no driver was started for this run") from error


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """Return the gRPC metadata that authenticates the caller."""
    return ((METADATA_KEY, f"Bearer {token}"),)


def channel_to(address: DriverAddress, trust: Trust | None = None) -> grpc.aio.Channel:
    """Open a channel to the driver, with TLS if `trust` is given; the caller closes it.

    Raises:
        UnreachableError: the file of CA certificates does not exist yet.
    """
    if trust is None:
        return grpc.aio.insecure_channel(address.endpoint, options=CHANNEL_OPTIONS)
    try:
        roots = trust.ca_file.read_bytes()
    except FileNotFoundError as error:
        raise UnreachableError(f"{trust.ca_file} does not exist: no driver can be trusted yet") from error
    options = (*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", trust.server_name))
    credentials = grpc.ssl_channel_credentials(roots)
    return grpc.aio.secure_channel(address.endpoint, credentials, options=options)


def stub_on(channel: grpc.aio.Channel) -> DriverStub:
    return DriverStub(channel)  # type: ignore[no-untyped-call]


def loopback_host() -> str:
    """Return the loopback address of this machine: 127.0.0.1, or ::1 where there is no IPv4.

    Raises:
        UnreachableError: neither can be listened on.
    """
    for host, family in (("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)):
        try:
            with socket.create_server((host, 0), family=family):
                return host
        except OSError as error:
            problem = error
    raise UnreachableError(f"cannot listen on 127.0.0.1 or ::1: {problem.strerror}") from problem
