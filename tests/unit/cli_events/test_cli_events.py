from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from transcript import play
from typer.testing import CliRunner

from megascale.cli.events import app
from megascale.core.contract.effects import Kill
from megascale.core.eventlog import Entry, Gap, Header, entry_line, header_line, parse_line
from megascale.errors import InputError

CRASH = """\
policy: nodes 2, spare_nodes 1
given: training at step 20, checkpoint of step 10
at 2.5 rank 1 on node-1 killed by SIGKILL
at 3.0 Kill done
at 3.2 Launch done
at 40.0 node-1 is gone: pod deleted
at 41.0 Kill done
at 42.0 Launch done
"""
DRIVER_DIES = "at 43.0 the driver dies and the next one starts\nat 44.0 node-0 reconnects\n"
MakeLog = Callable[..., Path]


@pytest.fixture
def make_log(tmp_path: Path) -> MakeLog:
    def make(
        script: str = CRASH, *, job: str = "demo", edit: Callable[[list[str]], list[str]] = list
    ) -> Path:
        folder = tmp_path / "runs" / job
        folder.mkdir(parents=True)
        _, lines = play(script)
        (folder / "events.jsonl").write_text("\n".join(edit(lines)) + "\n")
        return folder / "events.jsonl"

    return make


def run(*arguments: object, code: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


def lines_with(lines: list[str], word: str) -> list[int]:
    return [index for index, line in enumerate(lines) if word in line]


def test_recorded_decisions_come_out_again(make_log: MakeLog) -> None:
    out, err = run("replay", make_log(CRASH + DRIVER_DIES), "--json")
    found = json.loads(out)
    assert found["ok"]
    assert (found["lives"], found["mismatch"], found["tornLines"]) == (2, None, [])
    assert found["events"] > 100
    assert err == ""


@pytest.mark.parametrize("log", ["demo", "runs/demo", "runs/demo/events.jsonl"])
def test_log_is_found_by_name_folder_and_file(
    make_log: MakeLog, monkeypatch: pytest.MonkeyPatch, log: str
) -> None:
    monkeypatch.chdir(make_log().parent.parent.parent)
    assert "every decision comes out as recorded" in run("replay", log)[0]


def test_first_difference_is_shown_with_both_decisions(make_log: MakeLog) -> None:
    at: list[int] = []

    def edit(lines: list[str]) -> list[str]:
        at.append(lines_with(lines, '"Kill"')[0])
        entry = parse_line(lines[at[0]])
        assert isinstance(entry, Entry)
        other = Kill("e-3", "another reason", 1, ("node-0",), 10.0)
        return [*lines[: at[0]], entry_line(Entry(entry.at, entry.event, (other,))), *lines[at[0] + 1 :]]

    log = make_log(edit=edit)
    out, _ = run("replay", log, code=1)
    assert f"{log}:{at[0] + 1}: another decision" in out
    assert "recorded  " in out
    assert "another reason" in out
    assert "was killed by SIGKILL" in out.split("replayed  ")[1]
    found = json.loads(run("replay", log, "--json", code=1)[0])
    assert found["mismatch"]["recorded"][0]["reason"] == "another reason"
    assert found["mismatch"]["replayed"][0]["nodes"] == ["node-0", "node-1"]


def test_missing_decision_is_told_as_nothing(make_log: MakeLog) -> None:
    def edit(lines: list[str]) -> list[str]:
        index = lines_with(lines, '"Kill"')[0]
        data = json.loads(lines[index])
        del data["effects"]
        return [*lines[:index], json.dumps(data), *lines[index + 1 :]]

    assert "recorded  nothing" in run("replay", make_log(edit=edit), code=1)[0]


def test_torn_last_line_is_left_out_and_told(make_log: MakeLog) -> None:
    log = make_log()
    raw = log.read_text()
    log.write_text(raw[:-30])
    out, err = run("replay", log)
    assert "every decision" in out
    assert f"{raw.count(chr(10))}: an incomplete line" in err


def test_lines_torn_by_two_dying_drivers_before_the_next_header(make_log: MakeLog) -> None:
    def edit(lines: list[str]) -> list[str]:
        header = lines_with(lines, '"header"')[1]
        return [*lines[:header], lines[header + 1][:20], lines[header][:5], *lines[header:]]

    log = make_log(CRASH + DRIVER_DIES, edit=edit)
    found = json.loads(run("replay", log, "--json")[0])
    assert found["ok"]
    assert len(found["tornLines"]) == 2


def test_a_log_in_several_files_is_read_in_order(make_log: MakeLog) -> None:
    """Files are sorted by number, not by name, and a line is named by its own file."""
    path = make_log(CRASH + DRIVER_DIES)
    whole = [run(command, path, "--json")[0] for command in ("replay", "show")]
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:20]))
    for part in range(1, 12):
        end = 20 + 5 * part if part < 11 else len(lines)
        (path.parent / f"events.{part}.jsonl").write_text("".join(lines[15 + 5 * part : end]))
    assert [run(command, path, "--json")[0] for command in ("replay", "show")] == whole
    (path.parent / "events.10.jsonl").write_text('{"at": 1.0}\n')
    with pytest.raises(InputError, match=r"events\.10\.jsonl:1: not a line that this version"):
        run("replay", path)


def test_damage_in_the_middle_is_refused(make_log: MakeLog) -> None:
    log = make_log(edit=lambda lines: [*lines[:5], lines[5][:20], *lines[6:]])
    with pytest.raises(InputError, match=r"events\.jsonl:6: damaged"):
        run("replay", log)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not an event log"),
        ("step,rank\n1,2\n", "not an event log"),
        ('{"step": 1, "loss": 2.0}\n', "not a line that this version"),
        ("[1, 2]\n", "not a line that this version"),
        ('{"at": 1.0, "event": {"kind": "Tick"}}\n', "begins with a header"),
        ('{"header": {"job": "x", "policy": {"size": 3}}}\n', "Header lacks snapshot"),
        ('{"header": {"job": "x", "policy": {}, "snapshot": {"state": 1}}}\n', "expected JobState"),
        ('{"header": {"job": "x", "policy": {}, "snapshot": null, "schema_version": 9}}\n', "schema 9"),
    ],
)
def test_what_is_not_a_log_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "file.jsonl"
    path.write_text(text)
    for command in ("replay", "show"):
        with pytest.raises(InputError, match=words) as caught:
            run(command, path)
        assert caught.value.exit_code == 2


def test_unknown_run_names_those_that_there_are(make_log: MakeLog) -> None:
    runs = make_log().parent.parent
    with pytest.raises(InputError, match="demo"):
        run("replay", "other", "--runs", runs)


def of_version(line: str, version: int) -> str:
    header = parse_line(line)
    assert isinstance(header, Header)
    return header_line(replace(header, core_version=version))


def test_log_of_another_core_version_is_not_verified_and_says_so(make_log: MakeLog) -> None:
    log = make_log(edit=lambda lines: [of_version(lines[0], 1), *lines[1:]])
    with pytest.raises(InputError, match="recorded by core version 1, and this program decides by version"):
        run("replay", log)
    out, err = run("show", log)
    assert "rank 1 on node-1 was killed by SIGKILL" in out
    assert "recorded by core version 1, shown by" in err


def test_lives_of_this_version_are_verified_though_others_are_not(make_log: MakeLog) -> None:
    def edit(lines: list[str]) -> list[str]:
        changed = lines[5].replace('"kind"', '"kind" ')  # the life of version 1 may differ as it likes
        return [of_version(lines[0], 1), *lines[1:5], changed, *lines[6:]]

    log = make_log(CRASH + DRIVER_DIES, edit=edit)
    out, err = run("replay", log, "--json")
    assert json.loads(out) | {"lives": 1, "otherVersions": 1, "ok": True} == json.loads(out)
    assert "driver lives recorded by core version 1: 1" in err


def test_lines_of_a_kind_that_is_not_known_end_the_verification(make_log: MakeLog) -> None:
    foreign = json.dumps({"at": 1_000_000.5, "event": {"kind": "MoonRose"}})
    log = make_log(edit=lambda lines: [*lines[:5], foreign, *lines[5:]])
    _, err = run("replay", log)
    assert "not verified from line 6 on: this version does not know MoonRose" in err
    assert "lines that this version cannot read, left out: 1" in run("show", log)[1]


def test_missing_events_are_counted_and_nothing_is_made_up_of_what_follows(make_log: MakeLog) -> None:
    """All events of the crash but those with effects are missing, as while a disk is full."""

    def without_beats(lines: list[str]) -> list[str]:
        crash = next(index for index, line in enumerate(lines) if "RankExited" in line)
        rest = [line for line in lines[crash + 1 :] if "effects" in line]
        return [*lines[:crash], entry_line(Gap(50.0, 17)), *rest]

    path = make_log(edit=without_beats)
    out, err = run("replay", path, "--json")
    assert json.loads(out)["ok"]
    assert "17 events could not be written" in err
    out, err = run("show", path)
    assert "0 incidents, 3 attempts" in out
    assert "disk was full: 17" in err


def test_every_incident_is_told_in_a_paragraph(make_log: MakeLog) -> None:
    out, _ = run("show", make_log())
    crash, lost = (line for line in out.splitlines() if line.startswith("i-"))
    assert "rank 1 on node-1 was killed by SIGKILL (crash of rank 1 on node-1)" in crash
    assert "Noticed 0 ms after it happened" in crash
    assert "Decided to restart the ranks on the same nodes: " in crash
    assert "Outcome: recovered, steps again after 6.5 s." in crash
    assert "Decided to replace the node" in lost
    assert "still open when the log ends" in lost


def test_timeline_of_attempts(make_log: MakeLog) -> None:
    found = json.loads(run("show", make_log(), "--json")[0])
    assert [attempt["attempt"] for attempt in found["attempts"]] == [1, 2, 3]
    assert [attempt["resume"] for attempt in found["attempts"]] == [None, *[{"step": 10, "attempt": 1}] * 2]
    assert [attempt["step"] for attempt in found["attempts"]] == [22, 42, 10]
    assert found["attempts"][2]["nodes"] == ["node-0", "node-2"]
    assert found["attempts"][0]["endedBy"] == "i-1: rank 1 on node-1 was killed by SIGKILL"
    assert found["attempts"][2]["endedAt"] is None


def test_one_incident_in_full(make_log: MakeLog) -> None:
    out, _ = run("show", make_log(), "--incident", "i-1")
    assert "i-2" not in out
    for words in (
        "ranks stopped         500 ms",
        "ranks launched        200 ms",
        "first step",
        "back to speed",
    ):
        assert words in out
    assert "Kill e-3" in out
    assert "Launch e-4: attempt 2 on 2 nodes, from step 10 of attempt 1" in out


def test_unknown_incident_names_those_that_there_are(make_log: MakeLog) -> None:
    with pytest.raises(InputError, match="there are: i-1, i-2"):
        run("show", make_log(), "--incident", "i-9")


def test_incident_is_told_over_a_driver_restart(make_log: MakeLog) -> None:
    found = json.loads(run("show", make_log(CRASH + DRIVER_DIES), "--incident", "i-2", "--json")[0])
    effects = [effect["effect_id"] for effect in found["effects"]]
    assert len(effects) == len(set(effects))
    assert found["reason"] == "node-1: pod deleted"


def test_incident_that_died_with_its_driver_is_not_mixed_with_its_successor(make_log: MakeLog) -> None:
    """Its record was not written any more: the next driver knows nothing of i-2 and uses the name again."""
    earlier, _, _ = CRASH.partition("at 40.0")
    _, successor = play(earlier + "at 39.0 the driver dies and the next one starts\n")
    header = lines_with(successor, '"header"')[1]
    log = make_log(edit=lambda lines: [*lines[: lines_with(lines, '"NodeGone"')[0] + 1], *successor[header:]])
    found = json.loads(run("show", log, "--json")[0])
    assert [incident["id"] for incident in found["incidents"]] == ["i-1"]
    assert found["undone"] == ["i-2"]
    assert "its driver died before it did anything" in run("show", log)[0]
    assert json.loads(run("replay", log, "--json")[0])["ok"]


def test_text_that_the_record_shortens_is_told_whole(make_log: MakeLog) -> None:
    message = "x" * 200
    script = CRASH.replace("killed by SIGKILL", f"raises ValueError: {message}")
    found = json.loads(run("show", make_log(script), "--incident", "i-1", "--json")[0])
    assert found["reason"] == f"rank 1 on node-1 raised ValueError: {message}"
    assert found["outcome"] != "open"


def test_help_has_examples() -> None:
    for command in ("replay", "show"):
        assert f"megascale events {command}" in run(command, "--help")[0]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"at": ' + "[" * 50_000 + "]" * 50_000 + "}", "nested more than 64 levels deep"),
        ('{"at": 1, "event": {"kind": "Tick", "x": ' + "[" * 80 + "]" * 80 + "}}", "nested more than 64"),
        ('{"at": 1' + "0" * 400 + ', "event": {"kind": "Tick"}}', "a number of more than 308 digits"),
        ('{"at": {}, "event": {"kind": "Tick"}}', "can read"),
        ("[]", "can read"),
        ("5", "can read"),
    ],
    ids=["deep", "deep inside", "digits", "time", "list", "number"],
)
@pytest.mark.parametrize("command", ["replay", "show"])
def test_hostile_lines_are_refused_with_their_number(
    make_log: MakeLog, line: str, words: str, command: str
) -> None:
    log = make_log(edit=lambda lines: [*lines[:5], line, *lines[5:]])
    with pytest.raises(InputError, match=rf":6: .*{words}"):
        run(command, log)


def test_a_line_without_an_end_is_not_read_whole(make_log: MakeLog) -> None:
    log = make_log()
    with log.open("r+b") as handle:
        handle.truncate(1 << 40)  # sparse
    with pytest.raises(InputError, match="has more than 16777216 bytes"):
        run("replay", log)
