"""What a node says about the end of a rank, from files that a test writes."""

from __future__ import annotations

from pathlib import Path

from megascale.agent.host_note import HostNotes


def cgroup(folder: Path, kills: int, limit: str = "536870912") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "memory.events").write_text(
        f"low 0\nhigh 0\nmax 9\noom 1\noom_kill {kills}\noom_group_kill 0\n"
    )
    (folder / "memory.max").write_text(f"{limit}\n")
    return folder


def test_a_kill_of_the_cgroup_since_the_launch_is_named(tmp_path: Path) -> None:
    notes = HostNotes(None, cgroup(tmp_path / "group", 2))
    assert notes.note(killed=True, tail=()) == ""
    cgroup(tmp_path / "group", 3)
    said = "the cgroup's limit of 512 MiB was reached (memory.events: oom_kill +1)"
    assert notes.note(killed=True, tail=()) == said
    assert notes.note(killed=False, tail=()) == ""
    notes.begin()
    assert notes.note(killed=True, tail=()) == ""


def test_a_group_without_a_limit_is_killed_by_the_one_above_it(tmp_path: Path) -> None:
    notes = HostNotes(None, cgroup(tmp_path / "group", 0, "max"))
    cgroup(tmp_path / "group", 1, "max")
    assert notes.note(killed=True, tail=()).startswith("the cgroup's limit was reached")


def test_the_kernel_is_quoted_on_what_it_killed_since_the_launch(tmp_path: Path) -> None:
    log = tmp_path / "kmsg"
    log.write_text("6,1,2,-;Out of memory: Killed process 11 (old)\n")
    notes = HostNotes(log, tmp_path)
    assert notes.note(killed=True, tail=()) == ""
    with log.open("a") as more:
        more.write("6,1,3,-;usb 1-1: new device\n3,1,4,-;Out of memory: Killed process 4711 (python)\n")
    assert notes.note(killed=True, tail=()) == "kernel: Out of memory: Killed process 4711 (python)"


def test_the_size_of_the_shared_memory_is_told_where_the_log_is_about_it(tmp_path: Path) -> None:
    notes = HostNotes(None, tmp_path, shm=tmp_path)
    told = notes.note(killed=False, tail=("RuntimeError: worker is killed by signal: Bus error.",))
    assert told.startswith(f"{tmp_path} has ")
    assert "MiB, of which" in told
    assert notes.note(killed=False, tail=("ValueError: no",)) == ""


def test_nothing_is_said_where_nothing_can_be_read(tmp_path: Path) -> None:
    notes = HostNotes(tmp_path / "none", tmp_path / "none", shm=tmp_path / "none")
    assert notes.note(killed=True, tail=()) == ""
    assert notes.note(killed=False, tail=("out of shared memory",)) == ""
