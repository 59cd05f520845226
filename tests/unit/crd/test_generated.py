"""The committed CRDs are what the models give."""

from __future__ import annotations

from megascale_operator.crd.__main__ import main
from megascale_operator.crd.generate import FOLDER, rendered


def test_committed_files_are_current() -> None:
    assert {path.name: path.read_text() for path in FOLDER.iterdir()} == rendered()


def test_check_says_which_file_is_stale(tmp_path, capsys) -> None:
    assert main(["--check", "--folder", str(tmp_path)]) == 1
    assert str(tmp_path / "megascale.io_trainingjobs.yaml") in capsys.readouterr().err
    assert main(["--folder", str(tmp_path)]) == 0
    assert main(["--check", "--folder", str(tmp_path)]) == 0
    assert capsys.readouterr().err == ""
