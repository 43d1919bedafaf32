import pytest

SPLIT = {"kind": "split", "arms": [{"target": "sql", "weight": 1}, {"target": "base", "weight": 1}], "sticky": "user"}


@pytest.fixture
async def filled(server):
    for name in ("sql", "json"):
        assert (await server.upload(name)).status_code == 201
    return server


async def explain(server, name, **body):
    return await server.http.post(f"/v1/routes/{name}/explain", json={"prompt": "hi", **body})


async def test_it_says_what_would_answer_and_generates_nothing(filled):
    await filled.http.put("/v1/routes/half", json=SPLIT)
    await filled.http.put("/v1/routes/outer", json={"kind": "alias", "target": "half"})
    seen = set()
    for number in range(40):
        user = f"user-{number}"
        answer = (await explain(filled, "half", user=user)).json()
        assert answer == {**answer, "route": "half", "version": 1, "adapters": [], "scores": []}
        assert answer["chosen"] == ("sql@1", "base")[answer["arm"]]
        assert (await explain(filled, "outer", user=user)).json() == {**answer, "route": "outer"}
        seen.add(answer["chosen"])
    assert seen == {"sql@1", "base"}
    assert filled.engine.requests == []
    asked = await filled.http.post(
        "/v1/completions", json={"model": "half", "user": user, "prompt": "a", "max_tokens": 1}
    )
    assert asked.json()["model"] == answer["chosen"]


async def test_a_mixture_has_its_members(filled):
    body = {"kind": "mixture", "adapters": [{"name": "sql", "weight": 0.5}, {"name": "json", "weight": -2}]}
    await filled.http.put("/v1/routes/both", json=body)
    messages = {"prompt": None, "messages": [{"role": "user", "content": "hi"}]}
    answer = (await explain(filled, "both", **messages)).json()
    assert answer["adapters"] == [{"name": "sql@1", "weight": 0.5}, {"name": "json@1", "weight": -2.0}]
    assert (answer["chosen"], answer["arm"]) == ("sql@1*0.5+json@1*-2", None)


async def test_headers_count(filled):
    await filled.http.put("/v1/routes/r", json={**SPLIT, "sticky": "header:X-Tenant"})
    arms = {}
    for number in range(20):
        headers = {"x-tenant": f"tenant-{number}"}
        path = "/v1/routes/r/explain"
        two = [(await filled.http.post(path, json={"prompt": "hi"}, headers=headers)).json()["arm"] for _ in range(2)]
        assert two[0] == two[1]
        arms[number] = two[0]
    assert {*arms.values()} == {0, 1}


async def test_what_is_refused(filled, check_envelope):
    check_envelope(await explain(filled, "nobody"), 404, "model_not_found")
    check_envelope(await explain(filled, "sql"), 404, "model_not_found")
    await filled.http.put("/v1/routes/r", json={"kind": "alias", "target": "sql"})
    check_envelope(await filled.http.post("/v1/routes/r/explain", json={}), 400)
    await filled.http.delete("/v1/adapters/sql?force=true")
    error = check_envelope(await explain(filled, "r"), 404, "model_not_found")
    assert "which the route 'r' leads to" in error["message"]
