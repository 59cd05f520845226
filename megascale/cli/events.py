"""`megascale events`: verify the decisions of a recorded run, and explain its incidents in sentences."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from megascale.cli.output import echo
from megascale.cli.words import plural
from megascale.core.contract.vocabulary import Action, Milestone, Source
from megascale.errors import InputError
from megascale.observe.rundir import RunDir

if TYPE_CHECKING:
    from megascale.cli.history import Attempt, EventLogFile, History, IncidentStory
    from megascale.cli.verify import Verdict
    from megascale.core.contract.effects import Effect
    from megascale.core.eventlog import Mismatch
    from megascale.core.state.record import Incident

app = typer.Typer(no_args_is_help=True, help="Verify and explain what was decided in a run.")

LogArgument = Annotated[
    str,
    typer.Argument(
        metavar="LOG", help="Name of a job, folder of its run, or an events.jsonl.", show_default=False
    ),
]
RunsOption = Annotated[Path, typer.Option("--runs", help="Folder that holds runs/<job>/.")]
_ACTIONS: Final = {
    Action.RESTART_IN_PLACE: "restart the ranks on the same nodes",
    Action.RESTART_CONTAINER: "restart the node's container",
    Action.REPLACE_NODE: "replace the node",
    Action.ROLL_BACK: "go back to an earlier checkpoint",
    Action.REVERT_SPEC: "go back to the manifest that worked",
    Action.SHRINK: "go on with fewer nodes",
    Action.FAIL_JOB: "fail the job",
    Action.NONE: "do nothing",
}
_MILESTONES: Final = {
    Milestone.DECIDED: "decided",
    Milestone.STOPPED: "ranks stopped",
    Milestone.LAUNCHED: "ranks launched",
    Milestone.GROUPS: "process groups up",
    Milestone.LOADED: "state loaded",
    Milestone.FIRST_STEP: "first step",
    Milestone.BACK_TO_SPEED: "back to speed",
}


@app.command(
    epilog="Examples: megascale events replay quickstart | megascale events replay runs/quickstart --json"
)
def replay(
    log: LogArgument,
    runs: RunsOption = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Decide everything again from the recorded events. Exit code 1 where another decision comes out.

    What another version of the decisions recorded is not decided again: it is named, and exit code 2 says
    that nothing was left to verify.
    """
    from megascale.cli.history import EventLogFile
    from megascale.cli.verify import verify

    path = find_log(log, runs)
    file = EventLogFile(path)
    verdict = verify(file)
    if as_json:
        found = _mismatch_document(verdict.mismatch) if verdict.mismatch else None
        document = {"log": str(path), "ok": verdict.mismatch is None, **verdict.counts()}
        sys.stdout.write(json.dumps({**document, "tornLines": file.torn, "mismatch": found}) + "\n")
    else:
        _print_verdict(file, verdict)
    _report_torn(file)
    for sentence in verdict.skipped():
        echo(f"{path}: {sentence}", err=True)
    if verdict.mismatch:
        raise typer.Exit(1)


@app.command(
    epilog="Examples: megascale events show quickstart | megascale events show quickstart --incident i-3"
)
def show(
    log: LogArgument,
    incident: Annotated[
        str, typer.Option("--incident", metavar="ID", help="Explain this one in full, as i-3.")
    ] = "",
    runs: RunsOption = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Tell what happened in a run, how it was noticed, what was decided and why, and how long it took."""
    from megascale.cli.history import EventLogFile, History

    file = EventLogFile(find_log(log, runs))
    history = History(file)
    if incident and incident not in history.incidents:
        known = ", ".join(history.incidents) or "none"
        raise InputError(f"--incident {incident}: no such incident in {file.path}; there are: {known}")
    if as_json:
        sys.stdout.write(json.dumps(_document(history, incident)) + "\n")
    elif incident:
        _print_incident(history.incidents[incident], file.path)
    else:
        _print_history(history, file.path)
    _report_torn(file)
    for sentence in history.doubts():
        echo(f"{file.path}: {sentence}", err=True)


def find_log(log: str, runs: Path) -> Path:
    """The event log from a job's name, a run's folder or the file itself.

    Raises:
        InputError: there is none.
    """
    for candidate in (Path(log), Path(log) / "events.jsonl", runs / log / "events.jsonl"):
        if candidate.is_file():
            return candidate
    names = ", ".join(sorted(path.parent.name for path in runs.glob("*/events.jsonl"))) or "none"
    raise InputError(f"{log}: neither an event log nor a run that has one; runs in {runs}/: {names}")


def _report_torn(file: EventLogFile) -> None:
    for number in file.torn:
        echo(
            f"{file.where(number)}: an incomplete line, left out: the driver died while writing it", err=True
        )


def _print_verdict(file: EventLogFile, verdict: Verdict) -> None:
    done = (
        f"{plural(verdict.events, 'event')} of {plural(verdict.lives, 'driver life', 'driver lives')}, "
        f"{plural(verdict.effects, 'effect')}"
    )
    mismatch = verdict.mismatch
    if mismatch is None:
        echo(f"{done}: every decision comes out as recorded")
        return
    echo(f"{file.where(mismatch.line)}: another decision comes out ({done} before it were the same)")
    document = _mismatch_document(mismatch)
    echo(f"  event     {json.dumps(document['event'])}")
    for name in ("recorded", "replayed"):
        for effect in document[name] or ["nothing"]:
            echo(f"  {name:<9} {effect if isinstance(effect, str) else json.dumps(effect)}")


def _mismatch_document(mismatch: Mismatch) -> dict[str, Any]:
    from megascale.core.eventlog import tagged

    return {
        "line": mismatch.line,
        "at": mismatch.entry.at,
        "event": tagged(mismatch.entry.event),
        "recorded": [tagged(effect) for effect in mismatch.entry.effects],
        "replayed": [tagged(effect) for effect in mismatch.replayed],
    }


def _document(history: History, only: str) -> dict[str, Any]:
    from megascale.core.eventlog import tagged
    from megascale.driver.status import incident_document

    def story(found: IncidentStory) -> dict[str, Any]:
        effects = [{"at": at, **tagged(effect)} for at, effect in found.effects.values()]
        return {**incident_document(found.whole()), "effects": effects}

    if only:
        return story(history.incidents[only])
    end = history.end
    return {
        "job": history.job,
        "lives": history.lives,
        "began": history.began_at,
        "incidents": [story(found) for found in history.incidents.values()],
        "undone": history.undone,
        "attempts": [_attempt_document(attempt) for attempt in history.attempts.values()],
        "end": {"at": end[0], "state": end[1].state, "reason": end[1].reason} if end else None,
    }


def _attempt_document(attempt: Attempt) -> dict[str, Any]:
    launch, resume = attempt.launch, attempt.launch.resume
    return {
        "attempt": launch.attempt,
        "at": attempt.at,
        "nodes": list(launch.nodes),
        "resume": {"step": resume.step, "attempt": resume.attempt} if resume else None,
        "step": attempt.step,
        "endedAt": attempt.ended_at,
        "endedBy": attempt.ended_by,
    }


def _print_history(history: History, log: Path) -> None:
    incidents = plural(len(history.incidents), "incident")
    attempts = plural(len(history.attempts), "attempt")
    lives = plural(history.lives, "driver life", "driver lives")
    echo(f"{history.job}: {incidents}, {attempts}, {lives}")
    for story in history.incidents.values():
        echo(f"\n{_paragraph(story)}")
        for line in story.evidence:
            echo(f"  | {line}")
        if path := _log_of(story.incident, log):
            echo(f"  log: {path}")
    for incident_id in history.undone:
        echo(f"\n{incident_id} (an earlier one of this name): its driver died before it did anything.")
    echo("\nAttempts, in seconds since the start:")
    for attempt in history.attempts.values():
        echo(f"  {_attempt_line(attempt, history.began_at)}")
    if history.end:
        at, finish = history.end
        echo(f"  {at - history.began_at:>9.1f}  {finish.state}: {finish.reason}")


def _attempt_line(attempt: Attempt, began_at: float) -> str:
    launch, resume = attempt.launch, attempt.launch.resume
    origin = f"from step {resume.step} of attempt {resume.attempt}" if resume else "from scratch"
    text = (
        f"{attempt.at - began_at:>9.1f}  attempt {launch.attempt} on {plural(len(launch.nodes), 'node')}, "
        f"{origin}, last seen at step {attempt.step}"
    )
    if attempt.ended_at is None:
        return f"{text}, not ended"
    return f"{text}, ended after {_duration(attempt.ended_at - attempt.at)}: {attempt.ended_by}"


def _paragraph(story: IncidentStory) -> str:
    """An incident in four sentences."""
    incident = story.whole()
    at, decided = incident.milestones[Milestone.FAULT].at, ""
    if incident.action:
        decided = f" Decided to {_action(incident)}: {incident.decision}."
    return (
        f"{incident.id}, {_time(at)}: {incident.reason} ({_kind(incident)}). "
        f"Noticed {_detection(incident)}.{decided} Outcome: {_outcome(incident)}."
    )


def _print_incident(story: IncidentStory, log: Path) -> None:
    incident = story.whole()
    fault_at = incident.milestones[Milestone.FAULT].at
    step = f"after step {incident.fault_step}" if incident.fault_step else "before the first step"
    echo(f"{incident.id}: {incident.reason}\n")
    echo(f"  What      {_kind(incident)}, in attempt {incident.attempt}, {step}")
    echo(f"  When      {_time(fault_at)}, {incident.milestones[Milestone.FAULT].source}")
    echo(f"  Noticed   {_detection(incident)}")
    if incident.action:
        echo(f"  Decided   {_action(incident)}")
        echo(f"  Because   {incident.decision}")
    for line in incident.evidence:
        echo(f"  Evidence  {line}")
    if path := _log_of(incident, log):
        echo(f"  Log       {path}")
    echo(f"  Outcome   {_outcome(incident)}\n\n  Stages, and how long each took:")
    for name, took_s, since_s, source in _stages(incident):
        echo(f"    {name:<18} {_duration(took_s):>9}   {_duration(since_s):>9} since the fault{source}")
    _print_stacks(story)
    if story.effects:
        echo("\n  Done, in time since the fault:")
    for at, effect in story.effects.values():
        echo(f"    {_duration(at - fault_at):>9}  {_effect(effect)}")


def _print_stacks(story: IncidentStory) -> None:
    if story.ranks:
        echo("\n  Stacks when the ranks were asked, innermost frame first:")
    for number, rank in sorted(story.ranks.items()):
        echo(f"    rank {number}, after step {rank.step}, in {rank.phase or 'no phase'}")
        for frame in rank.stack or ("no stack: the process was stopped or gone",):
            echo(f"      {frame}")


def _log_of(incident: Incident, log: Path) -> Path | None:
    """The log of the rank at fault, beside the event log; None if no rank is."""
    if incident.rank is None or not incident.attempt:
        return None
    return RunDir(log.parent).rank_log(incident.attempt, incident.rank)


def _stages(incident: Incident) -> list[tuple[str, float, float, str]]:
    """Name, seconds since the stage before, seconds since the fault, and a note, in order of time."""
    fault, detected = incident.milestones[Milestone.FAULT], incident.milestones[Milestone.DETECTED]
    found = [("detected", detected.at - fault.at, detected.at - fault.at, _doubt(fault.source))]
    last = detected.at
    for stage, name in _MILESTONES.items():
        if stage in incident.milestones:
            time = incident.milestones[stage]
            found.append((name, time.at - last, time.at - fault.at, _doubt(time.source)))
            last = time.at
    return found


def _doubt(source: str) -> str:
    return f" ({source})" if source != Source.OBSERVED else ""


def _kind(incident: Incident) -> str:
    where = f" of rank {incident.rank}" if incident.rank is not None else ""
    return f"{incident.cause.replace('_', ' ')}{where}" + (f" on {incident.node}" if incident.node else "")


def _detection(incident: Incident) -> str:
    fault, detected = incident.milestones[Milestone.FAULT], incident.milestones[Milestone.DETECTED]
    doubt = " (the time of the fault is estimated)" if fault.source == Source.ESTIMATED else ""
    return f"{_duration(max(0.0, detected.at - fault.at))} after it happened{doubt}"


def _action(incident: Incident) -> str:
    action = incident.action
    return "nothing yet" if action is None else _ACTIONS.get(action, action.replace("_", " "))


def _outcome(incident: Incident) -> str:
    if not incident.outcome:
        return "still open when the log ends"
    first = incident.milestones.get(Milestone.FIRST_STEP)
    took = (
        f", steps again after {_duration(first.at - incident.milestones[Milestone.FAULT].at)}"
        if first
        else ""
    )
    return incident.outcome + took


def _effect(effect: Effect) -> str:
    return f"{type(effect).__name__} {effect.effect_id}: {effect.reason}"


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if abs(seconds) < 1.0 else f"{seconds:.1f} s"


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
