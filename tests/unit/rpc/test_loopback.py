"""Which address a local run listens on: IPv4's where there is one, else IPv6's."""

from __future__ import annotations

import contextlib
import socket

import pytest

from megascale.errors import UnreachableError
from megascale.rpc.connect import loopback_host


def on_a_machine_with(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    def create(address: tuple[str, int], *, family: int) -> contextlib.AbstractContextManager[None]:
        assert family == (socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
        if address[0] not in hosts:
            raise OSError(99, "Cannot assign requested address")
        return contextlib.nullcontext()

    monkeypatch.setattr(socket, "create_server", create)


def test_ipv4_is_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_machine_with(monkeypatch, "127.0.0.1", "::1")
    assert loopback_host() == "127.0.0.1"


def test_a_machine_without_ipv4_uses_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_machine_with(monkeypatch, "::1")
    assert loopback_host() == "::1"


def test_a_machine_without_loopback_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_machine_with(monkeypatch)
    with pytest.raises(UnreachableError, match=r"cannot listen on 127\.0\.0\.1 or ::1: Cannot assign"):
        loopback_host()
