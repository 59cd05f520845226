"""The generated code is what the contract says."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
GENERATED = ("megascale_pb2.py", "megascale_pb2.pyi", "megascale_pb2_grpc.py")


def test_generated_code_matches_the_proto(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools")
    folder = tmp_path / "megascale" / "rpc"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "megascale" / "rpc" / "megascale.proto", folder)
    arguments = [
        "-I.",
        "--python_out=.",
        "--pyi_out=.",
        "--grpc_python_out=.",
        "megascale/rpc/megascale.proto",
    ]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *arguments], cwd=tmp_path, check=True)
    for name in GENERATED:
        committed = ROOT / "megascale" / "rpc" / name
        assert (folder / name).read_text() == committed.read_text(), "run `make proto`"
