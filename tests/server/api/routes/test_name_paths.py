"""Adapters and routes with slashes and colons in their names, on every route that takes a name."""

from urllib.parse import quote

import pytest

NAMES = ["org/name", "org/deep/name:v2", "base:adapter", "files/load"]


@pytest.mark.parametrize("encoded", [False, True], ids=["slash", "%2F"])
@pytest.mark.parametrize("name", NAMES[:-1])
async def test_an_adapter_s_whole_life(server, name, encoded):
    path = f"/v1/adapters/{quote(name, safe='@' if encoded else '/:@')}"
    assert [(await server.upload(name, rank)).status_code for rank in (4, 8)] == [201, 201]
    http = server.http
    assert (await http.get(path)).json()["name"] == name
    assert (await http.get(f"{path}@1")).json()["version"] == 1
    assert len((await http.get(f"{path}/versions")).json()["data"]) == 2
    files = (await http.get(f"{path}@1/files")).json()
    assert files["id"] == f"{name}@1"
    assert (await http.get(f"{path}/files/adapter_config.json")).status_code == 200
    assert (await http.post(f"{path}/load")).status_code == 200
    assert (await http.patch(path, json={"tags": ["x"]})).json()["tags"] == ["x"]
    assert (await http.post(f"{path}/rollback")).json()["version"] == 3
    assert (await http.get(f"/v1/models/{quote(name, safe='@')}@3")).json()["id"] == f"{name}@3"
    answer = await http.post("/v1/completions", json={"model": f"{name}@2", "prompt": "a", "max_tokens": 1})
    assert answer.headers["x-peftserve-adapter"] == f"{name}@2"
    assert (await http.delete(path)).status_code == 200
    assert (await http.get(path)).status_code == 404


async def test_a_route_s_whole_life(server):
    await server.upload("org/a")
    body = {"kind": "alias", "target": "org/a"}
    assert (await server.http.put("/v1/routes/team/prod", json=body)).status_code == 201
    assert (await server.http.get("/v1/routes/team%2Fprod")).json()["name"] == "team/prod"
    explained = await server.http.post("/v1/routes/team/prod/explain", json={"prompt": "x"})
    assert explained.json()["chosen"] == "org/a@1"
    answer = await server.http.post("/v1/completions", json={"model": "team/prod", "prompt": "a", "max_tokens": 1})
    assert answer.headers["x-peftserve-adapter"] == "org/a@1"
    assert (await server.http.delete("/v1/routes/team/prod")).status_code == 200


async def test_by_vllm_s_and_openai_s_routes(server):
    await server.upload("org/a")
    unloaded = await server.http.post("/v1/unload_lora_adapter", json={"lora_name": "org/a"})
    assert unloaded.status_code == 200
    await server.upload("org/a")
    assert (await server.http.delete("/v1/models/org/a")).json()["deleted"]


@pytest.mark.parametrize("name", ["org/files", "a/../b", "../a", "a//b", "/a", "a/", "org/load/x", "a/" * 40 + "b"])
async def test_names_that_are_none(server, name, check_envelope):
    check_envelope(await server.upload(name), 400)
    assert (await server.http.get("/v1/adapters")).json()["data"] == []


async def test_paths_that_are_of_nobody(server, check_envelope):
    for path in ("org/name", "org%2Fname/files", "a/../../x", "..%2F..%2Fetc/files/passwd", "x/files/..%2F..%2Fy"):
        check_envelope(await server.http.get(f"/v1/adapters/{path}"), 404)


async def test_files_of_the_state_are_in_their_folders(server, tmp_path):
    for name in NAMES[:-1]:
        await server.upload(name)
        await server.http.patch(f"/v1/adapters/{name}", json={"tags": ["x"]})
    await server.http.put("/v1/routes/team/prod", json={"kind": "alias", "target": NAMES[0]})
    records = {path.name for path in (tmp_path / "state" / "versions").iterdir() if path.is_file()}
    assert {f"{quote(name, safe='')}@1.json" for name in NAMES[:-1]} <= records
    for folder in ("versions", "routes", "settings"):
        assert not [path for path in (tmp_path / "state" / folder).iterdir() if path.is_dir()]


async def test_a_base_of_several_names(make_server, check_envelope):
    async with make_server(other_model_names=("org/base", "gpt-4o")) as server:
        models = (await server.http.get("/v1/models")).json()["data"]
        assert [model["id"] for model in models] == ["base", "org/base", "gpt-4o"]
        for name in ("base", "org/base", "gpt-4o"):
            answer = await server.http.post("/v1/completions", json={"model": name, "prompt": "a", "max_tokens": 1})
            assert answer.json()["model"] == answer.headers["x-peftserve-adapter"] == "base"
            assert (await server.http.get(f"/v1/models/{name}")).json()["id"] == name
            check_envelope(await server.upload(name), 409)
            check_envelope(await server.http.put(f"/v1/routes/{name}", json={"kind": "alias", "target": "base"}), 409)
            check_envelope(await server.http.delete(f"/v1/models/{name}"), 403)
        routed = await server.http.put("/v1/routes/r", json={"kind": "alias", "target": "gpt-4o"})
        assert routed.status_code == 201
        answer = await server.http.post("/v1/completions", json={"model": "r", "prompt": "a", "max_tokens": 1})
        assert answer.json()["model"] == "base"
