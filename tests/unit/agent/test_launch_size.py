"""A launch reaches the zygote whatever the size of its manifest."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from megascale.agent import zygote_client as module
from megascale.agent.zygote import launch_from_json
from megascale.agent.zygote_client import Zygote
from megascale.engine.context import RankLaunch
from megascale.job.document import MAX_BYTES

# Answers with the size of the file that the request names, as a real zygote's rank would read it.
PROGRAM = """
import json, pathlib, socket, sys
connection = socket.socket(fileno=int(sys.argv[1]))
connection.send(json.dumps({"ready": True}).encode())
while raw := connection.recv(1 << 20):
    launch = pathlib.Path(json.loads(raw)["launch"]).read_text()
    connection.send(json.dumps({"pid": len(launch)}).encode())
"""


def test_the_largest_manifest_reaches_a_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "zygote.py"
    program.write_text(PROGRAM)
    start = asyncio.create_subprocess_exec

    async def instead(python: str, _m: str, _name: str, *arguments: str, **how: Any) -> Any:
        return await start(python, str(program), *arguments, **how)

    monkeypatch.setattr(module.asyncio, "create_subprocess_exec", instead)
    launch = RankLaunch(
        job="q",
        spec={"spec": {"template": {"annotation": "\u00e9" * MAX_BYTES}}},
        term=1,
        attempt=1,
        rank=0,
        world_size=1,
        local_rank=0,
        local_world_size=1,
        node="n0",
        node_rank=0,
        store_host="127.0.0.1",
        store_port=1,
        run_dir=tmp_path,
        rank_file=tmp_path / "ranks" / "n0-0.rank",
        resume=None,
        lineage=dict.fromkeys(range(500)),
        tier="durable",
        save_every_steps=0,
        snapshot_folders=(),
        interface="lo",
    )

    async def main() -> int:
        zygote = Zygote(engine=True)
        async with asyncio.timeout(30.0):
            try:
                return await zygote.fork_rank(launch, tmp_path / "rank-0.log")
            finally:
                await zygote.close()

    size = asyncio.run(main())
    written = launch.rank_file.with_suffix(".json")
    assert size == written.stat().st_size > 6 * MAX_BYTES
    assert launch_from_json(json.loads(written.read_text())) == launch
