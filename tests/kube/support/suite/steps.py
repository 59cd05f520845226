"""The training script of most jobs in the suite: its steps only take time, and each is recorded.

Usage: steps.py FOLDER STEPS STEP_SECONDS. Each rank resumes from its own file in FOLDER. Without torch, a
launch takes well under a second.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from megascale import monitor

LEAVE = 76


def main() -> int:
    folder, steps, step_s = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / f"rank-{os.environ['RANK']}"
    done = int(kept.read_text()) if kept.exists() else 0
    for step in range(done + 1, steps + 1):
        time.sleep(step_s)
        fresh = kept.with_suffix(".new")
        fresh.write_text(str(step))
        fresh.replace(kept)
        monitor.step(step, loss=1.0 / step, tokens=step * 10)
        if monitor.stop_requested():
            return LEAVE
    return 0


sys.exit(main())
