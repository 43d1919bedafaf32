"""The commands of README, docs/ and examples/: run against one real server, they print what the text says.

In a page, a block of `bash` or `python` right before a block of `text` is run, in the page's order; `sh` is only shown.
A file of examples/ is run whole, and says behind `# >` what it prints. Lines are parts of what is printed, in order.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import httpx
import pytest

from benchmarks.server_process import free_port

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
URL = "http://127.0.0.1:8000"
INTERPRETERS = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
BLOCKS = re.compile(r"^```(bash|python)\n((?:(?!```).*\n)*)```\n```text\n((?:(?!```).*\n)*)```", re.MULTILINE)
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted(path.name for path in (ROOT / "examples").iterdir() if path.suffix in (".py", ".sh"))


class Example(NamedTuple):
    """A command as a process takes it, and parts of what it prints, in order."""

    command: list[str]
    expected: list[str]


def blocks(page: str) -> list[Example]:
    found = BLOCKS.findall((ROOT / page).read_text(encoding="utf-8"))
    return [Example([*INTERPRETERS[language], code], expected.splitlines()) for language, code, expected in found]


def example_file(name: str) -> Example:
    path = ROOT / "examples" / name
    expected = re.findall(r"^# > (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return Example([sys.executable if path.suffix == ".py" else "bash", str(path)], expected)


class Server(NamedTuple):
    url: str
    state: Path


@pytest.fixture(scope="module")
def demo(oracle: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start the demo, as `peftserve serve` without a model does, on a free port, with what docs/sources.md sets."""
    folder, port = tmp_path_factory.mktemp("demo"), free_port()
    command = [sys.executable, "-m", "peftserve.server.cli.main", "serve", "--port", str(port), "--num-threads", "1"]
    command += ["--allow-adapter-source", "http", "--allow-source-host", "127.0.0.1:8765", "--allow-private-sources"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--state-dir", str(folder / "state")], stdout=log, stderr=log)
    server = oracle.RunningServer(process, f"http://127.0.0.1:{port}", folder / "state", folder / "log")
    try:
        server.wait_until(server._is_ready, "be ready")
        yield Server(server.url, server.state)
    finally:
        assert server.stop() == 0


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_a_page_prints_what_it_says(page: str, demo: Server) -> None:
    """Run the blocks in the page's order: later ones use what earlier ones made."""
    for example in blocks(page):
        check(example, demo)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_prints_what_it_says(name: str, demo: Server) -> None:
    example = example_file(name)
    assert example.expected
    check(example, demo)


def test_readme_has_a_first_try_that_runs() -> None:
    assert len(blocks("README.md")) >= 3


def test_the_table_of_metrics_is_all_of_them(demo: Server) -> None:
    """Compare the table with a scrape; those of a GPU and of state are in the table and not in this scrape."""
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `((?:peftserve|vllm)[:_][a-z_]+)`", text, re.MULTILINE))
    scraped = re.findall(r"^# HELP (\S+)", httpx.get(f"{demo.url}/metrics").text, re.MULTILINE)
    not_here = {
        *("peftserve_cuda_graphs", "peftserve_state_slots"),
        *("peftserve_replicas", "peftserve_sequences_dealt_total"),
    }
    assert listed - not_here == {name for name in scraped if not name.endswith("_created")}


def check(example: Example, demo: Server) -> None:
    printed = run(example.command, demo)
    place = 0
    for line in example.expected:
        place = printed.find(line, place) + len(line)
        assert place >= len(line), f"{example.command[-1]}\nprinted\n{printed}\nand not, from there on: {line}"


def run(command: list[str], demo: Server) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environ = {**os.environ, "PATH": path, "NO_PROXY": "*", "OMP_NUM_THREADS": "1"}
    environ |= {"PEFTSERVE_URL": demo.url, "PEFTSERVE_STATE_DIR": str(demo.state)}
    command = [*command[:-1], command[-1].replace(URL, demo.url)]
    finished = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=200)
    assert finished.returncode == 0, f"{command[-1]}\n{finished.stdout}\n{finished.stderr}"
    return finished.stdout
