"""`kubectl megascale`: status, incidents, why, logs, evict, release and check for jobs on a cluster."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from megascale.errors import MegascaleError
from megascale.observe.text import one_line, shown_text

_NOT_PASSED: Final = ("convicted", "unknown", "skipped")

app = typer.Typer(
    name="kubectl megascale",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Show training jobs on a cluster, explain their decisions, and send them commands.",
    epilog="Start here: kubectl megascale status my-job -n research",
)
Namespace = Annotated[str, typer.Option("--namespace", "-n", help="Namespace; default: the context's.")]
Context = Annotated[str, typer.Option("--context", help="Context of the kubeconfig.")]
Kubeconfig = Annotated[
    Path | None, typer.Option("--kubeconfig", help="Path of a kubeconfig; default: kubectl's.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Job = Annotated[str, typer.Argument(metavar="[JOB]", help="A TrainingJob; default: the only one.")]
OfJob = Annotated[str, typer.Option("--job", help="A TrainingJob; default: the only one.")]
Node = Annotated[str, typer.Argument(metavar="NODE", help="Name of a Kubernetes node.")]


@app.command("status", epilog="Example: kubectl megascale status quickstart")
def status(
    job: Job = "",
    namespace: Namespace = "",
    context: Context = "",
    kubeconfig: Kubeconfig = None,
    as_json: Json = False,
) -> None:
    """Show progress, slots and the last incidents of a job."""
    from megascale_operator.plugin.access import Target, run_query
    from megascale_operator.plugin.job_view import document, load_job_view
    from megascale_operator.plugin.show import status_lines

    found = run_query(Target(kubeconfig, context, namespace), lambda access: load_job_view(access, job))
    _report(document(found), status_lines(found), as_json=as_json)


@app.command("incidents", epilog="Example: kubectl megascale incidents quickstart --json")
def incidents(
    job: Job = "",
    namespace: Namespace = "",
    context: Context = "",
    kubeconfig: Kubeconfig = None,
    as_json: Json = False,
) -> None:
    """Show the last 20 incidents of a job with their milestones."""
    from megascale.driver.api import incident_document
    from megascale_operator.plugin.access import Target, run_query
    from megascale_operator.plugin.job_view import load_job_view
    from megascale_operator.plugin.show import incident_lines

    found = run_query(Target(kubeconfig, context, namespace), lambda access: load_job_view(access, job))
    documents = [incident_document(incident) for incident in found.incidents()]
    _report(documents, incident_lines(documents), as_json=as_json)


@app.command("why", epilog="Example: kubectl megascale why quickstart")
def why(
    job: Job = "",
    namespace: Namespace = "",
    context: Context = "",
    kubeconfig: Kubeconfig = None,
    as_json: Json = False,
) -> None:
    """Explain the last decision: its evidence, action and reason, and what the job is waiting for."""
    from megascale_operator.plugin.access import Target, run_query
    from megascale_operator.plugin.job_view import load_job_view
    from megascale_operator.plugin.job_view import why as explain

    found = run_query(Target(kubeconfig, context, namespace), lambda access: load_job_view(access, job))
    lines = explain(found)
    _report({"job": found.name, "explanation": lines}, lines, as_json=as_json)


@app.command("logs", epilog="Example: kubectl megascale logs quickstart --lines 100")
def logs(
    job: Job = "",
    lines: Annotated[int, typer.Option("--lines", min=1, max=10_000, help="Lines of the pod's log.")] = 200,
    namespace: Namespace = "",
    context: Context = "",
    kubeconfig: Kubeconfig = None,
    as_json: Json = False,
) -> None:
    """Show the last log lines of the rank that failed first in the last incident."""
    from megascale_operator.plugin.access import Target, run_query
    from megascale_operator.plugin.failing import first_failing

    found = run_query(
        Target(kubeconfig, context, namespace), lambda access: first_failing(access, job, lines)
    )
    _report(found.document(), found.lines(), as_json=as_json)


@app.command("evict", epilog='Example: kubectl megascale evict worker-7 --job quickstart --reason "fan"')
def evict(
    node: Node,
    reason: Annotated[str, typer.Option("--reason", help="Reason, stored in the incident.")],
    job: OfJob = "",
    namespace: Namespace = "",
    context: Context = "",
    kubeconfig: Kubeconfig = None,
    as_json: Json = False,
) -> None:
    """Save, and continue without the node. The job does not use it again until it is released."""
    _send("evict", node, reason, job, (kubeconfig, context, namespace), as_json=as_json)


@app.command("release", epilog="Example: kubectl megascale release worker-7 --job quickstart")
def release(
    node: Node,
    reason: Annotated[str, typer.Option("--reason", help="Reason, stored in the event log.")] = "",
    job: OfJob = "",
    namespace: Namespace = "",
    context: Context = "",
    kubeconfig: Kubeconfig = None,
    as_json: Json = False,
) -> None:
    """Let the job use an excluded node again. To end a node's quarantine, uncordon the node instead."""
    _send("release", node, reason, job, (kubeconfig, context, namespace), as_json=as_json)


@app.command("check", epilog="Example: kubectl megascale check worker-7 worker-8")
def check(
    nodes: Annotated[list[str], typer.Argument(metavar="NODE...", help="Nodes to check.")],
    timeout: Annotated[int, typer.Option("--timeout", min=10, help="Seconds to wait for the result.")] = 900,
    context: Context = "",
    kubeconfig: Kubeconfig = None,
    as_json: Json = False,
) -> None:
    """Check compute, memory and links of nodes. The exit code is 1 if a node did not pass."""
    from megascale_operator.plugin.access import Target, run_query
    from megascale_operator.plugin.commands import check as run_check
    from megascale_operator.plugin.show import check_lines

    found = run_query(
        Target(kubeconfig, context, ""), lambda access: run_check(access, nodes, float(timeout))
    )
    _report(found, check_lines(found), as_json=as_json)
    if any(found.get(key) for key in _NOT_PASSED):
        raise typer.Exit(1)


def _send(
    command: str,
    node: str,
    reason: str,
    job: str,
    target: tuple[Path | None, str, str],
    *,
    as_json: bool,
) -> None:
    from megascale_operator.plugin.access import Target, run_query
    from megascale_operator.plugin.commands import send_command

    message = run_query(Target(*target), lambda access: send_command(access, job, command, node, reason))
    _report(
        {"node": node, "command": command, "message": message},
        [f"{command} {node}: {message}"],
        as_json=as_json,
    )


def _report(document: Any, lines: list[str], *, as_json: bool) -> None:  # noqa: ANN401 - JSON values
    if as_json:
        sys.stdout.write(json.dumps(document) + "\n")
    else:
        sys.stdout.writelines(f"{one_line(line)}\n" for line in lines)


def main() -> None:
    """Run the command line. Errors go to stderr; exit codes are those of `megascale.errors`."""
    try:
        app()
    except MegascaleError as error:
        sys.stderr.write(f"kubectl megascale: {shown_text(str(error))}\n")
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        sys.stderr.write(f"kubectl megascale: no module {error.name}: pip install 'megascale[kubernetes]'\n")
        sys.exit(2)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
