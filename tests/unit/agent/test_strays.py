"""Everything that ranks left behind is ended, and nothing that is the agent's own."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.multiprocess

AGENT = """
import os, signal, subprocess, sys, time
from megascale.agent.processes import helpers, noted_as_helper
from megascale.agent.strays import Strays
from megascale.prctl import become_subreaper

DETACHED = '''
import ctypes, os, subprocess, sys
sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
one = subprocess.Popen(sleeper, start_new_session=True, env={})
two = subprocess.Popen(sleeper + ["x" * 3000], preexec_fn=os.setsid)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        ctypes.CDLL(None).prctl(15, b"metrics-server", 0, 0, 0)
        print(os.getpid(), flush=True)
        os.execve(sleeper[0], sleeper, {})
    os._exit(0)
print(one.pid, two.pid, flush=True)
os.wait()
os._exit(0)
'''

def running(pid):
    try:
        state = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"

known = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
if SUBREAPER:
    become_subreaper()
rank = subprocess.Popen([sys.executable, "-c", DETACHED], stdout=subprocess.PIPE, text=True)
pids = [int(word) for _ in range(2) for word in rank.stdout.readline().split()]
rank.wait()
assert len(pids) == 3 and all(running(pid) for pid in pids), pids
with noted_as_helper(helper.pid):
    count = Strays(lambda: {known.pid, *helpers()}).kill()
print(count, [running(pid) for pid in pids], known.poll(), helper.poll())
for pid in (*pids, known.pid, helper.pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""


def played(*, subreaper: bool) -> str:
    code = textwrap.dedent(AGENT).replace("SUBREAPER", str(subreaper))
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_detached_processes_end_and_the_agents_own_stay() -> None:
    assert played(subreaper=True) == "3 [False, False, False] None None"


def test_a_process_that_adopts_no_orphans_kills_no_child_it_does_not_know() -> None:
    assert played(subreaper=False).startswith("0 [True, True, True]")
