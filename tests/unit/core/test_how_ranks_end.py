"""What the way in which ranks end tells: early leavers, codes that mean signals, errors on several nodes."""

from __future__ import annotations

import pytest

from megascale.core.contract import effects as fx
from megascale.core.contract.events import RankExited
from megascale.core.decide.blame import blame_of
from megascale.core.decide.same_error import error_name
from megascale.core.handlers.exits import fault_of
from megascale.core.rules import rule_set
from megascale.core.state.context import StepContext
from megascale.core.state.record import JobState

GLOO = "[rank0]: RuntimeError: [gloo/transport/tcp/pair.cc:537] Connection reset by peer"
SHM = "RuntimeError: DataLoader worker (pid(s) 31337) is killed by signal: Bus error. "
CONFIG = "ValueError: hidden size 100 is not divisible by 8 heads"


def ended(code=None, signal=None, tail=(), note="", **fields):
    event = RankExited("n-1", "x", 1, 1, code, signal, 5.0, tail=tuple(tail), host_note=note, **fields)
    return fault_of(event, rule_set())


def blame(job, node):
    return blame_of(StepContext(job.record, job.core.live, job.core.policy, job.now, job.now), node)


# A rank leaves with 0 while others work


def test_a_rank_that_leaves_early_is_the_incident_and_not_its_victims(running):
    job = running(2)
    job.exit(1, 0, tail=("no more data, leaving",)).exit(0, 1, tail=(GLOO,))
    incident = job.incident
    assert incident.reason == "rank 1 on n-1 left with code 0 at 00:16:41 UTC while its peers still worked"
    assert (incident.cause, incident.node, incident.rank) == ("user_code", "n-1", 1)
    assert incident.evidence[0] == "no more data, leaving"
    assert "rank 0 on n-0 lost its peers" in incident.evidence[1]
    assert blame(job, "n-1") == 0.0
    assert job.state is JobState.STOPPING


def test_the_victim_may_be_heard_first(running):
    job = running(2)
    job.exit(0, 1, tail=(GLOO,))
    assert job.incident.consequence
    job.exit(1, 0)
    assert job.incident.reason.startswith("rank 1 on n-1 left with code 0 at ")
    assert job.record.restarts == {"crash": 0, "user_code": 1}


def test_a_rank_that_ends_well_long_after_the_fault_did_not_cause_it(running):
    job = running(2).exit(0, 1, tail=(GLOO,))
    job.now += 2.0
    job.exit(1, 0)
    assert "lost its peers" in job.incident.reason


def test_a_rank_with_an_error_of_its_own_is_no_victim_of_one_that_left(running):
    job = running(2).exit(1, 0).exit(0, 1, error="KeyError", message="'tokens'")
    assert job.incident.reason == "rank 0 on n-0 raised KeyError: 'tokens'"


def test_ranks_that_do_not_follow_name_the_one_that_left(running):
    job = running(2, startup_s=60.0).exit(1, 0).wait(61.0)
    assert job.incident.reason.startswith("rank 1 on n-1 left with code 0 at ")
    assert job.incident.reason.endswith("1 of 2 ranks ended, the others did not within 60 s")


# Codes that mean signals


@pytest.mark.parametrize("how", [{"code": 143}, {"signal": 15}])
def test_sigterm_is_a_notice_and_nobody_is_blamed(running, how):
    fault = ended(**how, tail=("received SIGTERM: instance will be reclaimed, saving and leaving",))
    assert (fault.cause, fault.consequence) == ("planned", False)
    assert fault.reason.endswith("its node is being taken away")
    job = running(2).exit(1, how.get("code"), sig=how.get("signal"))
    assert job.incident.action == "restart_in_place"
    assert job.record.restarts == {}
    assert blame(job, "n-1") == 0.0
    assert job.heard(fx.Exclude) == []


def test_the_code_of_sigterm_is_named():
    assert ended(code=143).reason == (
        "rank 1 on n-1 ended by SIGTERM (exit 143): its node is being taken away"
    )


def test_a_program_that_always_ends_by_sigterm_is_given_up(running):
    job = running(2)
    for _ in range(4):
        job.exit(1, 143)
        if job.pending(fx.Launch) or job.incident.action == "fail_job":
            break
        job.done(fx.Kill).done(fx.Launch)
    assert job.incident.action == "fail_job"
    assert job.incident.decision.startswith("3 restarts in a row failed")


def test_code_137_is_sigkill_and_memory_the_likely_reason():
    assert ended(code=137).reason == "rank 1 on n-1 ended by SIGKILL (exit 137), most likely out of memory"
    note = "the cgroup's limit of 512 MiB was reached (memory.events: oom_kill +1)"
    assert ended(code=137, note=note).reason.endswith(f"most likely out of memory; {note}")
    assert ended(signal=9, note=note).reason == (
        f"rank 1 on n-1 was killed by SIGKILL, most likely out of memory; {note}"
    )


@pytest.mark.parametrize("code", [1, 127, 128, 76 + 128 + 60, 255])
def test_other_codes_are_no_signals(code):
    assert "exited with code" in ended(code=code).reason


def test_an_exception_with_such_a_code_stays_an_exception():
    assert ended(code=137, error_type="KeyError", error_message="x").cause == "user_code"


# The same error on several nodes


def test_names_of_errors_ignore_numbers_and_ranks():
    one = error_name("[rank0]: RuntimeError: worker (pid 12) at 0x7f12 failed")
    assert one == error_name("[rank17]: RuntimeError: worker (pid 9311) at 0x7ff2 failed")
    assert one != error_name("RuntimeError: reader (pid 12) at 0x7f12 failed")
    assert error_name("") == ""


def untold(start, **policy):
    return start(2, reports_steps=False, **policy).join("n-0", "n-1").done(fx.Launch)


def test_the_same_error_on_two_nodes_at_once_fails_the_job_and_convicts_no_node(start):
    job = untold(start)
    job.exit(0, 1, tail=(CONFIG,)).exit(1, 1, tail=(CONFIG,))
    assert job.incident.reason.startswith(
        f"the same error on n-0 and n-1: rank 1 on n-1 exited with code 1: {CONFIG}"
    )
    assert (job.incident.node, job.incident.action) == (None, "fail_job")
    assert (blame(job, "n-0"), blame(job, "n-1")) == (0.0, 0.0)
    job.done(fx.Kill)
    assert job.record.finish_state == "failed"


def test_a_small_shared_memory_is_named_with_its_size_and_the_cure(start):
    job = untold(start)
    note = "/dev/shm has 4 MiB, of which 3 are free"
    job.exit(0, 1, tail=(SHM,), host_note=note).exit(1, 1, tail=(SHM,), host_note=note)
    assert job.incident.action == "fail_job"
    for said in (note, "--shm-size", "no node is at fault"):
        assert said in job.incident.decision
    assert (blame(job, "n-0"), blame(job, "n-1")) == (0.0, 0.0)


def test_the_same_error_in_a_row_on_two_nodes_is_no_nodes_fault(start):
    job = untold(start).exit(0, 1, tail=(CONFIG,)).done(fx.Kill).done(fx.Launch)
    job.exit(1, 1, tail=(CONFIG,))
    assert "the same error on n-0 and n-1" in job.incident.reason
    assert job.incident.action == "fail_job"


def test_different_errors_in_a_row_are_restarted(start):
    job = untold(start).exit(0, 1, tail=(CONFIG,)).done(fx.Kill).done(fx.Launch)
    job.exit(1, 1, tail=("ValueError: too few samples",))
    assert job.incident.action == "restart_in_place"


def test_what_hits_all_nodes_after_work_was_done_is_restarted_without_blame(running):
    job = running(2).train(20)
    job.exit(0, 1, tail=(CONFIG,)).exit(1, 1, tail=(CONFIG,))
    assert (job.incident.node, job.incident.action) == (None, "restart_in_place")
    assert (blame(job, "n-0"), blame(job, "n-1")) == (0.0, 0.0)


def test_an_error_that_comes_again_and_again_on_one_node_ends_a_script_without_steps(start):
    job = untold(start, minimum_run_s=1.0, node_blame_limit=100.0)
    for _ in range(10):
        job.wait(5.0)
        job.exit(1, 1, tail=("ValueError: bad sample in shard 7",))
        if job.incident.action == "fail_job":
            break
        job.done(fx.Kill).done(fx.Launch)
    assert job.incident.decision == "9 restarts in a row ended with the same error"
    assert job.record.restarts == {"crash": 9}


def test_the_shells_word_for_a_kill_does_not_hide_which_rank_it_was(running):
    job = running(2).exit(1, 137)
    job.log("n-1", "killed", "oom", "restart", "start.sh: line 2: 27727 Killed")
    assert job.incident.reason == "rank 1 on n-1 ended by SIGKILL (exit 137), most likely out of memory"
    assert "start.sh: line 2: 27727 Killed" in job.incident.evidence
