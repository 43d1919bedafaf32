"""The README: its commands run against a real server and print what it says, and its generated parts are the code's."""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
URL = "http://127.0.0.1:8000"


class Example(NamedTuple):
    """A fenced block of commands, and the lines of the block of text right after it: what they print."""

    language: str
    code: str
    expected: list[str]


def examples() -> list[Example]:
    blocks = re.findall(r"^```(bash|python)\n((?:(?!```).*\n)*)```\n```text\n((?:(?!```).*\n)*)```", TEXT, re.MULTILINE)
    return [Example(language, code, expected.splitlines()) for language, code, expected in blocks]


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme", ROOT / "docs" / "readme.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_table_and_tree_are_the_codes_own(generator: ModuleType) -> None:
    assert generator.render(TEXT) == TEXT, "run `make readme`"


def test_every_file_says_what_it_is(generator: ModuleType) -> None:
    """A file in the tree without a text has no docstring."""
    bare = [line for line in generator.tree().splitlines() if re.fullmatch(r"\s*\S+\.py\s*", line)]
    assert not bare


@pytest.mark.parametrize("target", ["serve", "test", "check", "readme", "links"])
def test_targets_are_in_the_makefile(target: str) -> None:
    assert f"make {target}" in TEXT or target == "links"
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def demo_url(oracle: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The demo, as `peftserve serve` without a model starts it, on a free port."""
    folder, port = tmp_path_factory.mktemp("demo"), oracle.free_port()
    command = [sys.executable, "-m", "peftserve.server.cli.main", "serve", "--port", str(port), "--num-threads", "1"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--state-dir", str(folder / "state")], stdout=log, stderr=log)
    server = oracle.RunningServer(process, f"http://127.0.0.1:{port}", folder / "state", folder / "log")
    try:
        server.wait_until(server._is_ready, "be ready")
        yield server.url
    finally:
        assert server.stop() == 0


@pytest.mark.slow
def test_the_session_prints_what_the_readme_says(demo_url: str) -> None:
    """In the README's order, since later commands use what earlier ones made."""
    found = examples()
    assert len(found) >= 8
    for example in found:
        printed = _run(example, demo_url)
        for line in example.expected:
            assert line in printed, f"{example.code}\nprinted\n{printed}"


def _run(example: Example, url: str) -> str:
    code = example.code.replace(URL, url)
    interpreter = ["bash", "-euo", "pipefail", "-c"] if example.language == "bash" else [sys.executable, "-c"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environ = {**os.environ, "PATH": path, "PEFTSERVE_URL": url, "NO_PROXY": "*"}
    finished = subprocess.run([*interpreter, code], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, f"{example.code}\n{finished.stderr}"
    return finished.stdout
