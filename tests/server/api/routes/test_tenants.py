"""Adapters and routes that belong to tenants: what others see, use and change of them, on every route that there is."""

import itertools
import re

import pytest
from fastapi.routing import APIRoute

from peftserve.adapters.names import VERBS
from peftserve.server.api import app as application
from peftserve.server.api.routes.documentation import _ATTRIBUTE

TENANTS = {"acme": "user", "globex": "user", "ops": "admin"}
FILE = "".join(
    f'[[keys]]\nname = "{name}"\nkey = "sk-{name}"\nrole = "{role}"\nmax_adapters = 20\n'
    for name, role in TENANTS.items()
)
PRIVATE, ABSENT = "secret-of-acme", "nothing-like-it"
TAKEN = (  # which is told of a name that another has, as it cannot be taken, and of no other
    409,
    '{"error":{"message":"the name \'NAME\' is taken; choose another","type":"invalid_request_error",'
    '"param":"name","code":"adapter_conflict"}}',
)


def as_(server, name):
    server.http.headers["Authorization"] = f"Bearer sk-{name}"
    return server.http


@pytest.fixture
def keys(tmp_path):
    (tmp_path / "keys").write_text(FILE)
    return {"api_key_file": tmp_path / "keys"}


@pytest.fixture
async def server(make_server, keys):
    async with make_server(**keys, keep_deleted=60.0) as server:
        yield server


async def fill(server):
    """Give acme an adapter with two versions and a route, and everybody an adapter of the administrator's."""
    as_(server, "acme")
    for rank in (1, 2):
        assert (await server.upload(PRIVATE, rank=rank)).status_code == 201
    route = {"kind": "alias", "target": PRIVATE}
    assert (await server.http.put(f"/v1/routes/{PRIVATE}-route", json=route)).status_code == 201
    as_(server, "ops")
    assert (await server.upload("common", rank=3)).status_code == 201


def all_routes():
    """Yield method and path of every route of the application that takes a name, or may give one."""
    modules = [*application.EVERYWHERE, *application.PRIMARY_ONLY]
    for route in (route for module in modules for route in module.router.routes):
        assert isinstance(route, APIRoute)
        for method in route.methods:
            yield method, route.path_format, route


def bodies_of(route):
    """Return bodies that name something, out of the examples that describe the route."""
    operation = getattr(route.endpoint, _ATTRIBUTE, None)
    return [*operation.examples.values()] if operation is not None and operation.examples else []


def naming(value, name):
    """Return a body of an example with every name of an adapter or a route in it replaced."""
    if isinstance(value, dict):
        return {key: naming(inner, name) for key, inner in value.items()}
    if isinstance(value, list):
        return [naming(inner, name) for inner in value]
    return name if value in ("sql", "json", "policy", "support") else value


def neutral(response, name):
    """Return what an answer says, but for the name that was asked for and what each answer has anew."""
    text = re.sub(r"[0-9a-f]{16,}|\b1\d{9}\b", "ANEW", response.text.replace(name, "NAME"))
    headers = {key: value for key, value in response.headers.items() if key not in ("x-request-id", "date")}
    headers.pop("content-length", None)
    return response.status_code, text, headers


def asked_of(method, path, body, name):
    """Return the path and the body of a request that names something; None if it names nothing."""
    there = path if method == "PUT" else path.replace("{name}", name).replace("{model_id}", name)
    there = there.replace("{name}", "mine").replace("{file}", "adapter_config.json").replace("{id}", "job-1")
    sent = naming(body, name)
    return None if there == path and sent == body else (there, sent)


async def test_to_others_a_private_name_is_as_one_that_does_not_exist_on_every_route(server):
    await fill(server)
    http = as_(server, "globex")
    asked, differing = set(), []
    for method, path, route in all_routes():
        for suffix, body in itertools.product(("", "-route"), bodies_of(route) or [None]):
            answers = []
            for name in (PRIVATE + suffix, ABSENT + suffix):
                if (request := asked_of(method, path, body, name)) is not None and method != "HEAD":
                    answers.append(neutral(await http.request(method, request[0], json=request[1]), name))
                    asked.add((method, path))
            if answers and answers[0] != answers[1] and answers[0][:2] != TAKEN:
                differing.append((method, path, body, answers))
            assert all(status < 500 for status, *_ in answers), (method, path)
    assert not differing, "\n".join(map(str, differing))
    named = {(method, path) for method, path, _ in all_routes() if "{name}" in path or "{model_id}" in path}
    assert named <= asked, "and no route has been forgotten"
    http = as_(server, "acme")
    card = (await http.get(f"/v1/adapters/{PRIVATE}")).json()
    assert (card["version"], card.get("tags")) == (2, None), "nothing of it has changed"
    assert (await http.get(f"/v1/routes/{PRIVATE}-route")).json()["kind"] == "alias"


async def test_nothing_that_is_listed_names_what_is_anothers(server):
    await fill(server)
    as_(server, "globex")
    for method, path, _ in all_routes():
        if method == "GET" and "{" not in path and not path.endswith("/events") and path != "/metrics":
            answer = await server.http.get(path)
            assert PRIVATE not in answer.text, path
    assert [m["id"] for m in (await server.http.get("/v1/models")).json()["data"]] == ["base", "common"]
    for key in ("acme", "ops"):
        as_(server, key)
        assert [c["id"] for c in (await server.http.get("/v1/adapters")).json()["data"]] == ["common", PRIVATE]
        assert [r["name"] for r in (await server.http.get("/v1/routes")).json()["data"]] == [f"{PRIVATE}-route"]
        answer = await server.http.post("/v1/completions", json={"model": f"{PRIVATE}-route", "prompt": "a"})
        assert answer.json()["model"] == f"{PRIVATE}@2"


async def test_metrics_that_a_key_asks_for_name_nothing_of_others(server):
    await fill(server)
    http = as_(server, "acme")
    for name in (PRIVATE, f"{PRIVATE}-route", "common"):
        await http.post("/v1/completions", json={"model": name, "prompt": "a"})
    whole = (await http.get("/metrics")).text
    assert f'adapter="{PRIVATE}"' in whole
    assert f'route="{PRIVATE}-route"' in whole
    other = (await as_(server, "globex").get("/metrics")).text
    assert PRIVATE not in other
    assert "acme" not in other
    assert 'adapter="common"' in other
    for scraper in ("ops", "nobody"):
        assert PRIVATE in (await as_(server, scraper).get("/metrics")).text, "whoever may see it, or if it is open"


async def test_a_name_is_its_owners_and_what_an_administrator_adds_is_everybodys(server, check_envelope):
    await fill(server)
    http = as_(server, "globex")
    for name in (PRIVATE, f"{PRIVATE}-route"):
        taken = check_envelope(await server.upload(name, rank=5), 409, "adapter_conflict")
        assert "acme" not in taken["message"].replace(name, "")
        put = await http.put(f"/v1/routes/{name}", json={"kind": "alias", "target": "base"})
        assert check_envelope(put, 409)["message"].replace(name, "") == taken["message"].replace(name, "")
    answer = await http.post("/v1/completions", json={"model": "common", "prompt": "a"})
    assert answer.headers["x-peftserve-adapter"] == "common@1"
    merge = {"name": PRIVATE, "adapters": [{"name": "common", "weight": 1}]}
    check_envelope(await http.post("/v1/adapters/merge", json=merge), 409, "adapter_conflict")
    target = await http.put("/v1/routes/way", json={"kind": "alias", "target": PRIVATE})
    unknown = await http.put("/v1/routes/way", json={"kind": "alias", "target": ABSENT})
    assert neutral(target, PRIVATE) == neutral(unknown, ABSENT)
    assert target.status_code == 400
    mixture = {"prompt": "a", "adapters": [{"name": PRIVATE, "weight": 1}, {"name": "common", "weight": 1}]}
    check_envelope(await http.post("/v1/completions", json=mixture), 404)
    assert (await server.upload("mine", rank=4)).json()["owner"] == "globex"
    check_envelope(await server.upload("mine", fields={"pinned": "true"}), 403, "forbidden")
    for method, path, body in (
        ("DELETE", "/v1/adapters/common", None),
        ("DELETE", "/v1/models/common", None),
        ("POST", "/v1/unload_lora_adapter", {"lora_name": "common"}),
        ("POST", "/v1/adapters/common/rollback", None),
        ("PATCH", "/v1/adapters/common", {"tags": ["x"]}),
        ("PUT", "/v1/default-adapter", {"adapter": "common"}),
        ("PUT", "/v1/default-adapter", {"adapter": None}),
        ("PATCH", "/v1/adapters/mine", {"pinned": True}),
        ("PUT", "/v1/routes/common", {"kind": "alias", "target": "base"}),
    ):
        check_envelope(await http.request(method, path, json=body), 403, "forbidden")
    check_envelope(await server.upload("common", rank=6), 403, "forbidden")
    http = as_(server, "ops")
    private = await http.put("/v1/default-adapter", json={"adapter": PRIVATE})
    check_envelope(private, 409)
    check_envelope(await http.put("/v1/routes/all", json={"kind": "alias", "target": PRIVATE}), 400)
    assert (await server.upload(PRIVATE, rank=7)).json()["version"] == 3, "for its owner"
    as_(server, "globex")
    check_envelope(await server.http.get(f"/v1/adapters/{PRIVATE}"), 404)
    as_(server, "ops")
    assert (await server.http.delete(f"/v1/adapters/{PRIVATE}?force=true")).status_code == 200
    as_(server, "globex")
    check_envelope(await server.upload(PRIVATE, rank=8), 409)
    check_envelope(await server.http.post(f"/v1/adapters/{PRIVATE}/restore"), 404)
    as_(server, "acme")
    assert (await server.http.post(f"/v1/adapters/{PRIVATE}/restore")).status_code == 200


async def test_owners_outlive_restarts_and_the_loss_of_the_registry(make_server, keys, check_envelope, tmp_path):
    async with make_server(**keys) as server:
        await fill(server)
    for lost in (False, True):
        if lost:
            for file in (tmp_path / "state").glob("registry.sqlite*"):
                file.unlink()
        async with make_server(**keys) as server:
            as_(server, "globex")
            check_envelope(await server.http.get(f"/v1/adapters/{PRIVATE}"), 404)
            check_envelope(await server.http.get(f"/v1/routes/{PRIVATE}-route"), 404)
            as_(server, "acme")
            assert (await server.http.get(f"/v1/adapters/{PRIVATE}")).status_code == 200
            assert (await server.http.get(f"/v1/routes/{PRIVATE}-route")).status_code == 200


async def test_shared_adapters_are_in_common(make_server, keys, check_envelope):
    async with make_server(**keys, shared_adapters=True) as server:
        await fill(server)
        http = as_(server, "globex")
        assert (await http.post("/v1/completions", json={"model": PRIVATE, "prompt": "a"})).status_code == 200
        assert (await server.upload(PRIVATE, rank=5)).json()["version"] == 3
        check_envelope(await http.delete("/v1/adapters/common"), 403)
        assert (await http.delete(f"/v1/adapters/{PRIVATE}?force=true")).status_code == 200


async def test_jobs_and_events_are_of_those_who_may_see_them(server, until):
    await fill(server)
    log, told = server.services.owned.life.events, []
    with log.watch(sees=server.services.keys.find(b"sk-globex").actor(False).sees) as watcher:
        as_(server, "acme")
        await server.upload(PRIVATE, rank=9)
        await server.http.patch(f"/v1/adapters/{PRIVATE}", json={"tags": ["x"]})
        await server.http.delete(f"/v1/adapters/{PRIVATE}@1")
        await server.http.put(f"/v1/routes/{PRIVATE}-2", json={"kind": "alias", "target": PRIVATE})
        as_(server, "ops")
        await server.upload("common", rank=9)
        await until(lambda: watcher._events)
        told = await watcher.read(0)
    assert [(event.event, event.name) for event in told] == [("adapter.added", "common")]
    as_(server, "acme")
    merge = {"name": "m", "adapters": [{"name": PRIVATE, "weight": 1}]}
    job = (await server.http.post("/v1/adapters/merge", json=merge)).json()["id"]
    as_(server, "globex")
    assert (await server.http.get("/v1/jobs")).json()["data"] == []
    for method in ("GET", "DELETE"):
        assert (await server.http.request(method, f"/v1/jobs/{job}")).status_code == 404
    as_(server, "acme")
    assert (await server.http.delete(f"/v1/jobs/{job}")).status_code == 200


def test_every_verb_behind_a_name_is_known():
    """A route below a name that VERBS lacks would be read as a part of a name, and never be asked as one."""
    verbs = {part for _, path, _ in all_routes() for part in path.split("{name}/")[1:]}
    assert {verb.split("/")[0] for verb in verbs} <= {*VERBS}
