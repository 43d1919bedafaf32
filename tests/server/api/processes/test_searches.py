"""A worker's finder asks the primary's over the private socket, and hears what that one would tell."""

import asyncio
import contextlib
import tempfile
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from peftserve.adapters.errors import InvalidAdapter
from peftserve.server.api.http.errors import ApiError, install_error_handlers
from peftserve.server.api.http.server import HttpServer, listen
from peftserve.server.api.processes.resources import listen_in
from peftserve.server.api.processes.searches import PATH, RemoteFinder, search_endpoint


class FakeFinder:
    def __init__(self):
        self.asked = []

    async def find(self, name):
        self.asked.append(name)
        if name == "bad":
            raise InvalidAdapter("not this one", param="files")
        if name == "busy":
            raise ApiError(429, "later", code="too_many_searches", headers={"Retry-After": "1"})
        return name == "sql"


async def test_answers_and_errors_are_the_primarys():
    finder = FakeFinder()
    app = FastAPI()
    install_error_handlers(app)
    app.add_route(PATH, search_endpoint(finder), methods=["POST"], include_in_schema=False)
    server = HttpServer(app)
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, contextlib.closing(listen("127.0.0.1", 0)) as public:
        task = asyncio.create_task(server.serve([public, listen_in(Path(folder))]))
        remote = RemoteFinder(Path(folder))
        try:
            assert [await remote.find(name) for name in ("sql", "absent")] == [True, False]
            assert await remote.find("org/name:v2") is False
            assert finder.asked[-1] == "org/name:v2"
            with pytest.raises(ApiError) as bad:
                await remote.find("bad")
            assert (bad.value.status_code, bad.value.body.message, bad.value.body.param) == (
                400,
                "not this one",
                "files",
            )
            with pytest.raises(ApiError) as busy:
                await remote.find("busy")
            assert (busy.value.status_code, busy.value.headers) == (429, {"Retry-After": "1"})
            asked = list(finder.asked)
            url = f"http://127.0.0.1:{public.getsockname()[1]}"
            async with httpx.AsyncClient(base_url=url, timeout=60) as http:
                assert (await http.post(PATH.replace("{name:path}", "sql"))).status_code == 404
            assert finder.asked == asked, "nobody asks through the port"
        finally:
            server.force_exit = True
            await server.close(task)
        with pytest.raises(ApiError) as gone:
            await remote.find("sql")
        assert gone.value.status_code == 503
        await remote.close()
