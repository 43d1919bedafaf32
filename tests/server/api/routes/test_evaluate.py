import pytest

MATCH = {
    "kind": "match",
    "candidates": [
        {"target": "sql", "examples": ["SELECT name FROM users", "INSERT INTO table VALUES"]},
        {"target": "json", "examples": ['{"name": "value"}', "an object with keys and values"]},
    ],
    "threshold": 0.3,
}


@pytest.fixture
async def filled(server):
    for name in ("sql", "json"):
        assert (await server.upload(name)).status_code == 201
    assert (await server.http.put("/v1/routes/auto", json=MATCH)).status_code == 201
    return server


async def evaluate(server, name, *examples):
    labelled = [{"prompt": prompt, "target": target} for prompt, target in examples]
    return await server.http.post(f"/v1/routes/{name}/evaluate", json={"examples": labelled})


async def test_it_counts_what_is_right(filled):
    examples = [
        ("SELECT age FROM users", "sql"),
        ('{"name": "other"}', "json"),
        ("completely different words", "base"),
        ("INSERT INTO users VALUES", "json"),
    ]
    answer = (await evaluate(filled, "auto", *examples)).json()
    assert (answer["accuracy"], answer["best_accuracy"]) == (0.75, 0.75)
    assert answer["confusion"] == {"sql": {"sql": 1}, "json": {"json": 1, "sql": 1}, "base": {"base": 1}}
    assert 0 < answer["threshold"] < 1
    assert filled.engine.requests == []
    explained = await filled.http.post("/v1/routes/auto/explain", json={"prompt": examples[0][0]})
    scores = {score["target"]: score["score"] for score in explained.json()["scores"]}
    assert scores["sql"] > 0.3 > scores["json"]
    nothing = await filled.http.post("/v1/routes/auto/explain", json={"prompt": "completely different words"})
    assert nothing.json()["chosen"] == "base"


async def test_other_kinds_have_no_threshold(filled):
    await filled.http.put("/v1/routes/one", json={"kind": "alias", "target": "sql"})
    answer = (await evaluate(filled, "one", ("a", "sql"), ("b", "sql"))).json()
    assert answer == {"accuracy": 1.0, "threshold": None, "best_accuracy": 1.0, "confusion": {"sql": {"sql": 2}}}


async def test_what_is_refused(filled, check_envelope):
    check_envelope(await evaluate(filled, "auto"), 400)
    error = check_envelope(await evaluate(filled, "auto", ("a", "dates")), 400)
    assert "examples[0].target is 'dates'" in error["message"]
    check_envelope(await evaluate(filled, "nobody", ("a", "sql")), 404, "model_not_found")


async def test_what_a_fallback_to_the_base_answers_is_counted_as_the_base(filled):
    asked = {"model": "auto", "prompt": "completely different words", "max_tokens": 1}
    answer = await filled.http.post("/v1/completions", json=asked)
    assert answer.json()["model"] == "base"
    assert answer.headers["x-peftserve-route"].startswith("auto@1; score=")
    metrics = (await filled.http.get("/metrics")).text
    assert 'peftserve_route_requests_total{arm="base",route="auto"} 1.0' in metrics
