"""Chromium, and a real server of the demo that has keys, for the page's tests."""

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.server_process import free_port

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Locator, Page

KEY = "key-of-the-tests"
SWITCHES = "--no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update"
PATIENCE = 60_000  # milliseconds


@pytest.fixture(scope="session")
def demo(oracle: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder, port = tmp_path_factory.mktemp("demo"), free_port()
    (folder / "keys").write_text(f"{KEY}\n")
    command = [sys.executable, "-m", "peftserve.server.cli.main", "serve", "--port", str(port), "--num-threads", "1"]
    command += ["--api-key-file", str(folder / "keys"), "--keep-deleted", "600", "--state-dir", str(folder / "state")]
    with (folder / "log").open("wb") as log:
        process = Popen(command, stdout=log, stderr=log)
    server = oracle.RunningServer(process, f"http://127.0.0.1:{port}", folder / "state", folder / "log")
    server.client.headers["authorization"] = f"Bearer {KEY}"
    try:
        server.wait_until(server._is_ready, "be ready")
        yield server
    finally:
        assert server.stop() == 0


@pytest.fixture(scope="module")  # its event loop is in the way of tests of other folders
def chromium() -> Iterator["Browser"]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("there is no chromium on the PATH")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        arguments = [*SWITCHES.split(), "--disable-sync"]
        browser = started.chromium.launch(executable_path=program, args=arguments, headless=True, timeout=PATIENCE)
        yield browser
        browser.close()


@dataclass
class Visit:
    """A user's window on the page.

    outside: addresses of other servers that were asked. faults: of scripts, and what the console calls an error, but
    for answers that refuse something.
    """

    page: "Page"
    context: "BrowserContext"
    server: Any
    outside: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.set_default_timeout(PATIENCE)
        self.page.on("request", lambda request: self._note_request(request.url))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", self._note_message)

    def open(self, part: str = "compare", path: str = "/") -> "Page":
        """Open the page at one of its parts, and return it once all of them take what a user does."""
        self.page.goto(f"{self.server.url}{path}#{part}")
        self._wait_to_begin()
        return self.page

    def reload(self) -> None:
        """Open the page anew where it is: as elsewhere, or the next drag that is dispatched may not arrive."""
        self.page.reload()
        self._wait_to_begin()

    def ask_all(self) -> None:
        """Press the button and wait for all answers."""
        self.page.get_by_role("button", name="Ask all").click()
        self.wait_for_answers()

    def wait_for_answers(self) -> None:
        """Wait for all that has been asked."""
        self.page.locator(".answer[data-state=done]").first.wait_for()
        self.page.locator(".answer[data-state=running]").first.wait_for(state="detached")

    def answer(self, name: str) -> str:
        """Return the text of one column."""
        return self.page.get_by_role("article", name=f"Answer of {name}", exact=True).locator(".text").inner_text()

    def drop(self, *paths: Path) -> None:
        """Drag files or folders of this machine onto the adapters, as the system's file manager does, and wait for the
        upload that this offers.
        """
        uploads = self.page.locator(".upload")
        before = uploads.count()
        session = self.context.new_cdp_session(self.page)
        data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        for patience in (1_000, 4_000, 16_000, PATIENCE):
            event = {**self._middle_of_drop(), "data": data}
            for kind in ("dragEnter", "dragOver"):
                session.send("Input.dispatchDragEvent", {**event, "type": kind})
            if self._has_come(self.page.locator("#drop[data-over=true]"), patience):
                break
            session.send("Input.dispatchDragEvent", {**event, "type": "dragCancel"})  # and again, as a hand would
        session.send("Input.dispatchDragEvent", {**event, "type": "drop"})
        uploads.nth(before).wait_for()

    def _middle_of_drop(self) -> dict[str, float]:
        """Return where the place for files is now: what loads above it moves it."""
        box = self.page.locator("#drop").bounding_box()
        assert box is not None
        return {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}

    @staticmethod
    def _has_come(locator: "Locator", patience: float) -> bool:
        """Return whether something is seen within so many milliseconds."""
        from playwright.sync_api import TimeoutError as TooLong

        with contextlib.suppress(TooLong):
            locator.wait_for(timeout=patience)
            return True
        return False

    def _wait_to_begin(self) -> None:
        """Wait for the last that begins: the playground, once the server has said what may answer."""
        self.page.get_by_text("demo on cpu").wait_for()
        self.page.locator("#ask-all:enabled").wait_for(state="attached")

    def _note_request(self, url: str) -> None:
        if not url.startswith((f"{self.server.url}/", "data:", "blob:")):
            self.outside.append(url)

    def _note_message(self, message: Any) -> None:
        if message.type == "error" and "the server responded with a status of 4" not in message.text:
            self.faults.append(message.text)


@pytest.fixture
def visit(chromium: "Browser", demo: Any) -> Iterator[Callable[..., Visit]]:
    """Make visits: `visit(key=KEY, **options of the browser's context)`. None asks another server, or has a fault."""
    visits: list[Visit] = []

    def make(key: str = KEY, **options: Any) -> Visit:
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        if key:
            context.add_init_script(f"sessionStorage.setItem('peftserve.key', '{key}')")
        visits.append(Visit(context.new_page(), context, demo))
        return visits[-1]

    yield make
    for one in visits:
        one.context.close()
        assert (one.outside, one.faults) == ([], [])
