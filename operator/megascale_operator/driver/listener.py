"""Publishes the driver's address and certificate request, and authenticates agents (docs/kubernetes.md)."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from typing import Final

import grpc

from megascale.driver.api import bind
from megascale.errors import FencedError
from megascale_operator.driver.certificate import ServerKey
from megascale_operator.driver.config_map import update
from megascale_operator.driver.slots import Slots
from megascale_operator.driver.tokens import Tokens
from megascale_operator.kube.api import KubeApi
from megascale_operator.reconcile import names

log = logging.getLogger(__name__)

_ADDRESS: Final = "driver.json"
_REQUEST: Final = "driver.csr"
_REPEAT_S: Final = 5.0


class ClusterListener:
    """Implements `Listener` with TLS, a certificate signed by the operator, and slot pods' tokens.

    Args:
        pod: name of the driver's pod.
        host: IP address to listen on.
    """

    def __init__(
        self, api: KubeApi, namespace: str, job: str, *, pod: str, host: str, slots: Slots, tokens: Tokens
    ) -> None:
        self._api, self._namespace, self._job = api, namespace, job
        self._pod, self._host, self._slots, self._tokens = pod, host, slots, tokens
        self._key = ServerKey(names.server_name(job, namespace))
        self._served = ""

    async def open(self, server: grpc.aio.Server) -> str:
        certificate = await self._certificate()
        credentials = grpc.dynamic_ssl_server_credentials(self._configuration(certificate), self._renewed)
        return bind(server, self._host, credentials)

    async def _certificate(self) -> str:
        """Publish the signing request and wait for the certificate.

        The request is published again every 5 seconds, in case an earlier driver overwrites it.
        """
        while not self._key.is_certified_by(self._slots.certificate):
            await self._update({_REQUEST: self._key.request_pem})
            try:
                async with asyncio.timeout(_REPEAT_S):
                    await self._slots.changed()
            except TimeoutError:
                log.info("waiting for the operator to sign this driver's certificate")
        return self._slots.certificate

    def _configuration(self, certificate: str) -> grpc.ServerCertificateConfiguration:
        self._served = certificate
        return grpc.ssl_server_certificate_configuration(
            [(self._key.private_pem, certificate.encode())], None
        )

    def _renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the certificate if it was renewed; gRPC calls this before each handshake, in a thread."""
        newest = self._slots.certificate
        if newest == self._served or not self._key.is_certified_by(newest):
            return None
        return self._configuration(newest)

    async def announce(self, endpoint: str, term: int) -> None:
        address = {"endpoint": endpoint, "pid": os.getpid(), "term": term, "pod": self._pod}
        await self._update({_ADDRESS: json.dumps(address), _REQUEST: self._key.request_pem}, term)

    async def _update(self, wanted: dict[str, str], term: int | None = None) -> None:
        def change(data: dict[str, str]) -> dict[str, str]:
            known = _term_in(data.get(_ADDRESS, ""))
            if term is not None and known > term:
                raise FencedError(f"a driver of term {known} took over from {term}")
            return {**data, **wanted}

        await update(self._api, names.driver_map(self._job), self._namespace, change)

    async def admit(self, token: str, node: str) -> None:
        await self._tokens.admit(token, node)


def _term_in(address: str) -> int:
    try:
        return int(json.loads(address)["term"])
    except (ValueError, KeyError, TypeError):
        return 0
