"""Shell completion: installed, it completes commands and options, and never loads torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LIGHT = "import sys; sys.argv[0] = 'metricli'\nfrom metricli.cli.launch import main\n"
LIGHT += "try:\n    main()\nfinally:\n    assert not {'torch', 'timm', 'pandas'} & set(sys.modules)\n"


def metricli(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LIGHT, *words],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def completed(line: str) -> list[str]:
    words = line.split(" ")
    asked = {"_METRICLI_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    done = metricli(**asked)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_commands_and_options_are_completed() -> None:
    assert completed("metricli pr") == ["predict"]
    assert completed("metricli train --res") == ["--resume"]


def test_it_is_installed_for_a_shell(tmp_path: Path) -> None:
    done = metricli(
        "--install-completion", "bash", HOME=str(tmp_path), _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1"
    )
    assert done.returncode == 0, done.stderr
    script = tmp_path / ".bash_completions" / "metricli.sh"
    assert f"source '{script}'" in (tmp_path / ".bashrc").read_text()
    assert "_METRICLI_COMPLETE=complete_bash" in script.read_text()


def test_a_home_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    home = tmp_path / "file" / "home"
    done = metricli(
        "--install-completion", "bash", HOME=str(home), _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1"
    )
    assert done.returncode == 7
    assert done.stderr.startswith(f"error: cannot write '{tmp_path}")
    assert done.stderr.endswith("for completion: Not a directory; --show-completion prints the script\n")


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_itself_completes(tmp_path: Path) -> None:
    shown = metricli("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert shown.returncode == 0, shown.stderr
    (tmp_path / "metricli").write_text(f"#!{sys.executable}\n{LIGHT}")
    (tmp_path / "metricli").chmod(0o755)
    script = f"""{shown.stdout}
COMP_WORDS=(metricli inspect-d); COMP_CWORD=1
_metricli_completion metricli
echo "${{COMPREPLY[@]}}"
"""
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["inspect-dataset"], done.stderr
