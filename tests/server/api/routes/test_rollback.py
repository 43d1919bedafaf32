async def test_an_older_version_is_the_newest_again(server, check_envelope):
    first, second = [(await server.upload("sql", rank)).json() for rank in (4, 8)]
    assert first["digest"] != second["digest"]
    back = await server.http.post("/v1/adapters/sql/rollback")
    assert back.status_code == 201
    assert (back.json()["version"], back.json()["digest"], back.json()["rank"]) == (3, first["digest"], 4)
    again = await server.http.post("/v1/adapters/sql/rollback", json={"to": 2})
    assert (again.json()["version"], again.json()["digest"]) == (4, second["digest"])
    assert (await server.http.get("/v1/adapters/sql")).json()["version"] == 4
    check_envelope(await server.http.post("/v1/adapters/sql/rollback", json={"to": 9}), 404, "model_not_found")
    check_envelope(await server.http.post("/v1/adapters/nobody/rollback", json={}), 404, "model_not_found")
    check_envelope(await server.http.post("/v1/adapters/sql/rollback", json={"to": 0}), 400)
    await server.upload("json")
    error = check_envelope(await server.http.post("/v1/adapters/json/rollback", json={"to": None}), 404)
    assert "only version" in error["message"]


async def test_it_costs_nothing_of_a_quota_that_is_full(make_server, check_envelope):
    async with make_server(max_adapter_bytes_per_key=2500) as server:
        rank = 1
        while (answer := await server.upload("sql", rank)).status_code == 201:
            rank += 1
        check_envelope(answer, 403, "quota_exceeded")
        for _ in range(20):
            assert (await server.http.post("/v1/adapters/sql/rollback")).status_code == 201
        assert check_envelope(await server.upload("sql", rank), 403) == answer.json()["error"]
