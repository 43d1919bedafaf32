"""The framework answers everything else, so a direct route differs from the others in nothing that a client sees."""


async def test_what_is_refused_is_the_envelope(server, check_envelope):
    for path in ("/v1/completions", "/v1/chat/completions"):
        check_envelope(await server.http.post(path, content=b"{"), 400)
        messages = [{"role": "user", "content": "a"}]
        body = {"model": "nobody", "prompt": "a", "messages": messages}
        check_envelope(await server.http.post(path, json=body), 404, "model_not_found")
        check_envelope(await server.http.get(path), 405)
        check_envelope(await server.http.post(path + "/"), 404)


async def test_a_direct_route_stays_in_the_description_of_the_api(server):
    paths = (await server.http.get("/openapi.json")).json()["paths"]
    assert "post" in paths["/v1/completions"]
    assert "post" in paths["/v1/chat/completions"]
