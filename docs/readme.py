"""Rewrites the parts of the README that the code knows better: the table of settings and the tree. `make readme`."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from peftserve.server.cli.settings import SETTINGS, Setting

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
LONGEST = 100  # characters of what the tree says of a file
TOPS = {
    "kernels": "the bypass of a batch, in torch and in Triton",
    "adapters": "what an adapter is: checkpoints, store, registry, router",
    "server": "the engine, the API and the command line",
    "benchmarks": "what the speeds are measured with",
    "examples/demo": "how the demo was trained",
}


def render(text: str) -> str:
    """The README's text with every generated part made anew."""
    for name, content in (("settings", settings_table()), ("tree", tree())):
        begin, end = f"<!-- {name}: made by `make readme` -->", f"<!-- end of {name} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        text, count = pattern.subn(lambda _, body=f"{begin}\n{content}\n{end}": body, text)
        if count != 1:
            raise ValueError(f"the README has {count} parts named {name}, not 1")
    return text


def settings_table() -> str:
    rows = [f"| {_flag(setting)} | {_default(setting)} | {setting.help} |" for setting in SETTINGS]
    return "\n".join(["| setting | default | meaning |", "| --- | --- | --- |", *rows])


def _flag(setting: Setting) -> str:
    name = "MODEL" if setting.name == "model" else f"--{setting.name} {setting.metavar}".strip()
    return "`" + name.replace("|", "\\|") + "`"


def _default(setting: Setting) -> str:
    if setting.shown or setting.default is None:
        return setting.shown
    return ("yes" if setting.default else "no") if setting.is_switch else f"`{setting.default}`"


def tree() -> str:
    lines = [line for top, about in TOPS.items() for line in (f"{top}/  {about}", *_files(top))]
    width = max(len(line.split("  ", 1)[0].lstrip("\0")) + line.count("\0") * 3 for line in lines)
    return "\n".join(["```", *(_aligned(line, width) for line in lines), "```"])


def _files(top: str) -> Iterator[str]:
    """`path  about` of every module and every sub-package below a folder; each \\0 stands for one level."""
    for path in sorted((ROOT / top).rglob("*.py")):
        inside = path.relative_to(ROOT / top)
        if any(part.startswith(".") for part in inside.parts):
            continue  # unpacked or made, not ours
        depth = "\0" * len(inside.parts)
        if path.name != "__init__.py":
            yield f"{depth}{path.name}  {_about(path)}"
        elif len(inside.parts) > 1:
            yield f"{depth[1:]}{path.parent.name}/  {_about(path)}"


def _aligned(line: str, width: int) -> str:
    name, about = line.split("  ", 1)
    name = name.replace("\0", "   ")
    return f"{name:<{width}}  {about}".rstrip()


def _about(path: Path) -> str:
    """The first sentence of a module's docstring, or as much of it as fits a line."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    sentence = re.split(r"[.;](?=\s+[A-Z`]|$)", text.split("\n\n")[0].replace("\n", " "), maxsplit=1)[0]
    while len(sentence) > LONGEST:
        sentence = re.split(r"[.,;:] (?!.*[.,;:] )| \((?!.* \()", sentence)[0]
    return sentence


def main() -> int:
    README.write_text(render(README.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
