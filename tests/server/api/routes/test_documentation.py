"""The description of the API: whole, valid, and true of what the server answers."""

import asyncio
from collections import Counter, defaultdict

import openapi_spec_validator
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
OPEN = {"/health", "/health/live", "/health/ready", "/metrics"}
METHODS = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]


def _operations(document):
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def _resolve(document, node):
    while "$ref" in node:
        *_, kind, name = node["$ref"].split("/")
        node = document["components"][kind][name]
    return node


async def test_every_route_says_what_it_takes_and_gives(make_server):
    async with make_server(api_keys=("k",)) as server:
        response = await server.http.get("/openapi.json")
        pages = [await server.http.get(path) for path in ("/docs", "/redoc")]
    assert [page.headers["content-type"] for page in pages] == ["text/html; charset=utf-8"] * 2
    document = response.json()
    openapi_spec_validator.validate(document)
    assert len({operation["operationId"] for *_, operation in _operations(document)}) == 19
    for path, method, operation in _operations(document):
        place = f"{method} {path}"
        assert operation["summary"], place
        assert operation["description"], place
        assert operation["tags"][0] in {tag["name"] for tag in document["tags"]}, place
        assert ("requestBody" in operation) == (method in ("post", "put")), place
        assert ("401" in operation["responses"]) == ("security" in operation) == (path not in OPEN), place
        assert "503" in operation["responses"], place
        for status, response in operation["responses"].items():
            for content in _resolve(document, response)["content"].values():
                assert content["schema"], place
                assert "example" in content, (place, status)
    structs = [schema for schema in document["components"]["schemas"].values() if "properties" in schema]
    assert all(schema["description"] for schema in structs)


async def test_without_keys_none_is_asked_for(server):
    document = (await server.http.get("/openapi.json")).json()
    assert "securitySchemes" not in document["components"]
    assert not any("security" in operation for *_, operation in _operations(document))


async def test_examples_are_answered(make_server, adapter_bytes, tmp_path):
    """Each example of a body, on a server that has what it names. Folders of the server are the test's own."""
    folder = tmp_path / "adapters" / "sql"
    folder.mkdir(parents=True)
    for name, content in adapter_bytes().items():
        (folder / name).write_bytes(content)

    def here(value):
        return value if not isinstance(value, dict) else {k: here(v) for k, v in value.items()} | _path(value, folder)

    async with make_server(allow_adapter_paths=(tmp_path,)) as server:
        document = (await server.http.get("/openapi.json")).json()
        for path, method, operation in _operations(document):
            contents = operation.get("requestBody", {"content": {}})["content"].values()
            examples = [e for content in contents for e in content.get("examples", {}).values()]
            assert bool(examples) == bool(contents), path
            for example in examples:
                await server.http.post("/v1/unload_lora_adapter", json={"lora_name": "sql"})
                if path != "/v1/load_lora_adapter":
                    assert (await server.upload("sql")).status_code == 201
                    assert (await server.upload("json")).status_code == 201
                response = await server.http.request(method, path, json=here(example["value"]))
                assert str(response.status_code) in operation["responses"], path
                assert response.status_code < 300, (path, response.text)


def _path(body, folder):
    return {key: str(folder) for key in ("uri", "lora_path") if key in body}


@pytest.mark.slow
async def test_every_answer_is_as_documented(make_server, tmp_path):
    """Generated requests, good and bad, to each route. Bad ones need not be refused: numbers are taken as text, too."""
    async with make_server(allow_adapter_paths=(tmp_path,)) as server:
        await server.upload("sql")
        seen = await asyncio.to_thread(_ask_everything, server.url)
        assert server.services.admission.in_flight == 0
    assert all(400 in statuses for label, statuses in seen.items() if label.startswith(("POST", "PUT")))
    print({k: dict(v) for k, v in seen.items()})


def _ask_everything(url):
    """Return the statuses with which each operation has answered."""
    seen = defaultdict(Counter)
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    schemathesis.checks.load_all_checks()
    checks = schemathesis.checks.CHECKS.get_by_names(CHECKS)
    for result in schema.get_all_operations():
        operation = result.ok()
        cases = st.one_of([operation.as_strategy(generation_mode=mode) for mode in METHODS])
        _ask(cases, url, checks, seen[operation.label])
    return seen


def _ask(cases, url, checks, statuses):
    @settings(
        max_examples=20,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def ask(case):
        response = case.call_and_validate(base_url=url, checks=checks, timeout=10)
        statuses[response.status_code] += 1

    ask()
