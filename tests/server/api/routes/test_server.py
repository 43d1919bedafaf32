async def test_the_server_says_what_it_is(make_server):
    async with make_server(keep_deleted=60.0) as server:
        said = (await server.http.get("/v1/server")).json()
    expected = {"id": "base", "object": "server", "keep_deleted": 60.0, "has_text": True, "has_chat_template": True}
    assert said.items() >= expected.items()
    assert said["max_model_len"] == server.engine.info.max_model_len


async def test_while_the_model_loads_it_says_so(make_server, engine, check_envelope):
    info, engine.info = engine.info, None
    async with make_server() as server:
        check_envelope(await server.http.get("/v1/server"), 503, "loading")
        engine.info = info
        assert (await server.http.get("/v1/server")).status_code == 200
