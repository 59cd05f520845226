"""Address and credentials of the API server, from a kubeconfig or this pod's ServiceAccount."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from kubernetes.aio import config as kubernetes_config
from kubernetes.aio.client import Configuration
from kubernetes.aio.config.kube_config import KubeConfigLoader

from megascale.errors import InputError

REFRESH_S: Final = 30.0
"""Tokens are reloaded after this time; the kubelet rotates them well before they expire."""
_CONNECTIONS: Final = 64


async def load_configuration(kubeconfig: Path | None) -> Configuration:
    """Load the client configuration from `kubeconfig`, or with None from this pod's ServiceAccount.

    Raises:
        InputError: the kubeconfig or the ServiceAccount cannot be read.
    """
    configuration = Configuration(connection_pool_maxsize=_CONNECTIONS)
    # Proxy settings and .netrc passwords do not apply to the API server, and reading them slows each request.
    configuration.client_session_kwargs = {"trust_env": False}
    try:
        if kubeconfig is None:
            kubernetes_config.load_incluster_config(configuration)  # type: ignore[no-untyped-call]
            return configuration
        loader = await kubernetes_config.load_kube_config(  # type: ignore[no-untyped-call]
            str(kubeconfig), client_configuration=configuration, persist_config=False
        )
    except (kubernetes_config.ConfigException, OSError, KeyError, TypeError) as error:
        source = kubeconfig or "this pod's ServiceAccount"
        hint = (
            "give --kubeconfig FILE outside of a cluster" if kubeconfig is None else "expected a kubeconfig"
        )
        raise InputError(f"{source}: {error} ({hint})") from error
    configuration.refresh_api_key_hook = _refresh_hook(REFRESH_S, loader)  # type: ignore[assignment]
    return configuration


def own_namespace(default: str) -> str:
    """Return the namespace of this pod, or `default` outside a cluster."""
    path = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
    return path.read_text().strip() if path.exists() else default


def in_cluster() -> bool:
    """Return whether this process runs in a pod."""
    return "KUBERNETES_SERVICE_HOST" in os.environ


def _refresh_hook(period_s: float, loader: KubeConfigLoader) -> Callable[[Configuration], Awaitable[None]]:
    """Return a hook that reloads token files and credential plug-ins every `period_s` seconds."""
    due = time.monotonic() + period_s

    async def refresh(configuration: Configuration) -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + period_s
            await loader.load_and_set(configuration)  # type: ignore[no-untyped-call]

    return refresh
