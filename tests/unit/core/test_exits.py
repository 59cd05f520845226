from __future__ import annotations

import pytest

from megascale.core.contract import effects as fx
from megascale.core.contract.events import RankExited
from megascale.core.contract.lineage import Commit
from megascale.core.contract.policy import LogRuleSpec
from megascale.core.handlers.exits import fault_of
from megascale.core.rules import rule_set
from megascale.core.state.record import JobState

GLOO = "[gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.7]:41873"


def ended(code=None, signal=None, error="", message="", tail=()):
    return fault_of(
        RankExited("n-1", "x", 1, 3, code, signal, 5.0, 7, error, message, {}, tuple(tail)), rule_set()
    )


@pytest.mark.parametrize(
    ("event", "cause", "echo"),
    [
        ({"signal": 9}, "crash", False),
        ({"signal": 11}, "crash", False),
        ({"code": 1}, "crash", False),
        ({"code": 1, "error": "ValueError", "message": "shapes do not match"}, "user_code", False),
        ({"code": 1, "error": "RuntimeError", "message": GLOO}, "crash", True),
        (
            {"code": 1, "error": "DistBackendError", "message": "NCCL error: remote process exited"},
            "crash",
            True,
        ),
        ({"signal": 9, "tail": (GLOO,)}, "crash", False),
        ({"signal": 6, "tail": (GLOO,)}, "crash", True),
        ({"signal": 6}, "crash", False),
        ({"code": 1, "error": "BrokenPipeError", "message": "x"}, "crash", True),
        ({"code": 1, "error": "RuntimeError", "message": "NCCL failure"}, "crash", True),
        ({"code": 1, "tail": (GLOO,)}, "crash", True),
        (
            {
                "code": 1,
                "error": "AcceleratorError",
                "message": "CUDA error: uncorrectable ECC error encountered",
            },
            "hardware",
            False,
        ),
        (
            {
                "code": 1,
                "error": "CheckpointCorruptError",
                "message": "rank-3.bin: checksum; connection reset by peer",
            },
            "checkpoint_corrupt",
            False,
        ),
    ],
)
def test_cause_of_an_end(event, cause, echo):
    fault = ended(**event)
    assert (fault.cause, fault.consequence) == (cause, echo)


def test_a_script_that_is_not_there_is_the_users_mistake():
    tail = (
        "network: flight recorder: the last 200 collectives of each rank are written to flight/ on a timeout",
        "python: can't open file '/job/tarin.py': [Errno 2] No such file or directory",
    )
    fault = ended(code=2, tail=tail)
    assert (fault.consequence, fault.category, fault.action) == (False, "user_code", "fail_job")
    assert fault.reason == f"rank 3 on n-1 exited with code 2: {tail[1]}"


def test_reason_names_rank_node_and_words():
    fault = ended(code=1, error="KeyError", message="'tokens'\nmore")
    assert fault.reason == "rank 3 on n-1 raised KeyError: 'tokens'"
    assert ended(signal=9).reason == "rank 3 on n-1 was killed by SIGKILL"
    assert ended(signal=99).reason == "rank 3 on n-1 was killed by signal 99"
    assert ended(code=7).reason == "rank 3 on n-1 exited with code 7"
    assert ended(code=1, error="KeyError").reason == "rank 3 on n-1 raised KeyError: no message"
    long = ended(code=1, error="KeyError", message="x" * 400)
    assert long.reason == f"rank 3 on n-1 raised KeyError: {'x' * 300}"
    assert ended(code=1, error="KeyError", tail=("first", " last ")).reason.endswith("KeyError: last")
    echo = ended(code=1, error="RuntimeError", message=GLOO)
    assert echo.reason == f"rank 3 on n-1 lost its peers: {GLOO}"
    damaged = ended(code=1, error="CheckpointCorruptError", message="checksum")
    assert damaged.reason == "rank 3 on n-1: checksum"


def test_a_fault_keeps_what_the_exit_told():
    fault = ended(code=1, error="KeyError", message="x", tail=("a", "b", "c", "d"))
    assert (fault.node, fault.rank, fault.at, fault.source) == ("n-1", 3, 5.0, "observed")
    assert (fault.evidence, fault.error_type, fault.commits) == (("b", "c", "d"), "KeyError", None)


@pytest.mark.parametrize(
    ("detail", "commits"),
    [
        ({"step": 7, "attempt": 2}, (Commit(7, 2),)),
        ({"step": 7}, None),
        ({"attempt": 2}, None),
        ({"step": "7", "attempt": 2}, None),
        ({"step": 7, "attempt": None}, None),
    ],
)
def test_a_damaged_commit_is_the_one_that_the_exit_names(detail, commits):
    event = RankExited("n-1", "x", 1, 3, 1, None, 5.0, 7, "CheckpointCorruptError", "checksum", detail)
    assert fault_of(event, rule_set()).commits == commits


def test_echo_seen_first_is_put_right(running):
    job = running(2, spare_nodes=1)
    job.exit(0, 1, error="RuntimeError", message=GLOO)
    assert job.incident.node == "n-0"
    assert "n-0" not in job.record.blame
    job.exit(1, sig=11)
    assert (job.incident.node, job.incident.rank) == ("n-1", 1)
    assert "SIGSEGV" in job.incident.reason
    assert any("lost its peers" in line for line in job.incident.evidence)
    assert job.record.restarts == {"crash": 1}
    assert job.record.blame["n-1"].score == 1.0


def test_first_cause_is_not_overruled_by_echoes(running):
    job = running(2)
    job.exit(1, sig=11).exit(0, 1, error="RuntimeError", message=GLOO)
    assert job.incident.node == "n-1"


def test_echo_of_a_node_that_died_is_put_right(running):
    job = running(2, spare_nodes=1)
    job.exit(0, 1, error="RuntimeError", message=GLOO).goes("n-1")
    assert (job.incident.cause, job.incident.node) == ("node_lost", "n-1")
    job.done(fx.Kill)
    assert job.record.assignment == ("n-0", "n-2")
    assert set(job.record.excluded) == {"n-1"}


def test_reattribution_does_not_overrule_a_person(running):
    job = running(2)
    job.command("stop").exit(0, 1, error="RuntimeError", message=GLOO).exit(1, sig=11).done(fx.Kill)
    assert job.record.finish_state == "stopped"


def test_reattribution_may_lift_a_verdict(running):
    """The echo had no budget left, its cause has."""
    job = running(2, budgets={"crash": 0})
    job.exit(0, 1, error="RuntimeError", message=GLOO)
    assert job.incident.action == "fail_job"
    job.exit(1, 1, error="ValueError", message="bad").done(fx.Kill)
    assert job.state is JobState.LAUNCHING


def test_echoes_alone_never_cost_a_node(running):
    job = running(2, spare_nodes=1, no_progress_limit=99)
    for _ in range(5):
        job.exit(0, 1, error="RuntimeError", message=GLOO).recovers()
    assert not job.record.excluded


def test_repeated_and_stale_exits_are_ignored(running):
    job = running(2)
    job.exit(1, sig=9).done(fx.Kill)
    before = job.record.next_incident
    job.tell(RankExited("n-1", "n-1/1", 1, 1, None, 9, job.now))
    assert job.record.next_incident == before
    job.launches()
    job.tell(RankExited("n-1", "n-1/0", 2, 1, None, 9, job.now))
    assert job.state is JobState.RUNNING


def test_injected_faults_are_marked(running):
    job = running(2)
    job.exit(1, sig=9, injected=True)
    assert job.incident.milestones["fault"].source == "injected"


def test_the_rules_of_the_job_judge_an_exit():
    quota = LogRuleSpec("quota", pattern="out of .* tokens", category="data", action="fail_job")
    event = RankExited("n-1", "x", 1, 3, 3, None, 5.0, 7, "", "", {}, ("ready", "out of quota for tokens"))
    fault = fault_of(event, rule_set((quota,)))
    assert (fault.rule, fault.category, fault.action) == ("quota", "data", "fail_job")
    assert fault_of(event, rule_set()).rule is None


def test_a_loader_worker_that_was_killed_ran_out_of_host_memory():
    text = "DataLoader worker (pid 31337) is killed by signal: Killed."
    fault = ended(code=1, error="RuntimeError", message=text)
    assert (fault.cause, fault.category, fault.action) == ("hardware", "oom", "restart")


def test_a_full_dev_shm_is_configuration_and_names_its_cure():
    text = "unable to allocate shared memory(shm) for file </torch_7>: No space left on device (28)"
    fault = ended(code=1, error="RuntimeError", message=text)
    assert (fault.cause, fault.action) == ("user_code", "fail_job")
    assert "a container has 64 MiB unless told otherwise" in fault.reason


def test_a_rank_ended_by_sigterm_is_no_echo():
    fault = ended(code=143, tail=("received SIGTERM: instance will be reclaimed, saving and leaving",))
    assert not fault.consequence
    assert "ended by SIGTERM (exit 143)" in fault.reason
