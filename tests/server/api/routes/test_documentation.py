"""The description of the API: whole, valid, and true of what the server answers."""

import asyncio
import json
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
JOB = "job-5f2c9a"  # the id in the examples
OPEN = {"/health", "/health/live", "/health/ready", "/metrics", "/ping", "/version", "/load"}
ENDLESS = "/v1/adapters/events"
BODILESS = ("/restore", "/load", "/ping", "/reset_prefix_cache")  # ends of what is posted without a body
MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)


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
    names = [operation["operationId"] for *_, operation in _operations(document)]
    assert len(names) == len(set(names)) > 40
    for path, method, operation in _operations(document):
        place = f"{method} {path}"
        assert operation["summary"], place
        assert operation["description"], place
        assert operation["tags"][0] in {tag["name"] for tag in document["tags"]}, place
        assert ("requestBody" in operation) == (method in ("post", "put", "patch") and not path.endswith(BODILESS)), (
            place
        )
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


async def test_examples_work(make_server, adapter_bytes, tmp_path):
    """Each example of a body or a path succeeds, as documented, where there is what it names."""
    for name, content in adapter_bytes().items():
        (tmp_path / name).write_bytes(content)
    async with make_server(allow_adapter_paths=(tmp_path,), keep_deleted=60.0) as server:
        document = (await server.http.get("/openapi.json")).json()
        job = server.services.owned.jobs.submit("merge", _nothing, lambda: None)
        for operation in _described(document):
            for path, body in _examples(document, operation):
                if (body or {}).get("source", {}).get("type", "path") != "path":
                    continue  # on other machines
                path = path.replace(JOB, job.id)
                await server.http.post("/v1/unload_lora_adapter", json={"lora_name": "sql"})
                if operation.path != "/v1/load_lora_adapter":
                    for name, rank in (("sql", 4), ("sql", 8), ("json", 8)):
                        await server.upload(name, rank)
                if operation.path.startswith("/v1/routes/"):
                    await server.http.put("/v1/routes/support", json={"kind": "alias", "target": "sql"})
                if operation.path.endswith("/restore"):
                    await server.http.delete("/v1/adapters/sql?force=true")
                asked = (
                    None if body is None else json.loads(json.dumps(body).replace("/srv/adapters/sql", str(tmp_path)))
                )
                response = await server.http.request(operation.method, path, json=asked)
                assert response.is_success, (path, response.text)
                assert str(response.status_code) in document["paths"][operation.path][operation.method]["responses"]
                operation.validate_response(response)


async def _nothing(ticket):
    pass


def _examples(document, operation):
    """Yield path and body, the body None where the route takes none."""
    described = document["paths"][operation.path][operation.method]
    path = operation.path
    for parameter in described.get("parameters", ()):
        if parameter["in"] == "path":
            path = path.replace(f"{{{parameter['name']}}}", parameter["schema"]["examples"][0])
    if "requestBody" not in described:
        yield path, None
        return
    examples = described["requestBody"]["content"]["application/json"]["examples"]
    assert examples, path
    for example in examples.values():
        yield path, example["value"]


@pytest.mark.slow
async def test_every_answer_is_as_documented(make_server, tmp_path):
    """Generated requests, good and bad, to each route. Not all bad ones are refused: numbers are taken as text."""
    async with make_server(allow_adapter_paths=(tmp_path,)) as server:
        await server.upload("sql")
        document = (await server.http.get("/openapi.json")).json()
        seen = await asyncio.to_thread(_ask_everything, server.url, document)
        assert server.services.admission.in_flight == 0
    assert all(400 in statuses for label, statuses in seen.items() if _takes_a_body(label))


def _takes_a_body(label):
    return label.startswith(("POST", "PUT", "PATCH")) and not label.endswith(BODILESS)


def _ask_everything(url, document):
    """Return the statuses with which each operation has answered."""
    seen = defaultdict(Counter)
    for operation in _described(document):
        cases = st.one_of([operation.as_strategy(generation_mode=mode) for mode in MODES])
        _ask(cases, url, seen[operation.label])
    return seen


def _described(document):
    operations = [result.ok() for result in schemathesis.openapi.from_dict(document).get_all_operations()]
    return [operation for operation in operations if operation.path != ENDLESS]


def _checks():
    schemathesis.checks.load_all_checks()
    return schemathesis.checks.CHECKS.get_by_names(CHECKS)


def _ask(cases, url, statuses):
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
        response = case.call_and_validate(base_url=url, checks=_checks(), timeout=60)
        statuses[response.status_code] += 1

    ask()
