"""Access to the cluster and namespace of a kubeconfig context, selected as kubectl does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from kubernetes.aio import client as kubernetes_client
from kubernetes.aio import config as kubernetes_config
from kubernetes.aio.client import Configuration

from megascale.errors import InputError
from megascale_operator.kube.client import RestApi
from megascale_operator.kube.errors import ApiError, NotFoundError
from megascale_operator.kube.resources import TRAINING_JOBS, Obj

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Target:
    """The command line flags; "" and None select the kubeconfig's defaults."""

    kubeconfig: Path | None = None
    context: str = ""
    namespace: str = ""


class Access:
    """Access to one namespace of a cluster."""

    def __init__(self, api: RestApi, configuration: Configuration, namespace: str) -> None:
        self.api, self.namespace = api, namespace
        self._configuration = configuration

    async def job(self, name: str) -> Obj:
        """Return the TrainingJob of that name; with "" the only one in the namespace.

        Raises:
            InputError: there is no such job, or without a name not exactly one.
        """
        if name:
            try:
                return await self.api.get(TRAINING_JOBS, name, self.namespace)
            except NotFoundError as error:
                raise InputError(f"no TrainingJob {name!r} in namespace {self.namespace}") from error
        page = await self.api.list_page(TRAINING_JOBS, self.namespace)
        if len(page.items) != 1:
            names = ", ".join(sorted(item["metadata"]["name"] for item in page.items)) or "none"
            raise InputError(f"no job named; TrainingJobs in namespace {self.namespace}: {names}")
        return page.items[0]

    async def pod_log(self, pod: str, lines: int) -> str:
        """Return the last `lines` lines of a pod's log.

        Raises:
            ApiError: the API server cannot return the log.
        """
        async with kubernetes_client.ApiClient(self._configuration) as raw:
            core = kubernetes_client.CoreV1Api(raw)
            try:
                text: str = await core.read_namespaced_pod_log(pod, self.namespace, tail_lines=lines)
            except kubernetes_client.ApiException as error:
                raise ApiError(f"log of pod {pod}: {error.reason}", int(error.status or 0)) from error
        return text


def run_query(target: Target, query: Callable[[Access], Awaitable[T]]) -> T:
    """Connect to the cluster, run `query` and return its result."""

    async def run() -> T:
        configuration, namespace = await _configuration(target)
        async with RestApi(configuration) as api:
            return await query(Access(api, configuration, target.namespace or namespace))

    return asyncio.run(run())


async def _configuration(target: Target) -> tuple[Configuration, str]:
    """Return the client configuration and the context's namespace.

    Raises:
        InputError: there is no kubeconfig or no such context.
    """
    configuration = Configuration()
    file = str(target.kubeconfig) if target.kubeconfig else None
    try:
        await kubernetes_config.load_kube_config(  # type: ignore[no-untyped-call]
            file, context=target.context or None, client_configuration=configuration, persist_config=False
        )
        contexts, active = kubernetes_config.list_kube_config_contexts(file)  # type: ignore[no-untyped-call]
    except (kubernetes_config.ConfigException, OSError, KeyError, TypeError) as error:
        raise InputError(f"{file or 'kubeconfig'}: {error} (give --kubeconfig or --context)") from error
    chosen: dict[str, Any] = next((c for c in contexts if c["name"] == target.context), active)
    return configuration, str(chosen["context"].get("namespace") or "default")
