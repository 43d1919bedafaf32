"""The page as files: open to all, kept by its tag, and with nothing in it that leads elsewhere."""

import re

from peftserve.server.api.routes.page import FOLDER, page_files


async def test_the_page_is_open_and_its_data_are_not(make_server, check_envelope):
    async with make_server(api_keys=("secret",)) as server:
        for path in ("/", "/ui", "/ui/main.js", "/ui/adapters/view.js"):
            assert (await server.http.get(path)).status_code == 200, path
        check_envelope(await server.http.get("/v1/server"), 401, "invalid_api_key")


async def test_files_have_types_a_tag_and_a_policy(server):
    kinds = {"": "text/html", "ui": "text/html", "ui/style.css": "text/css", "ui/main.js": "text/javascript"}
    server.http.headers["accept-encoding"] = "identity"
    for path, kind in {**kinds, "ui/mark.svg": "image/svg+xml"}.items():
        answer = await server.http.get(f"/{path}")
        assert answer.headers["content-type"].startswith(kind), path
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] == "no-cache"
        head = await server.http.head(f"/{path}")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(answer.content))
        again = await server.http.get(f"/{path}", headers={"if-none-match": f'"other", W/{answer.headers["etag"]}'})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", answer.headers["etag"])


async def test_other_paths_stay_what_they_were(server, check_envelope):
    for path in ("/ui/nothing.js", "/ui/../app.py", "/ui/..%2fapp.py", "/ui/%2fetc%2fpasswd", "/ui/adapters"):
        check_envelope(await server.http.get(path), 404)
    for path in ("/nowhere", "/v1/nowhere"):
        check_envelope(await server.http.get(path), 404)
    check_envelope(await server.http.post("/", json={}), 405)
    moved = await server.http.get("/ui/")
    assert (moved.status_code, moved.headers["location"]) == (308, "../ui")


async def test_below_a_prefix_its_files_are_found_with_and_without_a_slash(make_server):
    async with make_server(root_path="/llm") as server:
        for path in ("/llm", "/llm/", "/llm/ui", "/"):
            html = (await server.http.get(path)).text
            links = re.findall(r'(?:src|href)="([^"#]+)"', html)
            assert len(links) > 5
            assert all(link.startswith("/llm/ui/") for link in links), path
            assert (await server.http.get(links[0])).status_code == 200


async def test_without_the_page_its_paths_are_not_there(make_server, check_envelope):
    async with make_server(ui=False) as server:
        for path in ("/", "/ui", "/ui/main.js"):
            check_envelope(await server.http.get(path), 404)


def test_all_addresses_are_relative_and_there():
    """Or else the page would not work below a prefix, or ask something of another server."""
    html = page_files()["index.html"].content.decode()
    for link in re.findall(r'(?:src|href)="([^"#]+)"', html):
        assert (FOLDER / link.removeprefix("ui/")).is_file(), link
    for name, file in page_files().items():
        text = file.content.decode()
        named = {*re.findall(r"https?://[^\s\"'`<]+", text)}
        assert named <= {"http://www.w3.org/2000/svg"}, name
        for link in re.findall(r'from "([^"]+)"', text):
            assert link.startswith(("./", "../")), (name, link)
            assert (FOLDER / name).parent.joinpath(link).resolve().is_file(), (name, link)


def test_files_can_be_read_in_a_sitting():
    long = {name: lines for name, file in page_files().items() if (lines := file.content.count(b"\n")) > 250}
    assert long == {}
