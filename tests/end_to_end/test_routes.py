"""Routes of a real server: PEFT's tokens by each kind, changes under 32 clients of two processes, kill -9 meanwhile."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest

pytestmark = pytest.mark.slow

CLIENTS = 32
CHANGES = 24
PROMPT = [20, 30, 40]
SHORT = {"prompt": PROMPT, "max_tokens": 4, "temperature": 0, "ignore_eos": True, "return_token_ids": True}


@pytest.fixture(scope="module")
def server(world: Any, device: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two API processes, with the world's adapters as `x0`, `x1`, … and the base as `base`."""
    folder = tmp_path_factory.mktemp("routes")
    flags = ("--device", device, "--served-model-name", "base", "--api-workers", "2")
    server = world.oracle.RunningServer.start(world.model, folder / "state", folder / "log", *flags)
    for number, adapter in enumerate(world.adapters):
        assert server.upload(f"x{number}", adapter).status_code == 201
    yield server
    assert server.stop() == 0


@asynccontextmanager
async def connected(world: Any, server: Any) -> AsyncIterator[Any]:
    """Give a client that makes a connection for each request, which the kernel deals out to the processes."""
    once = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=server.url, limits=once, timeout=180) as http:
        official = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0, http_client=http)
        yield world.oracle.Client(http, official)


def put(server: Any, name: str, **body: Any) -> httpx.Response:
    response: httpx.Response = server.client.put(f"/v1/routes/{name}", json=body)
    return response


def mixable(server: Any, number: int) -> tuple[int, int]:
    """Make the route `both` of the first two adapters that mix; return which they are."""
    pairs = ((a, b) for a in range(number) for b in range(a + 1, number))
    members = ((a, b, [{"name": f"x{a}", "weight": 0.75}, {"name": f"x{b}", "weight": -0.5}]) for a, b in pairs)
    return next((a, b) for a, b, both in members if put(server, "both", kind="mixture", adapters=both).is_success)


async def test_each_kind_answers_with_the_tokens_of_what_it_stands_for(world: Any, server: Any) -> None:
    first, second = mixable(server, len(world.adapters))
    arms = [{"target": "x1", "weight": 0}, {"target": "alias", "weight": 1}]
    assert put(server, "alias", kind="alias", target="x0@1").status_code == 201
    assert put(server, "split", kind="split", arms=arms, sticky="user", shadow="x1").status_code == 201
    assert server.upload("gone", world.adapters[0]).status_code == 201
    assert put(server, "next", kind="fallback", targets=["gone", "x1"]).status_code == 201
    assert put(server, "bare", kind="alias", target="base").status_code == 201
    assert server.client.delete("/v1/adapters/gone").status_code == 409
    assert server.client.delete("/v1/adapters/gone?force=true").status_code == 200
    mixture = ((world.adapters[first], 0.75), (world.adapters[second], -0.5))
    expected = {
        "alias": ((world.adapters[0], 1.0),),
        "split": ((world.adapters[0], 1.0),),
        "next": ((world.adapters[1], 1.0),),
        "both": mixture,
        "bare": (),
    }
    async with connected(world, server) as client:
        for name, adapters in expected.items():
            asked = [client.complete_by_openai({**SHORT, "model": name}, stream=i % 2 == 0) for i in range(6)]
            sure = world.reference.sure(PROMPT, 4, adapters)
            for answer in await asyncio.gather(*asked):
                assert answer.token_ids[: len(sure)] == sure, name
        names = {model.id async for model in client.official.models.list()}
        assert expected.keys() <= names
        assert server.client.put("/v1/default-adapter", json={"adapter": "split"}).status_code == 200
        answers = [await client.http.post("/v1/completions", json=SHORT) for _ in range(6)]
    assert {answer.headers["x-peftserve-route"] for answer in answers} == {"split@1; arm=1, alias@1"}
    assert server.client.put("/v1/default-adapter", json={"adapter": None}).status_code == 200
    server.wait_for_metric("peftserve_sequences_running", 0)
    server.wait_for_metric("peftserve_shadow_requests_total", 12)  # each once, whatever became of it
    for name in ("next", "split", "alias", "both", "bare"):
        assert server.client.delete(f"/v1/routes/{name}").status_code == 200


async def test_every_answer_is_wholly_of_one_version(world: Any, server: Any) -> None:
    """Clients on both processes, while the route goes from one adapter to the other and back.

    The route's version in the header decides the adapter, which decides the tokens; no answer is of a version before
    the last that was acknowledged when it was asked for.
    """
    assert put(server, "inner", kind="alias", target="x0").status_code == 201
    adapters, acknowledged = {1: 0}, [1]
    assert put(server, "r", kind="alias", target="x0").json()["version"] == 1
    sure = [world.reference.sure(PROMPT, 4, ((adapter, 1.0),)) for adapter in world.adapters[:2]]
    assert sure[0] != sure[1]
    done = asyncio.Event()
    seen: set[int] = set()

    async def change(http: httpx.AsyncClient) -> None:
        for number in range(CHANGES):
            adapter = (number + 1) % 2
            body = (
                {"kind": "fallback", "targets": ["inner" if adapter == 0 else "x1"]}
                if number % 4 < 2
                else {"kind": "split", "arms": [{"target": f"x{adapter}", "weight": 1}]}
            )
            adapters[acknowledged[-1] + 1] = adapter
            changed = await http.put("/v1/routes/r", json=body)
            assert (changed.status_code, changed.json()["version"]) == (200, acknowledged[-1] + 1)
            acknowledged.append(changed.json()["version"])
        done.set()

    async def ask(http: httpx.AsyncClient) -> None:
        while not done.is_set():
            before = acknowledged[-1]
            answer = await http.post("/v1/completions", json={**SHORT, "model": "r"})
            assert answer.status_code == 200, answer.text
            version = int(re.match(r"r@(\d+)", answer.headers["x-peftserve-route"])[1])  # type: ignore[index]
            number = adapters[version]
            assert before <= version
            assert answer.headers["x-peftserve-adapter"] == answer.json()["model"] == f"x{number}@1"
            tokens = answer.json()["choices"][0]["token_ids"]
            assert tokens[: len(sure[number])] == sure[number]
            seen.add(version)

    async with connected(world, server) as client, asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(ask(client.http))
        group.create_task(change(client.http))
    assert len(seen) > 3
    for name in ("r", "inner"):
        assert server.client.delete(f"/v1/routes/{name}").status_code == 200


async def test_kills_in_the_middle_of_changes_leave_each_route_whole(world: Any, serve: Callable[..., Any]) -> None:
    """Twice on one state folder, whose registry is lost the second time: what was acknowledged is there, or newer."""
    again = serve()
    assert again.upload("x", world.adapters[0]).status_code == 201
    acknowledged: dict[str, dict[str, Any]] = {}
    for generation in range(2):
        tried = await _change_until_killed(world, again, acknowledged)
        if generation == 1:
            for file in again.state.glob("registry.sqlite*"):
                file.unlink()
        again = serve()
        cards = {card["name"]: card for card in again.client.get("/v1/routes").json()["data"]}
        for name, card in acknowledged.items():
            found = cards.get(name)
            if found != card:  # changed, or deleted, by what was not answered any more
                assert name in tried
                assert found is None or (found["version"], found["salt"]) == (card["version"] + 1, tried[name])
        assert {path.name for path in (again.state / "routes").iterdir()} == {
            f"{card['name']}@{card['version']}.json" for card in cards.values()
        }
        async with world.connect(again) as client:
            answers = await asyncio.gather(*(client.complete({**SHORT, "model": name}) for name in cards))
        assert {answer.adapter for answer in answers} == {"x@1"}
        acknowledged = cards


async def _change_until_killed(world: Any, server: Any, acknowledged: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Put routes over and over, delete some, and kill the server under it. Returns what each last tried, by name."""
    tried: dict[str, str] = {}
    changes = 0

    async def change(number: int) -> None:
        nonlocal changes
        for turn in range(1000):
            name, salt = f"r{number}-{turn % 3}", f"{turn}"
            tried[name] = salt
            if turn % 7 == 6 and name in acknowledged:
                response = await client.http.delete(f"/v1/routes/{name}")
                acknowledged.pop(name)
            else:
                body = {"kind": "split", "arms": [{"target": "x", "weight": 1}], "salt": salt}
                response = await client.http.put(f"/v1/routes/{name}", json=body)
                acknowledged[name] = response.json()
            assert response.is_success, response.text
            del tried[name]
            changes += 1

    async with world.connect(server) as client:
        changing = [asyncio.create_task(change(number)) for number in range(4)]
        while changes < 40:
            await asyncio.sleep(0.001)
        server.kill()
        results = await asyncio.gather(*changing, return_exceptions=True)
    assert all(isinstance(result, httpx.TransportError) for result in results), results
    return tried
