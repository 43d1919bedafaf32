"""pyproject.toml declares what the package imports, and nothing else; what may break it has an upper bound."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [path for folder in ("kernels", "adapters", "server") for path in (ROOT / folder).rglob("*.py")]
# Where a package is not imported by the name that it is installed by.
NAMED = {
    "huggingface-hub": "huggingface_hub",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry",
    "opentelemetry-sdk": "opentelemetry",
    "prometheus-client": "prometheus_client",
    "pydantic-core": "pydantic_core",
    "python-multipart": "python_multipart",
    "ray[serve]": "ray",
}
# Whose private parts or whose frequent breaking releases we depend on.
BOUNDED = {"torch", "transformers", "fastapi", "starlette", "uvicorn", "prometheus-client", "python-multipart"}


def project() -> dict[str, dict[str, str]]:
    """By extra, `""` for none: package to its requirement."""
    content = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = {"": content["dependencies"], **content["optional-dependencies"]}
    return {extra: {re.split(r"[<>=; ]", line)[0]: line for line in lines} for extra, lines in lists.items()}


def imports(path: Path) -> Iterator[str]:
    """Names at the top of all that a module imports, inside functions too, but for Python's own and ours."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        yield from (name.partition(".")[0] for name in names)


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    imported = {name for path in SOURCES for name in imports(path)} - sys.stdlib_module_names - {"peftserve"}
    by_extra = {extra: {NAMED.get(package, package) for package in packages} for extra, packages in project().items()}
    assert by_extra[""] <= imported, "declared, and imported by nothing"
    assert imported <= set().union(*by_extra.values()), "imported, and declared nowhere"


def test_upper_bounds() -> None:
    assert {package for package, line in project()[""].items() if "<" in line} >= BOUNDED
