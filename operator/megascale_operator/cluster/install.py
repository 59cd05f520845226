"""Installation and upgrade of the operator."""

from __future__ import annotations

from collections.abc import Callable

from megascale_operator.cluster.kubectl import Kubectl
from megascale_operator.cluster.manifests import CRDS, NAMESPACE, OPERATOR, Manifests

Report = Callable[[str], None]


def install(kubectl: Kubectl, manifests: Manifests, rendered: str, wait_s: int, report: Report) -> None:
    """Apply the CRDs, wait until the API server serves them, then apply the operator.

    Args:
        rendered: the operator's objects as YAML.
        wait_s: seconds to wait for its pods to be available; 0 = do not wait.
        report: called with each step, for display.

    Raises:
        MegascaleError: a kubectl command failed, or the pods are not available in time.
    """
    apply = ("apply", "--server-side", "--force-conflicts", "--field-manager=megascale-install")
    report("applying the CRDs")
    kubectl.run(*apply, f"--filename={manifests.crds}")
    names = [f"crd/{name}" for name in CRDS]
    kubectl.run("wait", "--for=condition=Established", *names, "--timeout=60s")
    report(f"applying the operator in namespace {NAMESPACE}")
    kubectl.run(*apply, "--filename=-", stdin=rendered)
    if wait_s:
        report(f"waiting up to {wait_s} s for its pods")
        deployment = (f"deployment/{OPERATOR}", f"--namespace={NAMESPACE}")
        kubectl.run("rollout", "status", *deployment, f"--timeout={wait_s}s", timeout_s=wait_s + 30.0)
