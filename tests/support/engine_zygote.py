"""Forks engine ranks for tests: imports the engine once, then runs one attempt per line of stdin.

A line is {"runDir", "spec", "attempt", "world", "resume", "lineage", "port"}, and optionally "tier" and
"snapshots" (a folder) where ranks keep snapshots in memory, "slow" (a rank) that takes 0.1 s longer for each
attention, "saveEverySteps" where the launch sets how often to save;
the answer on stdout is
{"statuses": [...]}, one wait status per rank: an exit code, or minus the signal. Rank r's output goes to
<runDir>/rank-<r>.log, its rank file is <runDir>/ranks/<r>, made by the caller.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import megascale.engine
from megascale.core.contract.lineage import Commit
from megascale.engine.context import RankLaunch
from megascale.observe.rankfile import RankFile


def _commit(pair: list[int] | None) -> Commit | None:
    return Commit(*pair) if pair else None


def _launch(request: dict[str, Any], rank: int) -> RankLaunch:
    run_dir = Path(request["runDir"])
    return RankLaunch(
        job="test",
        spec=request["spec"],
        term=1,
        attempt=request["attempt"],
        rank=rank,
        world_size=request["world"],
        local_rank=0,
        local_world_size=1,
        node=f"node-{rank}",
        node_rank=rank,
        store_host="127.0.0.1",
        store_port=request["port"],
        run_dir=run_dir,
        rank_file=run_dir / "ranks" / str(rank),
        resume=_commit(request["resume"]),
        lineage={int(attempt): _commit(pair) for attempt, pair in request["lineage"].items()},
        tier=request.get("tier", "durable"),
        save_every_steps=request.get("saveEverySteps", 0),
        snapshot_folders=tuple(Path(request[key]) / str(rank) for key in ("snapshots",) if key in request),
    )


def _slow_down() -> None:
    from megascale.model.attention import Reference

    attend = Reference.__call__

    def slowly(*inputs: Any) -> Any:
        time.sleep(0.1)
        return attend(*inputs)

    Reference.__call__ = slowly  # type: ignore[method-assign]


def _run(request: dict[str, Any], rank: int) -> int:
    from megascale.engine.rank import run_rank

    launch = _launch(request, rank)
    if request.get("slow") == rank:
        _slow_down()
    log = os.open(launch.run_dir / f"rank-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    # Its own process group plays the node, so that a fault on the node stays within the rank.
    os.setpgid(0, 0)
    try:
        return run_rank(launch, RankFile.open(launch.rank_file))
    except BaseException:  # noqa: BLE001 - a forked child must not return into the caller
        traceback.print_exc()
        return 1


def _fork(request: dict[str, Any], rank: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = _run(request, rank)
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    megascale.engine.preload()
    print(json.dumps({"threads": megascale.engine.thread_count()}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        pids = [_fork(request, rank) for rank in range(request["world"])]
        statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        print(json.dumps({"statuses": statuses}), flush=True)


if __name__ == "__main__":
    main()
