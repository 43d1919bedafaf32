"""/ and /ui: the page, as the files of `server/api/page/` are. Open without a key: what it shows is asked of /v1.

All of it is read once, at the start, so that no path of a request ever meets the file system.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path

from fastapi import APIRouter, Request, Response

from ..http.errors import ApiError

router = APIRouter(include_in_schema=False)

FOLDER = Path(__file__).parent.with_name("page")
INDEX = "index.html"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
METHODS = ["GET", "HEAD"]
HEADERS = {
    "Cache-Control": "no-cache",  # kept, and asked for by its tag: an upgrade is seen at the next look
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class PageFile:
    """A file of the page, as it is sent. tag: of its content."""

    content: bytes
    media_type: str
    tag: str


@cache
def page_files() -> Mapping[str, PageFile]:
    """Return the page's files by their paths below its folder."""
    found = (path for path in sorted(FOLDER.rglob("*")) if path.suffix in TYPES)
    return {path.relative_to(FOLDER).as_posix(): _read(path) for path in found}


@cache
def index_below(prefix: str) -> PageFile:
    """Return the page for a server that is known below a prefix, which may be asked for with and without a slash."""
    content = page_files()[INDEX].content
    return _file(content.replace(b'="ui/', f'="{escape(prefix)}/ui/'.encode()) if prefix else content, INDEX)


def _read(path: Path) -> PageFile:
    return _file(path.read_bytes(), path.name)


def _file(content: bytes, name: str) -> PageFile:
    return PageFile(content, TYPES[Path(name).suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')


@router.api_route("/", methods=METHODS)
@router.api_route("/ui", methods=METHODS)
async def index(request: Request) -> Response:
    """Send the page. All addresses in it are relative, so that it works also below a prefix that nobody told of."""
    return _answer(request, index_below(request.scope.get("root_path", "")))


@router.api_route("/ui/", methods=METHODS)
async def one_up() -> Response:
    """Lead to the address from which the page's relative ones are right."""
    return Response(status_code=308, headers={"Location": "../ui"})


@router.api_route("/ui/{file:path}", methods=METHODS)
async def page_file(request: Request, file: str) -> Response:
    """Send a file of the page. Raises ApiError 404 for any other name."""
    found = page_files().get(file)
    if found is None:
        raise ApiError(404, f"The page has no file {file[:140]!r}.", param="file", code="file_not_found")
    return _answer(request, found)


def _answer(request: Request, file: PageFile) -> Response:
    headers = {**HEADERS, "ETag": file.tag}
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if file.tag in known:
        return Response(status_code=304, headers=headers)
    if request.method == "HEAD":
        return Response(media_type=file.media_type, headers={**headers, "Content-Length": str(len(file.content))})
    return Response(file.content, media_type=file.media_type, headers=headers)
