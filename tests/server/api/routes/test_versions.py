async def test_versions_are_listed_newest_first(server, check_envelope):
    for rank in (4, 8, 16):
        await server.upload("sql", rank)
    await server.upload("json")
    await server.http.delete("/v1/adapters/sql@2")
    cards = (await server.http.get("/v1/adapters/sql/versions")).json()["data"]
    assert [(card["name"], card["version"], card["rank"]) for card in cards] == [("sql", 3, 16), ("sql", 1, 4)]
    check_envelope(await server.http.get("/v1/adapters/nobody/versions"), 404, "model_not_found")
    check_envelope(await server.http.get("/v1/adapters/sql@1/versions"), 400)
