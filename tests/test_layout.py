"""The rules of the layout, kept by reading: one test a rule, which lists all that breaks it."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("kernels", "adapters", "server")
SOURCES = sorted(path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
MAY_IMPORT = {"kernels": {"kernels"}, "adapters": {"adapters"}, "server": set(FOLDERS)}
FORBIDDEN = {
    "server/engine": {"fastapi", "starlette", "pydantic", "uvicorn", "httpx"},
    "server/api": {"torch", "triton", "peftserve.kernels"},
    "server/wire": {"torch", "transformers", "fastapi"},
    "server/cli": {"torch", "transformers", "fastapi"},
    "server/demo": {"torch", "transformers", "fastapi"},
    "server/deploy": {"torch", "transformers", "fastapi"},
    "kernels": {"transformers", "fastapi", "peft"},
    "adapters": {"fastapi", "pydantic", "peft", "transformers"},
    "server": {"peft", "tests", "benchmarks", "pickle", "ray"},
}
# PEFT is an extra of the package, for one module; another runs the base once, with a cache of transformers' own. Ray is
# one for those that start replicas on it: what deals sequences out does not know it.
ALLOWED = {
    "adapters/peft/probe.py": {"peft"},
    "adapters/peft/prefill.py": {"transformers"},
    "server/deploy/on_ray/fleet.py": {"ray"},
    "server/deploy/on_ray/replica.py": {"ray"},
}
EXTRAS = {
    "adapters/peft/probe.py": {"peft"},
    "server/cli/load/report.py": {"matplotlib"},
    "server/deploy/on_ray/fleet.py": {"ray"},
    "server/deploy/on_ray/replica.py": {"ray"},
    "server/api/watching/traces.py": {"opentelemetry"},
}
MIRRORED = (*FOLDERS, "benchmarks")
# Tests of what no one module is: an invariant of all modules of the folder, or what several give together.
OF_A_FOLDER = {
    "adapters/peft/test_example_method.py",
    "adapters/peft/test_quantised.py",
    "adapters/peft/test_relatives.py",
    "adapters/test_without_torch.py",
    "kernels/bypass/test_backends.py",
    "kernels/bypass/triton/test_traffic.py",
    "kernels/test_compiled.py",
    "server/api/routes/test_tenants.py",
    "server/engine/model/test_pairs.py",
    "server/engine/sampling/test_no_waiting.py",
}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


@cache
def imports(path: Path) -> frozenset[str]:
    """Return the full names of all that a module imports, also inside functions and for type checkers."""
    return frozenset(_imports(("peftserve", *path.parent.parts), tree(path)))


def _imports(package: tuple[str, ...], module: ast.Module) -> Iterator[str]:
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            whole = ".".join([*start, *([node.module] if node.module else [])])
            yield from (f"{whole}.{alias.name}" for alias in node.names)


def is_below(name: str, package: str) -> bool:
    """Tell whether a dotted name is a package or something in it."""
    return f"{name}.".startswith(f"{package}.")


def assert_none(broken: set[str]) -> None:
    assert not broken, "\n".join(["", *sorted(broken)])  # pytest itself would cut a long set short


def test_imports_go_one_way() -> None:
    broken = {
        f"{path} imports {name}"
        for path in SOURCES
        for name in imports(path)
        if name.startswith("peftserve.") and name.split(".")[1] not in MAY_IMPORT[path.parts[0]]
    }
    assert_none(broken)


def test_what_a_folder_must_not_know() -> None:
    broken = {
        f"{path} imports {name}"
        for path in SOURCES
        for name in imports(path)
        if any(is_below(name, ban) for ban in forbidden(path.as_posix()))
    }
    assert_none(broken)


def forbidden(path: str) -> set[str]:
    banned = {name for folder, names in FORBIDDEN.items() if path.startswith(f"{folder}/") for name in names}
    return banned - ALLOWED.get(path, set())


def test_extras_are_imported_inside_functions() -> None:
    broken = set()
    for path, extras in EXTRAS.items():
        top = tree(Path(path)).body
        named = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
        named |= {node.module or "" for node in top if isinstance(node, ast.ImportFrom)}
        broken |= {f"{path} imports {name}" for name in named if name.partition(".")[0] in extras}
    assert_none(broken)


def test_inside_a_folder_imports_are_relative() -> None:
    broken = {
        f"{path} imports {node.module} by its full name"
        for path in SOURCES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ImportFrom)
        and not node.level
        and is_below(node.module or "", f"peftserve.{path.parts[0]}")
    }
    assert_none(broken)


def test_every_folder_with_code_is_in_the_package_list() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    with_code = {"peftserve." + ".".join(path.parent.parts) for path in SOURCES} | {"peftserve"}
    assert set(listed) == with_code, "add to or take from `packages` in pyproject.toml"


def test_only_packages_below_the_top_have_an_init() -> None:
    folders = {path.parent for path in SOURCES}
    assert {folder for folder in folders if (ROOT / folder / "__init__.py").exists()} == folders - {*map(Path, FOLDERS)}


def test_tests_lie_where_what_they_test_lies() -> None:
    """`tests/a/test_b.py` is of module or folder `a/b`, or `test_b_more.py` of one of its sides."""
    tests = {path.relative_to(ROOT / "tests") for top in MIRRORED for path in (ROOT / "tests" / top).rglob("test_*.py")}
    homeless = {path for path in tests if not modules_of(path)}
    broken = {f"tests/{path}: {advice(path)}" for path in homeless if path.as_posix() not in OF_A_FOLDER}
    assert_none(broken)
    assert {path.as_posix() for path in homeless} == OF_A_FOLDER, "OF_A_FOLDER names tests that are not, or no longer"


def modules_of(test: Path) -> list[str]:
    """Return the names of modules beside a test, or of its folder, that the test's name begins with."""
    name = test.stem.removeprefix("test_")
    names = {path.stem.lstrip("_") for path in (ROOT / test.parent).glob("*") if path.suffix in ("", ".py")}
    return [there for there in {*names, *([test.parent.name] if names else [])} if f"{name}_".startswith(f"{there}_")]


def advice(test: Path) -> str:
    name = test.name.removeprefix("test_")
    found = sorted(str(path.relative_to(ROOT)) for path in (ROOT / test.parts[0]).rglob(name))
    return f"moves beside {', '.join(found)}" if found else f"there is no {test.parent / name}"


@pytest.mark.parametrize("name", ["kernels", "adapters"])
def test_a_published_package_of_the_same_name_wins(name: str, tmp_path: Path) -> None:
    """transformers imports Hugging Face's `kernels`: it must find that one, even when run from this folder."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("published = True\n")
    program = f"import sys; sys.path.append({str(tmp_path)!r}); import {name}; assert {name}.published"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


@pytest.mark.slow
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
        ".".join(["peftserve", *path.with_suffix("").parts]) for path in SOURCES if path.parts[:2] == ("server", "api")
    ]
    program = (
        f"import sys, importlib; [importlib.import_module(m) for m in {modules!r}]; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
