"""The pages against the code: generated parts, messages, codes, settings, links, and files to copy."""

import configparser
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs.generate import PAGES, render
from peftserve.server.cli.main import make_parser
from peftserve.server.cli.settings.table import SETTINGS

from .sources import error_codes, fields_of, says

ROOT = Path(__file__).resolve().parents[2]
WRITTEN = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md", "deploy/README.md"]
WRITTEN += ["deploy/kubernetes/README.md"]
WRITTEN += sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_generated_parts_are_the_codes_own(page: str) -> None:
    assert render(text_of(page), PAGES[page]) == text_of(page), "run `make docs`"


def test_a_part_without_a_place_is_named() -> None:
    with pytest.raises(ValueError, match="0 parts named table"):
        render("no such part", {"table": lambda: ""})


def test_messages_are_the_codes_own() -> None:
    messages = re.findall(r"^\| `(.+?)` \|", text_of("docs/troubleshooting.md"), re.MULTILINE)
    assert len(messages) > 80
    assert [message for message in messages if not says(message)] == []


def test_error_codes_are_all_of_them() -> None:
    rows = re.findall(r"^\| \d[\d, ]* \| (`.+?`) \|", text_of("docs/api.md"), re.MULTILINE)
    listed = {code for row in rows for code in re.findall(r"`([a-z_]+)`", row)}
    assert listed == error_codes()


def test_fields_of_requests_are_all_named() -> None:
    requests = ("ModelRequest", "AnsweredRequest", "GenerationRequest", "CompletionRequest", "ChatRequest")
    fields = {field for request in requests for field in fields_of(request)} - {"named"}
    by_hand = text_of("docs/api.md").partition("<!-- reference")[0]
    assert {field for field in fields if f"`{field}`" not in by_hand} == set()


def test_targets_are_in_the_makefile() -> None:
    said = {target for page in WRITTEN for target in re.findall(r"`?make ([a-z]+)\b", text_of(page))}
    rules = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE))
    assert {"serve", "test", "check", "docs"} <= said & rules


def test_flags_are_settings() -> None:
    """Look at the pages for users and operators; flags of other commands are few."""
    known = {f"--{setting.name}" for setting in SETTINGS} | {f"--no-{s.name}" for s in SETTINGS if s.is_switch}
    others = {"--config", "--url", "--api-key", "--none", "--build", "--out", "--force", "--to"}
    for page in ("docs/configuration.md", "docs/operations.md", "docs/troubleshooting.md", "docs/api.md"):
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text_of(page))) <= known | others, page


def test_toml_is_a_configuration(tmp_path: Path) -> None:
    keys = {setting.key for setting in SETTINGS}
    for block in re.findall(r"^```toml\n(.*?)^```", text_of("docs/configuration.md"), re.MULTILINE | re.DOTALL):
        assert {key.replace("-", "_") for key in tomllib.loads(block)} <= keys


@pytest.mark.parametrize("page", WRITTEN)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL)):
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_compose_file_is_of_this_server() -> None:
    """Compare what the file says of image, settings and volumes with them: there is no Docker here."""
    path = ROOT / "examples" / "compose" / "compose.yaml"
    compose: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    service = compose["services"]["peftserve"]
    assert (path.parent / service["build"]["context"] / "Dockerfile").is_file()
    assert set(service["environment"]) <= {setting.env for setting in SETTINGS}
    state, _, inside = service["volumes"][0].partition(":")
    assert state in compose["volumes"]
    assert f"PEFTSERVE_STATE_DIR={inside}" in text_of("Dockerfile")
    assert service["ports"] == ["127.0.0.1:8000:8000"]
    grace = next(setting.default for setting in SETTINGS if setting.name == "grace-period")
    assert int(service["stop_grace_period"].removesuffix("s")) > grace
    make_parser().parse_args(["serve", *service["command"]])


def test_systemd_unit_is_of_this_server() -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(ROOT / "examples" / "systemd" / "peftserve.service")
    program, *arguments = shlex.split(unit["Service"]["ExecStart"])
    assert program.endswith("/peftserve")
    make_parser().parse_args(arguments)
    assert unit["Service"]["KillMode"] == "mixed"
    grace = next(setting.default for setting in SETTINGS if setting.name == "grace-period")
    assert int(unit["Service"]["TimeoutStopSec"]) > grace
