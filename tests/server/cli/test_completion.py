import shutil
import subprocess

import pytest

from peftserve.server.cli.main import main


def test_a_shell_takes_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert "--max-loras" in script
    bash = shutil.which("bash")
    assert bash is not None
    assert subprocess.run([bash, "-n"], input=script, text=True, check=False).returncode == 0


def test_fish_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "fish"]) == 2
    assert "'fish', but for bash, zsh" in capsys.readouterr().err
