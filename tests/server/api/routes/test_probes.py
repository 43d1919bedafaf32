"""What probes ask: of a server that is ready, loads, drains, or has lost its engine."""

from importlib.metadata import version

READY = [("GET", "/health"), ("GET", "/health/"), ("GET", "/health/ready"), ("GET", "/ping"), ("POST", "/ping")]


async def _all(server, status, code=None):
    for method, path in [*READY, ("HEAD", "/health"), ("HEAD", "/ping")]:
        answer = await server.http.request(method, path)
        assert answer.status_code == status, path
        if code is not None and method != "HEAD":
            assert answer.json()["error"]["code"] == code


async def test_health_is_whether_requests_are_welcome_as_vllm_has_it(make_server, engine):
    info, engine.info = engine.info, None
    async with make_server() as server:
        await _all(server, 503, "loading")
        engine.info = info
        await _all(server, 200)
        server.services.preloaded = False
        await _all(server, 503, "loading")
        server.services.preloaded = True
        server.services.drain()
        await _all(server, 503, "shutting_down")
        assert (await server.http.get("/health/live")).status_code == 200


async def test_health_of_an_engine_that_is_silent_and_of_one_that_is_gone(make_server, engine, check_envelope):
    """Neither is ready. The server lives until that has lasted, so that another engine can take its place."""
    async with make_server(engine_timeout=30.0) as server:
        engine.silence = 4.5
        await _all(server, 503, "engine_silent")
        engine.die()
        await _all(server, 503, "engine_dead")
        assert (await server.http.get("/health/live")).status_code == 200
        engine.silence = 30.5
        check_envelope(await server.http.get("/health/live"), 503, "engine_dead")
        server.services.drain()
        assert (await server.http.get("/health/live")).status_code == 200


async def test_version_and_load(make_server, engine, until):
    engine.delay = 0.02
    async with make_server(api_keys=("k",)) as server:
        assert (await server.http.get("/version")).json() == {"version": version("peftserve")}
        assert (await server.http.get("/load")).json() == {"server_load": 0}
        body = {"prompt": [5], "n": 3, "max_tokens": 50, "ignore_eos": True, "stream": True}
        async with server.http.stream("POST", "/v1/completions", json=body, headers={"Authorization": "Bearer k"}):
            engine.going.clear()
            assert (await server.http.get("/load")).json() == {"server_load": 3}
        await until(lambda: server.services.admission.in_flight == 0)
        assert (await server.http.get("/load")).json() == {"server_load": 0}
