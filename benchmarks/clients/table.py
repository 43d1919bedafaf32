"""Which client can do what with the server: runs the programs beside this one, each in the clients' own environment.

    make clients
    peftserve serve &
    python -m benchmarks.clients.table --out docs/clients.md

`--others` runs those that take longer to install, each in an environment of its own that uv and npm make.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).parent
PYTHON = HERE.parents[1] / ".clients" / "bin" / "python"
REQUIREMENTS = HERE / "requirements.txt"
FEATURES = {
    "chat": "chat",
    "stream": "streams",
    "completions": "completions",
    "adapters": "adapters by name",
    "logprobs": "logprobs",
    "tools": "tools",
    "structured": "structured output",
    "embeddings": "embeddings",
    "responses": "responses",
    "messages": "Anthropic's messages",
    "errors": "errors by class",
}
ENVIRONMENT = {  # nothing that asks elsewhere
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LANGSMITH_TRACING": "false",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}
TIMEOUT = 600  # seconds for one client, with its installation

Found = Mapping[str, str | None]  # feature to what went wrong; None where nothing did


@dataclass(frozen=True)
class Client:
    """A client, and the program that asks by it. packages: what an environment of its own has, if it needs one."""

    name: str
    program: str
    packages: tuple[str, ...] = ()

    def command(self, url: str, folder: Path) -> list[str]:
        """Return what runs it. folder: an empty one of its own."""
        program = str(HERE / self.program)
        if self.program.endswith(".mjs"):
            subprocess.run(["npm", "install", "--silent", *self.packages], cwd=folder, check=True, timeout=TIMEOUT)
            beside = folder / self.program  # where node looks for its packages
            beside.write_bytes((HERE / self.program).read_bytes())
            return ["node", str(beside), url]
        if self.packages:
            packages = [argument for package in self.packages for argument in ("--with", package)]
            return ["uv", "run", "--quiet", "--no-project", "--isolated", *packages, "python", program, url]
        return [str(PYTHON), program, url]


INSTALLED = (
    Client("openai", "openai_python.py"),
    Client("litellm", "litellm_client.py"),
    Client("langchain-openai", "langchain_client.py"),
    Client("instructor", "instructor_client.py"),
    Client("pydantic-ai", "pydantic_ai_client.py"),
    Client("outlines", "outlines_client.py"),
)
OTHERS = (
    Client("openai for JavaScript 6.49.0", "openai_javascript.mjs", ("openai@6.49.0",)),
    Client(
        "llama-index-llms-openai-like 0.8.1",
        "llama_index_client.py",
        ("llama-index-llms-openai-like==0.8.1", "llama-index-embeddings-openai-like==0.4.0"),
    ),
    Client("inspect-ai 0.3.285", "inspect_ai_client.py", ("inspect-ai==0.3.285", "openai>=3.4")),
    Client("lm-eval 0.4.13", "lm_eval_client.py", ("lm-eval[api]==0.4.13",)),
    Client("guidance 0.3.1", "guidance_client.py", ("guidance==0.3.1", "openai<3")),
)


def check(client: Client, url: str) -> Found:
    """Run one client's program. Raises CalledProcessError where it does not get to its checks."""
    environ = {**os.environ, **ENVIRONMENT}
    with TemporaryDirectory() as folder:
        command = client.command(url, Path(folder))
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=True, env=environ)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"feature"')]
    return {line["feature"]: None if line["ok"] else line["error"] for line in lines}


def check_all(clients: Sequence[Client], url: str) -> dict[str, Found]:
    """Run all programs, two at a time. Returns what was found by the name of the client."""
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda client: check(client, url), clients)
        return dict(zip((client.name for client in clients), found, strict=True))


def versions() -> dict[str, str]:
    """Return the version of each client that `make clients` installs."""
    lines = [line for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines() if "==" in line]
    pairs = (line.partition("==")[::2] for line in lines)
    return {name.partition("[")[0].removesuffix("-slim"): version for name, version in pairs}


def table(found: Mapping[str, Found]) -> str:
    """Return a row for each client, with a cell for each feature: empty where the client has no such thing."""
    pins = versions()
    rows = [["client", *FEATURES.values()], ["---"] * (len(FEATURES) + 1)]
    for client, features in found.items():
        name = f"{client} {pins[client]}" if client in pins else client
        rows.append([name, *(_cell(features, feature) for feature in FEATURES)])
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def _cell(features: Found, feature: str) -> str:
    if feature not in features:
        return ""
    return "yes" if features[feature] is None else "no"


def put(page: str, mark: str, text: str) -> str:
    """Return the page with a table in the place that has this mark."""
    begin, end = f"<!-- {mark} -->\n", f"<!-- /{mark} -->\n"
    before, _, rest = page.partition(begin)
    return before + begin + text + end + rest.partition(end)[2]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of a server with the demo")
    parser.add_argument("--others", action="store_true", help="those that `make clients` does not install")
    parser.add_argument("--out", type=Path, help="a page to put the table in; without it, it is printed")
    chosen = parser.parse_args(arguments)
    found = check_all(OTHERS if chosen.others else INSTALLED, chosen.url)
    for line in _complaints(found):
        print(line, file=sys.stderr)
    text = table(found)
    if chosen.out is None:
        print(text, end="")
    else:
        page = chosen.out.read_text(encoding="utf-8")
        chosen.out.write_text(put(page, "others" if chosen.others else "clients", text), encoding="utf-8")
    return 0


def _complaints(found: Mapping[str, Found]) -> Iterable[str]:
    for client, features in found.items():
        yield from (f"{client}: {feature}: {error}" for feature, error in features.items() if error is not None)


if __name__ == "__main__":
    sys.exit(main())
