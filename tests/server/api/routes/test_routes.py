import asyncio

import pytest

ALIAS = {"kind": "alias", "target": "sql"}
SQL = {"name": "sql", "weight": 1}


@pytest.fixture
async def filled(server):
    """The server with two adapters, sql in two versions."""
    for name, rank in (("sql", 4), ("sql", 8), ("json", 2)):
        assert (await server.upload(name, rank)).status_code == 201
    return server


async def put(server, name, **body):
    return await server.http.put(f"/v1/routes/{name}", json=body)


async def ask(server, model, **fields):
    return await server.http.post(
        "/v1/completions", json={"model": model, "prompt": "the quick", "max_tokens": 1, **fields}
    )


async def test_a_route_is_put_shown_listed_replaced_and_deleted(filled, check_envelope):
    made = await put(filled, "support", **ALIAS)
    assert made.status_code == 201
    card = made.json()
    assert card == {**ALIAS, "name": "support", "object": "route", "version": 1, "created": card["created"]}
    split = {"kind": "split", "arms": [{"target": "sql@1", "weight": 1}], "sticky": None}
    again = await put(filled, "support", **split)
    assert (again.status_code, again.json()["version"]) == (200, 2)
    assert again.json().items() >= split.items()
    assert (await filled.http.get("/v1/routes/support")).json() == again.json()
    await put(filled, "another", kind="fallback", targets=["support", "json"])
    listed = (await filled.http.get("/v1/routes")).json()
    assert [one["name"] for one in listed["data"]] == ["another", "support"]
    page = (await filled.http.get("/v1/routes", params={"limit": 1})).json()
    assert ([one["name"] for one in page["data"]], page["has_more"]) == (["another"], True)
    page = (await filled.http.get("/v1/routes", params={"limit": 1, "after": "another"})).json()
    assert ([one["name"] for one in page["data"]], page["has_more"]) == (["support"], False)
    error = check_envelope(await filled.http.delete("/v1/routes/support"), 409, "adapter_conflict")
    assert "named by the route another" in error["message"]
    gone = await filled.http.delete("/v1/routes/support", params={"force": "true"})
    assert (gone.status_code, gone.json()) == (200, {"id": "support", "object": "route", "deleted": True})
    check_envelope(await filled.http.get("/v1/routes/support"), 404, "model_not_found")
    check_envelope(await filled.http.delete("/v1/routes/support"), 404, "model_not_found")
    assert (await ask(filled, "another")).headers["x-peftserve-adapter"] == "json@1"
    assert (await put(filled, "support", **ALIAS)).json()["version"] == 3  # no number comes twice


@pytest.mark.parametrize(
    ("name", "body", "status", "message"),
    [
        ("sql", ALIAS, 409, "there is an adapter 'sql'"),
        ("base", ALIAS, 409, "reserved"),
        ("default", ALIAS, 409, "reserved"),
        ("a@b", ALIAS, 400, "is not a name"),
        ("r", {"kind": "alias", "target": "nobody"}, 400, "no adapter, version or route 'nobody'"),
        ("r", {"kind": "alias", "target": "sql@9"}, 400, "'sql@9'"),
        ("r", {"kind": "alias", "target": "default"}, 400, "'default'"),
        ("r", {"kind": "alias", "target": "r"}, 400, "back to itself"),
        ("r", {"kind": "alias"}, 400, "target"),
        ("r", {"kind": "alias", "target": "sql", "weight": 1}, 400, "weight"),
        ("r", {"kind": "random"}, 400, "kind"),
        ("r", {}, 400, "kind"),
        ("r", {"kind": "split", "arms": []}, 400, "arms"),
        ("r", {"kind": "split", "arms": [{"target": "sql", "weight": 0}]}, 400, "sum over 0"),
        ("r", {"kind": "split", "arms": [{"target": "sql", "weight": -1}]}, 400, "weight"),
        ("r", {"kind": "split", "arms": [{"target": "sql", "weight": 1}], "sticky": "x"}, 400, "sticky is"),
        ("r", {"kind": "mixture", "adapters": [SQL, {"name": "no", "weight": 1}]}, 400, "'no'"),
        ("r", {"kind": "mixture", "adapters": [SQL, {"name": "sql@2", "weight": 1}]}, 400, "once"),
        ("r", {"kind": "mixture", "adapters": [{"name": "sql", "weight": 1e9}]}, 400, "weight of 'sql'"),
        ("r", {"kind": "fallback", "targets": ["sql", "nobody"]}, 400, "'nobody'"),
    ],
)  # fmt: skip
async def test_what_is_refused_changes_nothing(filled, check_envelope, name, body, status, message):
    error = check_envelope(await put(filled, name, **body), status)
    assert message in error["message"]
    assert (await filled.http.get("/v1/routes")).json()["data"] == []


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b'{"kind": "alias", "target": "\\ud800"}', b"[" * 9000]
)
async def test_a_body_that_is_no_json_is_refused(filled, check_envelope, content):
    check_envelope(await filled.http.put("/v1/routes/r", content=content), 400)


async def test_cycles_are_refused_and_adapters_cannot_take_a_name(filled, check_envelope):
    await put(filled, "a", **ALIAS)
    await put(filled, "b", kind="alias", target="a")
    error = check_envelope(await put(filled, "a", kind="fallback", targets=["sql", "b"]), 400)
    assert "back to itself" in error["message"]
    assert (await filled.http.get("/v1/routes/a")).json()["version"] == 1
    check_envelope(await filled.upload("a"), 409, "adapter_conflict")


async def test_an_adapter_that_a_route_names_stays_unless_forced(filled, check_envelope):
    await put(filled, "r", kind="alias", target="sql@1")
    await put(filled, "s", kind="fallback", targets=["r", "json"])
    for path in ("sql", "sql@1"):
        error = check_envelope(await filled.http.delete(f"/v1/adapters/{path}"), 409, "adapter_conflict")
        assert "named by the route r" in error["message"]
    unloaded = await filled.http.post("/v1/unload_lora_adapter", json={"lora_name": "sql"})
    check_envelope(unloaded, 409, "adapter_conflict")
    assert (await filled.http.delete("/v1/adapters/sql@2")).status_code == 200
    assert (await filled.http.delete("/v1/adapters/sql", params={"force": "true"})).status_code == 200
    error = check_envelope(await ask(filled, "r"), 404, "model_not_found")
    assert error["message"] == "there is no model or adapter 'sql@1', which the route 'r' leads to"
    answer = await ask(filled, "s")
    assert (answer.json()["model"], answer.headers["x-peftserve-route"]) == ("json@1", "s@1; arm=1")


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_says_what_was_chosen(filled, stream):
    await put(filled, "inner", kind="alias", target="sql@1")
    await put(filled, "outer", kind="split", arms=[{"target": "json", "weight": 0}, {"target": "inner", "weight": 2}])
    for model in ("outer", "default"):
        answer = await ask(filled, model, stream=stream)
        assert answer.headers["x-peftserve-adapter"] == "sql@1"
        assert answer.headers["x-peftserve-route"] == "outer@1; arm=1, inner@1"
        assert '"model":"sql@1"' in answer.text
        assert (await filled.http.put("/v1/default-adapter", json={"adapter": "outer"})).status_code == 200
    assert (await filled.http.get("/v1/default-adapter")).json() == {"adapter": "outer"}
    [engine_request] = {tuple(a.digest for a in request.adapters) for request in filled.engine.requests}
    assert engine_request == ((await filled.http.get("/v1/adapters/sql@1")).json()["digest"],)


async def test_the_base_and_mixtures_answer_too(filled):
    await put(filled, "bare", kind="alias", target="base")
    await put(filled, "both", kind="mixture", adapters=[{"name": "sql", "weight": 0.5}, {"name": "json", "weight": -2}])
    bare, both = await ask(filled, "bare"), await ask(filled, "both")
    assert (bare.json()["model"], bare.headers["x-peftserve-adapter"]) == ("base", "base")
    assert both.json()["model"] == both.headers["x-peftserve-adapter"] == "sql@2*0.5+json@1*-2"
    metrics = (await filled.http.get("/metrics")).text
    assert 'peftserve_route_requests_total{arm="base",route="bare"} 1.0' in metrics
    assert 'peftserve_route_requests_total{arm="mixture",route="both"} 1.0' in metrics


async def test_models_list_routes(filled, check_envelope):
    await put(filled, "r", kind="alias", target="sql@1")
    await put(filled, "s", kind="fallback", targets=["r", "json"])
    models = {model["id"]: model for model in (await filled.http.get("/v1/models")).json()["data"]}
    assert models.keys() == {"base", "sql", "json", "r", "s"}
    assert (models["r"]["owned_by"], models["r"]["root"], models["r"]["parent"]) == ("route", "sql@1", "base")
    assert models["s"]["root"] == "fallback"
    for name in ("r", "s"):
        assert (await filled.http.get(f"/v1/models/{name}")).json() == models[name]
    await filled.http.put("/v1/default-adapter", json={"adapter": "s"})
    assert (await filled.http.get("/v1/models/default")).json() == models["s"]
    assert [one.id async for one in filled.openai.models.list()] == [*models]
    for name in ("r", "s", "default"):
        assert (await filled.http.post("/tokenize", json={"model": name, "prompt": "the"})).status_code == 200
    check_envelope(await filled.http.post("/tokenize", json={"model": "t", "prompt": "the"}), 404, "model_not_found")
    check_envelope(await filled.http.get("/v1/models/t"), 404, "model_not_found")


async def test_a_deleted_default_is_the_bare_base(filled):
    await put(filled, "r", **ALIAS)
    await filled.http.put("/v1/default-adapter", json={"adapter": "r"})
    assert (await filled.http.delete("/v1/routes/r")).status_code == 200
    assert (await filled.http.get("/v1/default-adapter")).json() == {"adapter": None}
    assert (await ask(filled, "default")).json()["model"] == "base"


async def test_many_changes_at_once_are_one_after_the_other(filled):
    made = await asyncio.gather(*(put(filled, "r", kind="alias", target=f"sql@{1 + i % 2}") for i in range(16)))
    assert sorted(card.json()["version"] for card in made) == list(range(1, 17))
    assert sorted(card.status_code for card in made) == [200] * 15 + [201]
    last = max(made, key=lambda card: card.json()["version"])
    assert (await filled.http.get("/v1/routes/r")).json() == last.json()
