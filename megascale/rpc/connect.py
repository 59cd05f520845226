"""Reaching the driver of a job: its address, what it is trusted by, the caller's token."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from megascale.errors import UnreachableError
from megascale.rpc.megascale_pb2_grpc import DriverStub

METADATA_KEY: Final = "authorization"
CHANNEL_OPTIONS: Final = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_http_proxy", 0),
    # A call that meets a server which says goodbye is repeated by gRPC itself, at once, without end and in
    # memory that it keeps: 250 MB/s (seen with grpcio 1.85). Every caller here tries again, at its own pace.
    ("grpc.enable_retries", 0),
)
SERVER_OPTIONS: Final = (
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Agents ping every 10 s while a driver that has nothing to order sends nothing. By default a server takes
    # such pings for an attack and ends the connection.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
)


@dataclass(frozen=True, slots=True)
class DriverAddress:
    """What `driver.json` says: where the driver listens, its process and its term."""

    endpoint: str
    pid: int
    term: int


@dataclass(frozen=True, slots=True)
class Trust:
    """What makes a driver on another machine the right one.

    Attributes:
        ca_file: PEM certificates; read for every connection, as they are rotated.
        server_name: in the driver's certificate, whatever address it is reached at.
    """

    ca_file: Path
    server_name: str


def read_address(path: Path) -> DriverAddress | None:
    """The address the newest driver wrote, or None when there is none or it is half gone."""
    try:
        data = json.loads(path.read_text())
        return DriverAddress(str(data["endpoint"]), int(data["pid"]), int(data["term"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def read_token(path: Path) -> str:
    """The caller's token.

    Raises:
        UnreachableError: there is none, so nothing was ever started here.
    """
    try:
        return path.read_text().strip()
    except FileNotFoundError as error:
        raise UnreachableError(f"{path} does not exist: no driver was started for this run") from error


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """Call metadata that authenticates the caller."""
    return ((METADATA_KEY, f"Bearer {token}"),)


def channel_to(address: DriverAddress, trust: Trust | None = None) -> grpc.aio.Channel:
    """A channel to the driver, over TLS with `trust`; the caller closes it.

    Raises:
        UnreachableError: there are no certificates to trust yet.
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
