import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from peftserve.server.api.routes.metrics import wants_openmetrics

PROMETHEUS = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"


@pytest.mark.parametrize(
    ("accept", "wants"),
    [
        ([], False),
        (["*/*"], False),
        ([PROMETHEUS], True),
        (["application/openmetrics-text"], True),
        (["application/openmetrics-text; version=0.0.1,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"], True),
        (["text/plain", "application/openmetrics-text;q=0.4"], False),
        (["application/openmetrics-text;q=0"], False),
        (["application/openmetrics-text;version=x;q=x"], False),
    ],
)
def test_who_wants_openmetrics(accept, wants):
    assert wants_openmetrics(accept) is wants


async def test_both_forms_say_the_same(server, adapter_bytes):
    await server.upload("sql")
    await server.http.post("/v1/completions", json={"model": "sql", "prompt": [5], "max_tokens": 3})
    text = await server.http.get("/metrics")
    assert text.headers["content-type"].startswith("text/plain")
    assert "Accept" in text.headers["vary"].split(", ")
    asked = await server.http.get("/metrics", headers={"Accept": PROMETHEUS})
    assert asked.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert asked.text.endswith("# EOF\n")
    names = {sample.name for family in parse_openmetrics(asked.text) for sample in family.samples}
    assert names == {sample.name for family in parse_text(text.text) for sample in family.samples}
    assert {"peftserve_requests_total", "vllm:num_requests_running"} <= names


async def test_what_names_adapters_asks_for_a_key_where_there_is_one_for_it(make_server, check_envelope, tmp_path):
    file = tmp_path / "keys.toml"
    entry = '[[keys]]\nname = "{0}"\nkey = "{0}-key-0123456789"\nrole = "{0}"\n'
    file.write_text(entry.format("user") + entry.format("admin"))
    user, admin = "user-key-0123456789", "admin-key-0123456789"

    async def status(server, path, key):
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        answer = await server.http.get(path, headers=headers)
        if answer.status_code != 200:
            check_envelope(answer, 401, "invalid_api_key")
        return answer.status_code

    async with make_server(metrics_keys=("m", "n"), api_key_file=file, root_path="/llm") as server:
        for path in ("/metrics", "/openapi.json", "/llm/metrics", "/%6detrics", "/metrics?x=1"):
            asked = {key: await status(server, path, key) for key in ("", "m", "n", admin, user, "x")}
            assert asked == {"": 401, "m": 200, "n": 200, admin: 200, user: 401, "x": 401}, path
        assert (await server.http.head("/metrics")).status_code == 401
        assert await status(server, "/v1/models", "m") == 401
        assert await status(server, "/v1/models", user) == 200
        for path in ("/health", "/health/live", "/health/ready", "/load", "/version"):
            assert await status(server, path, "") == 200
    async with make_server(metrics_keys=("m",)) as server:
        assert [await status(server, "/metrics", key) for key in ("", "m")] == [401, 200]
        assert await status(server, "/v1/models", "") == 200
    async with make_server(api_keys=("k",)) as server:
        assert await status(server, "/metrics", "") == 200
