"""What the extras promise works with them, and without them the message names the extra."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any


def record(number: int) -> dict[str, Any]:
    """One collective as torch's flight recorder stores it."""
    return {
        "record_id": number,
        "process_group": ("0", "default_pg"),
        "collective_seq_id": number + 1,
        "p2p_seq_id": 0,
        "op_id": number + 1,
        "profiling_name": "nccl:all_reduce",
        "time_created_ns": number,
        "input_sizes": [[4]],
        "input_dtypes": ["Float"],
        "output_sizes": [[4]],
        "output_dtypes": ["Float"],
        "state": "scheduled",
        "time_discovered_started_ns": None,
        "time_discovered_completed_ns": None,
        "retired": False,
        "timeout_ms": 600_000,
        "is_p2p": False,
        "frames": [{"name": "step", "filename": "train.py", "line": 7}],
    }


def test_torchfrtrace_prints_the_collectives_of_each_rank(tmp_path: Path) -> None:
    groups = {"0": {"name": "0", "desc": "default_pg", "ranks": "[0, 1]"}}
    for rank, collectives in enumerate((2, 1)):
        dump = {"version": "2.10", "pg_config": groups, "entries": [record(n) for n in range(collectives)]}
        (tmp_path / f"rank-{rank}").write_bytes(pickle.dumps(dump))
    reader = Path(sys.executable).with_name("torchfrtrace")
    done = subprocess.run(
        [reader, "--just_print_entries", tmp_path, "--prefix", "rank-"],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    head, _, first, second = (done.stdout + done.stderr).strip().splitlines()
    assert head.split() == ["Rank", "0", "Rank", "1"]
    assert (first.count("all_reduce"), second.count("all_reduce")) == (2, 1)


def test_kubectl_megascale_names_the_extra_it_needs() -> None:
    code = (
        "import sys; sys.modules['kubernetes'] = None; sys.argv[1:] = ['status']\n"
        "from megascale_operator.plugin.__main__ import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.startswith("kubectl megascale: no module kubernetes")
    assert done.stderr.endswith("pip install 'megascale[kubernetes]'\n")
    assert "Traceback" not in done.stderr


def test_a_tokenizer_without_its_extra_is_not_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    code = (
        "import sys; sys.modules['tokenizers'] = None\n"
        "from pathlib import Path; from megascale.data.tokenizer import BpeTokenizer\n"
        f"BpeTokenizer(Path({str(path)!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stderr.endswith(
        "a BPE tokenizer needs the `tokenizers` package: pip install 'megascale[data]'\n"
    )
    assert "is no tokenizer.json" not in done.stderr
