"""Four nodes in network namespaces, real gloo between them; a slow node and a slow link are distinguished."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from check_nodes import SLOW, CheckNode, NotPermittedError, Switch, nodes_behind

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def switch() -> Iterator[Switch]:
    with contextlib.ExitStack() as stack:
        try:
            found = stack.enter_context(Switch(4))
        except NotPermittedError as error:
            pytest.skip(f"NOT TESTED HERE: slow links and nodes in network namespaces: {error}")
        yield found


@pytest.fixture(scope="module")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("token") / "token"
    path.write_text("b5e1c6f0")
    return path


@pytest.fixture(scope="module")
def nodes(switch: Switch, token_file: Path) -> Iterator[list[CheckNode]]:
    with nodes_behind(switch, token_file) as found:
        yield found


def diagnose(switch: Switch, token_file: Path) -> tuple[int, dict[str, Any]]:
    """`megascale diagnose` beside the bridge; exit code and document."""
    addresses = ",".join(f"{switch.host(i)}:7070" for i in range(switch.count))
    command = [
        str(Path(sys.executable).with_name("megascale")),
        "diagnose",
        "--light",
        "--json",
        "--at-once",
        "1",
    ]
    command += ["--timeout", "110"]  # four nodes share two cores, one after the other
    done = subprocess.run(
        [*switch.inside(None), *command, "--nodes", addresses, "--token-file", str(token_file)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def slow_pairs(document: dict[str, Any]) -> list[frozenset[str]]:
    """Pairs several times as slow as the fastest: what the network is set to, not what is concluded."""
    fastest = min(pair["seconds"] for pair in document["pairs"])
    return [frozenset(pair["nodes"]) for pair in document["pairs"] if pair["seconds"] > 3 * fastest]


# Sound nodes pass in test_diagnose_nodes, and the two tests below convict nobody but the slow node or link.
@pytest.mark.proof
@pytest.mark.usefixtures("nodes")
def test_equal_nodes_are_healthy(switch: Switch, token_file: Path):
    code, document = diagnose(switch, token_file)
    assert (code, document["verdict"], document["convicted"], document["links"]) == (0, "healthy", [], [])
    assert len(document["pairs"]) == 6
    assert slow_pairs(document) == []


@pytest.mark.usefixtures("nodes")
def test_a_node_with_a_tenth_of_the_bandwidth_is_convicted(switch: Switch, token_file: Path):
    slow = 2
    switch.shape_node(slow, SLOW)
    try:
        code, document = diagnose(switch, token_file)
    finally:
        switch.restore()
    assert document["convicted"] == [f"n{slow}"], document["pairs"]
    assert document["links"] == []
    assert code == 1
    assert slow_pairs(document)
    reason = next(node["reason"] for node in document["nodes"] if node["node"] == f"n{slow}")
    assert "pairs" in reason


@pytest.mark.usefixtures("nodes")
def test_a_slow_link_between_good_nodes_is_called_a_link(switch: Switch, token_file: Path):
    switch.shape_link(1, 2, SLOW)
    try:
        code, document = diagnose(switch, token_file)
    finally:
        switch.restore()
    assert document["convicted"] == [], document["pairs"]
    assert [set(link) for link in document["links"]] == [{"n1", "n2"}]
    assert (code, document["verdict"]) == (1, "link")
    assert slow_pairs(document) == [{"n1", "n2"}]
