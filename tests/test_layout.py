"""The rules of the layout, kept by reading: which folder imports which, and that all of it is in the wheel."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("kernels", "adapters", "server")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
MAY_IMPORT = {"kernels": {"kernels"}, "adapters": {"adapters"}, "server": set(FOLDERS)}
FORBIDDEN = {
    "server/engine": {"fastapi", "starlette", "pydantic", "uvicorn", "httpx"},
    "server/api": {"torch", "triton", "peftserve.kernels"},
    "server/wire": {"torch", "transformers", "fastapi"},
    "server/cli": {"torch", "transformers", "fastapi"},
    "server/demo": {"torch", "transformers", "fastapi"},
    "kernels": {"transformers", "fastapi", "peft"},
    "adapters": {"fastapi", "pydantic", "peft", "transformers"},
    "server": {"peft", "tests", "benchmarks", "pickle"},
}
# PEFT is an extra of the package, for one module; another runs the base once, with a cache of transformers' own.
ALLOWED = {"adapters/peft/probe.py": {"peft"}, "adapters/peft/prefill.py": {"transformers"}}
EXTRAS = {
    "adapters/peft/probe.py": {"peft"},
    "server/cli/load/plot.py": {"matplotlib"},
}


def imports(path: Path) -> Iterator[str]:
    """Full names of all that a module imports, those inside functions and for type checkers too."""
    package = ("peftserve", *path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*start, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_imports_go_one_way(path: Path) -> None:
    allowed = MAY_IMPORT[path.relative_to(ROOT).parts[0]]
    ours = {name.split(".")[1] for name in imports(path) if name.startswith("peftserve.")}
    assert ours <= allowed


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_what_a_folder_must_not_know(path: Path) -> None:
    folder = path.relative_to(ROOT).as_posix()
    banned = {name for prefix, names in FORBIDDEN.items() if folder.startswith(f"{prefix}/") for name in names}
    banned -= ALLOWED.get(folder, set())
    found = {name for name in imports(path) for ban in banned if f"{name}.".startswith(f"{ban}.")}
    assert not found


def test_extras_are_imported_inside_functions() -> None:
    for path, extras in EXTRAS.items():
        top = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
        named = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
        named |= {node.module or "" for node in top if isinstance(node, ast.ImportFrom)}
        assert not {name.partition(".")[0] for name in named} & extras


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_inside_a_folder_imports_are_relative(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    absolute = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level]
    own = f"peftserve.{path.relative_to(ROOT).parts[0]}"
    assert not [name for name in absolute if f"{name}.".startswith(f"{own}.")]


def test_every_folder_with_code_is_in_the_package_list() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    with_code = {"peftserve." + ".".join(path.relative_to(ROOT).parent.parts) for path in SOURCES} | {"peftserve"}
    assert set(listed) == with_code, "add to or take from `packages` in pyproject.toml"


def test_only_packages_below_the_top_have_an_init() -> None:
    for path in SOURCES:
        folder = path.relative_to(ROOT).parent
        assert (ROOT / folder / "__init__.py").exists() == (len(folder.parts) > 1), folder


@pytest.mark.parametrize("name", ["kernels", "adapters"])
def test_a_published_package_of_the_same_name_wins(name: str, tmp_path: Path) -> None:
    """transformers imports Hugging Face's `kernels`: it must find that one, even when run from this folder."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("published = True\n")
    program = f"import sys; sys.path.append({str(tmp_path)!r}); import {name}; assert {name}.published"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_the_package_is_imported_without_torch_until_an_engine_is_asked_for() -> None:
    program = """
import sys, peftserve
assert peftserve.__version__ and {*peftserve.__all__} <= {*dir(peftserve)}
from peftserve import EngineConfig, SamplingParams
assert "torch" not in sys.modules
from peftserve import Engine
assert "torch" in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT.parent, check=True)


def test_the_api_imports_no_torch() -> None:
    modules = [
        "peftserve." + ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in SOURCES
        if path.relative_to(ROOT).parts[:2] == ("server", "api")
    ]
    program = (
        f"import sys, importlib; [importlib.import_module(m) for m in {modules!r}]; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
