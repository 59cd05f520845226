"""`megascale cluster install | uninstall | doctor`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from megascale_operator.cluster.kubectl import Kubectl
    from megascale_operator.cluster.manifests import Manifests

app = typer.Typer(
    no_args_is_help=True, help="Install, check and uninstall the operator on a Kubernetes cluster."
)

Kubeconfig = Annotated[
    Path | None,
    typer.Option("--kubeconfig", exists=True, dir_okay=False, help="Default: kubectl's own choice."),
]
Context = Annotated[str | None, typer.Option("--context", help="Context of the kubeconfig.")]
Source = Annotated[
    Path | None,
    typer.Option("--source", help="Checkout with deploy/ and operator/crds; default: this program's own."),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def _report(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _open(kubeconfig: Path | None, context: str | None, source: Path | None) -> tuple[Kubectl, Manifests]:
    from megascale_operator.cluster.kubectl import Kubectl
    from megascale_operator.cluster.manifests import Manifests

    return Kubectl(kubeconfig, context), Manifests.find(source)


@app.command(
    epilog="Examples: megascale cluster install --image registry.example.com/megascale:0.1.0 | "
    "megascale cluster install --overlay monitoring --mode Enforce | megascale cluster install --print"
)
def install(
    overlay: Annotated[str, typer.Option("--overlay", help="dev, production or monitoring.")] = "production",
    mode: Annotated[
        Literal["Observe", "Annotate", "Enforce"],
        typer.Option(
            "--mode",
            help="Strongest action on unhealthy nodes: none, an annotation, or cordon and taint.",
        ),
    ] = "Observe",
    image: Annotated[
        str | None, typer.Option("--image", help="Image of the operator, and of jobs that set no other.")
    ] = None,
    checkpoint_root: Annotated[
        str,
        typer.Option(
            "--checkpoint-root",
            help="Checkpoint storage of jobs without checkpoint.uri: a directory that exists on every "
            "node, or claim:NAME, a PersistentVolumeClaim in the job's namespace.",
        ),
    ] = "",
    detection_defaults: Annotated[
        Path | None,
        typer.Option(
            "--detection-defaults",
            metavar="FILE",
            help="YAML file with defaults of fields that a job's spec.detection does not set.",
        ),
    ] = None,
    wait: Annotated[
        int, typer.Option("--wait", min=0, help="Seconds to wait for its pods; 0 = no wait.")
    ] = 180,
    only_print: Annotated[
        bool, typer.Option("--print", help="Print what would be applied; change nothing.")
    ] = False,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    source: Source = None,
    as_json: JsonFlag = False,
) -> None:
    """Apply the CRDs and the operator. Run it again to upgrade; jobs continue to run."""
    from megascale_operator.cluster.install import install as apply
    from megascale_operator.reconcile.storage import CheckpointRoot

    kubectl, manifests = _open(kubeconfig, context, source)
    CheckpointRoot.parse(checkpoint_root)
    env = {"CHECKPOINT_ROOT": checkpoint_root, "DETECTION_DEFAULTS": _detection(detection_defaults)}
    rendered = manifests.rendered(kubectl, overlay, mode, image, env)
    if only_print:
        sys.stdout.write(rendered)
        return
    apply(kubectl, manifests, rendered, wait, _report)
    if as_json:
        typer.echo(json.dumps({"installed": True, "overlay": overlay, "mode": mode}))
    else:
        typer.echo("installed; next: kubectl apply -f examples/quickstart.yaml")


def _detection(file: Path | None) -> str:
    """Validate the file; return its content as JSON for the operator, "" without a file.

    Raises:
        InputError: the file cannot be read.
        ManifestError: a field is unknown or its value is not allowed.
    """
    from megascale.errors import InputError
    from megascale_operator.reconcile.defaults import DetectionDefaults

    if file is None:
        return ""
    try:
        defaults = DetectionDefaults.parse(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--detection-defaults {file}: cannot be read: {error}") from error
    return defaults.text() if defaults else ""


@app.command(
    epilog="Examples: megascale cluster uninstall | megascale cluster uninstall --yes --drain-seconds 600"
)
def uninstall(
    yes: Annotated[bool, typer.Option("--yes", help="Also when there are jobs, which are deleted.")] = False,
    drain_seconds: Annotated[
        int, typer.Option("--drain-seconds", min=0, help="Seconds that jobs may take to save.")
    ] = 300,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    source: Source = None,
    as_json: JsonFlag = False,
) -> None:
    """Save and delete the jobs, then delete the CRDs and the operator. Checkpoints are kept."""
    from megascale.errors import InputError
    from megascale_operator.cluster.uninstall import jobs, quarantined
    from megascale_operator.cluster.uninstall import uninstall as remove

    kubectl, manifests = _open(kubeconfig, context, source)
    names = [f"{job['metadata']['namespace']}/{job['metadata']['name']}" for job in jobs(kubectl)]
    if names and not yes:
        shown = f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        raise InputError(f"jobs that would be saved and deleted: {shown}; add --yes to delete them")
    nodes = quarantined(kubectl)
    remove(kubectl, manifests, drain_seconds, _report)
    if as_json:
        typer.echo(json.dumps({"uninstalled": True, "jobsDeleted": names, "quarantinedNodes": nodes}))
        return
    typer.echo(f"uninstalled; jobs deleted: {len(names)}")
    for node in nodes:
        typer.echo(f"still in quarantine: {node} (kubectl uncordon {node} && "
                   f"kubectl taint node {node} megascale.io/quarantined-)")  # fmt: skip


@app.command(epilog="Example: megascale cluster doctor --json")
def doctor(
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    source: Source = None,
    as_json: JsonFlag = False,
) -> None:
    """Check API server, CRDs, operator, leader, permissions, jobs and nodes. Nothing is changed.

    The exit code is 1 if a check fails.
    """
    from megascale.cli.api import report
    from megascale_operator.cluster.doctor import examine, utc_now

    kubectl, manifests = _open(kubeconfig, context, source)
    report(examine(kubectl, manifests, utc_now()), as_json=as_json)
