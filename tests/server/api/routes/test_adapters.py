import asyncio
import errno
import os

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peftserve.adapters import staging
from peftserve.server.api.engine.interface import EngineDead
from peftserve.server.wire.messages import EngineStats


def _state_files(server, folder):
    return sorted(os.listdir(server.config.state_dir / folder))


async def test_an_upload_is_served_listed_and_on_disk(server):
    response = await server.upload("sql", rank=16)
    assert response.status_code == 201
    card = response.json()
    assert {key: value for key, value in card.items() if key not in ("digest", "created")} == {
        "id": "sql",
        "object": "adapter",
        "name": "sql",
        "version": 1,
        "method": "LORA",
        "rank": 16,
        "size": 640,
        "primitives": {"low_rank": 2},
        "modules": 2,
        "tensors": 4,
        "state": "disk",
        "requests_running": 0,
    }
    assert (await server.http.get("/v1/adapters/sql")).json() == card
    assert (await server.http.get("/v1/adapters")).json()["data"] == [card]
    assert _state_files(server, "adapters") == [card["digest"]]
    assert _state_files(server, "staging") == []
    answer = await server.openai.completions.create(model="sql", prompt="ab", max_tokens=2)
    assert answer.model == "sql"
    assert server.engine.requests[0].adapters[0].digest == card["digest"]


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, "store_full"), (errno.EROFS, "store_failed"), (errno.EIO, "store_failed")]
)
async def test_a_disk_that_takes_no_upload_is_the_servers_fault(server, check_envelope, monkeypatch, number, code):
    def fail(fd):
        raise OSError(number, "of the system")

    with monkeypatch.context() as patch:
        patch.setattr(staging.os, "fsync", fail)
        response = await server.upload("sql")
    assert check_envelope(response, 503, code)["type"] == "server_error"
    assert response.headers["retry-after"]
    assert _state_files(server, "adapters") == _state_files(server, "staging") == []
    assert (await server.upload("sql")).status_code == 201


async def test_a_card_has_tasks_and_virtual_tokens_where_there_are_some(server, engine):
    engine.facts = {"primitives": {"kv_prefix": 1}, "sites": 0, "rank": 0, "virtual_tokens": 20, "num_tasks": 3}
    card = (await server.upload("tuned")).json()
    assert (card["primitives"], card["modules"], card["rank"]) == ({"kv_prefix": 1}, 0, 0)
    assert (card["virtual_tokens"], card["num_tasks"]) == (20, 3)
    assert (await server.http.get("/v1/adapters")).json()["data"] == [card]
    models = {model.id: model.max_model_len async for model in await server.openai.models.list()}
    assert models == {"base": 128, "tuned": 108}


async def test_the_fields_may_come_in_any_order_and_in_small_pieces(server, adapter_bytes):
    config, weights = adapter_bytes(width=3000).values()
    parts = [
        ("files", '; filename="adapter_model.safetensors"', weights),
        ("name", "", b"late"),
        ("files", '; filename="adapter_config.json"', config),
    ]
    body = b""
    for field, filename, content in parts:
        disposition = f'Content-Disposition: form-data; name="{field}"{filename}'
        body += b"--xyz\r\n" + disposition.encode() + b"\r\n\r\n" + content + b"\r\n"
    body += b"--xyz--\r\n"

    async def pieces():
        for i in range(0, len(body), 777):
            yield body[i : i + 777]

    headers = {"content-type": "multipart/form-data; boundary=xyz"}
    response = await server.http.post("/v1/adapters", content=pieces(), headers=headers)
    assert response.status_code == 201, response.text
    stored = server.config.state_dir / "adapters" / response.json()["digest"] / "adapter_model.safetensors"
    assert stored.read_bytes() == weights


async def test_the_same_name_again_is_a_new_version_and_old_ones_stay(server):
    first = (await server.upload("sql", rank=4)).json()
    second = (await server.upload("sql", rank=8)).json()
    assert (first["version"], second["version"]) == (1, 2)
    for model, label in [("sql", "sql@2"), ("sql@1", "sql@1"), ("sql@2", "sql@2")]:
        response = await server.http.post("/v1/completions", json={"model": model, "prompt": "ab"})
        assert response.json()["model"] == model
        assert response.headers["x-peftserve-adapter"] == label
    assert (await server.http.get("/v1/adapters/sql@1")).json() == first
    assert (await server.http.delete("/v1/adapters/sql@2")).status_code == 200
    assert (await server.http.get("/v1/adapters/sql")).json()["version"] == 1


async def test_models_have_the_base_as_their_parent(server):
    card = (await server.upload()).json()
    models = [model async for model in await server.openai.models.list()]
    assert [(m.id, m.parent, m.root) for m in models] == [("base", None, "base"), ("sql", "base", card["digest"])]
    assert (await server.openai.models.retrieve("sql@1")).root == card["digest"]
    assert (await server.openai.models.retrieve("default")).id == "base"
    with pytest.raises(openai.NotFoundError):
        await server.openai.models.retrieve("nobody")


async def test_the_default_answers_requests_that_name_no_model(server, check_envelope):
    await server.upload("sql")
    assert (await server.http.get("/v1/default-adapter")).json() == {"adapter": None}
    assert (await server.http.put("/v1/default-adapter", json={"adapter": "sql"})).json() == {"adapter": "sql"}
    for body in ({}, {"model": "default"}):
        response = await server.http.post("/v1/completions", json={"prompt": "ab", **body})
        assert response.headers["x-peftserve-adapter"] == "sql@1"
        assert response.json()["model"] == "sql@1"
    response = await server.http.post("/v1/completions", json={"prompt": "ab", "model": "base"})
    assert response.headers["x-peftserve-adapter"] == "base"
    check_envelope(await server.http.put("/v1/default-adapter", json={"adapter": "nobody"}), 404)
    check_envelope(await server.http.put("/v1/default-adapter", json={}), 400)
    assert (await server.http.put("/v1/default-adapter", json={"adapter": None})).json() == {"adapter": None}
    assert (await server.http.get("/v1/default-adapter")).json() == {"adapter": None}


async def test_a_deleted_default_leaves_the_base(server):
    await server.upload("sql")
    await server.http.put("/v1/default-adapter", json={"adapter": "sql"})
    assert (await server.http.delete("/v1/adapters/sql")).json()["deleted"] is True
    assert (await server.http.get("/v1/default-adapter")).json() == {"adapter": None}
    response = await server.http.post("/v1/completions", json={"prompt": "ab"})
    assert response.headers["x-peftserve-adapter"] == "base"


async def test_a_mixture_carries_its_weights(server):
    a, b = (await server.upload("a", rank=4)).json(), (await server.upload("b", rank=8)).json()
    mixture = [{"name": "a", "weight": 0.75}, {"name": "b", "weight": 0.25}]
    response = await server.http.post("/v1/completions", json={"prompt": "ab", "adapters": mixture})
    assert response.headers["x-peftserve-adapter"] == response.json()["model"] == "a@1*0.75+b@1*0.25"
    stream = await server.http.post("/v1/completions", json={"prompt": "ab", "adapters": mixture, "stream": True})
    assert stream.headers["x-peftserve-adapter"] == response.headers["x-peftserve-adapter"]
    assert stream.headers["content-type"].startswith("text/event-stream")
    parts = {part.digest: part.weight for part in server.engine.requests[0].adapters}
    assert parts == {a["digest"]: 0.75, b["digest"]: 0.25}


async def test_a_deleted_adapter_serves_its_requests_to_the_end(server, engine, until, check_envelope):
    digest = (await server.upload()).json()["digest"]
    engine.going.clear()
    body = {"model": "sql", "prompt": "ab", "max_tokens": 20}
    running = asyncio.create_task(server.http.post("/v1/completions", json=body))
    await until(lambda: engine.running)
    assert (await server.http.get("/v1/adapters/sql")).json()["requests_running"] == 1
    deleted = (await server.http.delete("/v1/adapters/sql")).json()
    assert deleted == {"id": "sql", "object": "adapter", "deleted": True}
    check_envelope(await server.http.post("/v1/completions", json=body), 404, "model_not_found")
    check_envelope(await server.http.get("/v1/adapters/sql"), 404)
    check_envelope(await server.http.delete("/v1/adapters/sql"), 404)
    assert engine.released == []
    engine.going.set()
    assert (await running).json()["usage"]["completion_tokens"] == 20
    await until(lambda: engine.released == [digest] and _state_files(server, "adapters") == [])


async def test_state_comes_from_the_engine(server, engine):
    digest = (await server.upload()).json()["digest"]
    for state, stats in [
        ("host", EngineStats(host_adapters=[digest])),
        ("device", EngineStats(host_adapters=[digest], device_adapters=[digest])),
    ]:
        engine.publish(stats)
        assert (await server.http.get("/v1/adapters/sql")).json()["state"] == state


async def test_long_lists_come_in_pages(server):
    for name in ("c", "a", "b"):
        await server.upload(name)
    page = (await server.http.get("/v1/adapters?limit=2")).json()
    assert ([card["name"] for card in page["data"]], page["has_more"]) == (["a", "b"], True)
    page = (await server.http.get("/v1/adapters?limit=2&after=b")).json()
    assert ([card["name"] for card in page["data"]], page["has_more"]) == (["c"], False)
    page = (await server.http.get("/v1/adapters")).json()
    assert ([card["name"] for card in page["data"]], page["has_more"]) == (["a", "b", "c"], False)


async def test_a_folder_is_sent_as_a_trainer_has_left_it(server, adapter_bytes):
    plain = (await server.upload("plain")).json()
    files = [("files", (f"mine/{name}", content)) for name, content in adapter_bytes().items()]
    extra = ["README.md", "training_args.bin", "runs/events.out.tfevents.0", "checkpoint-5/adapter_config.json"]
    files += [("files", (f"mine/{name}", b"x")) for name in extra]
    response = await server.http.post("/v1/adapters", data={"name": "mine"}, files=files)
    assert response.status_code == 201
    assert response.json()["skipped"] == [f"mine/{name}" for name in extra]
    assert response.json()["digest"] == plain["digest"], "what is skipped makes no other adapter"
    assert "skipped" not in plain
    files += [("files", ("mine/generation_config.json", b"{}"))]
    other = (await server.http.post("/v1/adapters", data={"name": "other"}, files=files)).json()
    assert other["digest"] != plain["digest"]
    listed = (await server.http.get("/v1/adapters/other/files")).json()
    assert "generation_config.json" in str(listed)


async def test_a_bad_upload_names_its_fault_and_leaves_nothing(server, check_envelope, adapter_bytes):
    config, weights = [("files", file) for file in adapter_bytes().items()]
    nowhere = [("files", file) for file in adapter_bytes(target="nowhere").items()]
    name = {"name": "x"}
    for data, files, says in [
        (name, [config], "adapter_model.safetensors is missing"),
        (name, [weights], "adapter_config.json is missing"),
        ({}, [config, weights], "'name' is missing"),
        ({"name": "x", "extra": "y"}, [config, weights], "unexpected part 'extra'"),
        (name, [config, weights, config], "twice"),
        (name, [config, ("files", ("README.md", b""))], "adapter_model.safetensors is missing"),
        (name, [("files", ("mine.tar.gz", b""))], "is an archive"),
        (name, [("files", ("../../evil/adapter_config.json", b"{}"))], "not part of an adapter"),
        (name, [("files", ("adapter_model.bin", b""))], "pickle"),
        (name, [("file", ("adapter_config.json", b"{}"))], "unexpected part 'file'"),
        ({"name": "../x"}, [config, weights], "not a name"),
        ({"name": "x" * 2000}, [config, weights], "over 1024 bytes"),
        (name, [config, ("files", ("adapter_model.safetensors", b"short"))], "no header"),
        (name, nowhere, "matches no module"),
    ]:
        response = await server.http.post("/v1/adapters", data=data, files=files)
        assert says in check_envelope(response, 400)["message"]
        assert _state_files(server, "adapters") == _state_files(server, "staging") == []


async def test_reserved_names_are_a_conflict(server, check_envelope):
    check_envelope(await server.upload("base"), 409, "adapter_conflict")
    check_envelope(await server.upload("default"), 409, "adapter_conflict")


FORM = "multipart/form-data; boundary=x"
NAME = b'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\n'
MALFORMED = [
    ("multipart/form-data", b""),
    ("multipart/form-data; boundary=", b"--\r\n"),
    ("multipart/form-data; boundary=" + "x" * 400, b""),
    (FORM, b""),
    (FORM, b"garbage"),
    (FORM, b"--x\r\n\r\n\r\n--x--\r\n"),
    (FORM, b"--x--\r\n"),
    (FORM, NAME + b"ab"),
    (FORM, b"--x\r\nA: " + b"b" * 100_000),
    (FORM, b"--x\r\n" + b"A: b\r\n" * 10_000),
    (FORM, (NAME + b"a\r\n") * 20),
    ("application/json", b"[]"),
    ("text/plain", b"\xff\xfe"),
    ("", b""),
]


async def test_a_malformed_body_is_a_400(server, check_envelope):
    for content_type, body in MALFORMED:
        response = await server.http.post("/v1/adapters", content=body, headers={"content-type": content_type})
        check_envelope(response, 400)
        assert _state_files(server, "staging") == []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_no_damage_to_an_upload_makes_a_5xx_or_leaves_files(server, adapter_bytes, data):
    body = NAME + b"x\r\n"
    for name, content in adapter_bytes().items():
        disposition = f'Content-Disposition: form-data; name="files"; filename="{name}"'
        body += b"--x\r\n" + disposition.encode() + b"\r\n\r\n" + content + b"\r\n"
    body += b"--x--\r\n"
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(body)))
        end = min(len(body), start + data.draw(st.integers(0, 40)))
        body = body[:start] + data.draw(st.binary(max_size=20)) + body[end:]
    response = await server.http.post("/v1/adapters", content=body, headers={"content-type": FORM})
    assert response.status_code in (201, 400), response.text
    assert _state_files(server, "staging") == []


async def test_an_upload_over_the_limit_is_stopped(make_server, check_envelope):
    async with make_server(upload_limit=1000) as server:
        check_envelope(await server.upload(width=2000), 413, "adapter_too_large")
        check_envelope(await server.upload(width=200_000), 413, "body_too_large")

        async def endless():
            yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="adapter_model.safetensors"\r\n\r\n'
            for _ in range(64):
                yield b"x" * 65536

        headers = {"content-type": "multipart/form-data; boundary=x"}
        check_envelope(await server.http.post("/v1/adapters", content=endless(), headers=headers), 413)
        assert _state_files(server, "staging") == []
        assert (await server.upload(rank=1)).status_code == 201


async def test_a_client_that_leaves_in_the_middle_of_an_upload_leaves_nothing(server, until):
    _, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
    writer.write(
        b"POST /v1/adapters HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n"
        b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="adapter_config.json"\r\n\r\n{'
    )
    await writer.drain()
    await until(lambda: _state_files(server, "staging"))
    writer.close()
    await until(lambda: not _state_files(server, "staging"))
    assert (await server.upload()).status_code == 201


async def test_an_engine_that_dies_during_an_upload_leaves_nothing(server, engine, check_envelope, monkeypatch):
    async def die(digest, path, tenant=""):
        raise EngineDead("killed")

    monkeypatch.setattr(server.services.adapters.library, "_inspect", die)
    check_envelope(await server.upload(), 503, "engine_dead")
    assert _state_files(server, "adapters") == _state_files(server, "staging") == []
    check_envelope(await server.http.get("/v1/adapters/sql"), 404)


@pytest.fixture
def folder(tmp_path, adapter_bytes):
    folder = tmp_path / "allowed" / "sql"
    folder.mkdir(parents=True)
    for name, content in adapter_bytes().items():
        (folder / name).write_bytes(content)
    return folder


def _source(uri, kind="path"):
    return {"name": "sql", "source": {"type": kind, "uri": str(uri)}}


async def test_folders_of_the_server_are_off_until_allowed(server, folder, check_envelope):
    for kind in ("path", "hub", "s3", "gs", "http"):
        response = await server.http.post("/v1/adapters", json=_source(folder, kind))
        assert "not enabled" in check_envelope(response, 400)["message"]
    body = {"lora_name": "sql", "lora_path": str(folder)}
    check_envelope(await server.http.post("/v1/load_lora_adapter", json=body), 400)


async def test_only_allowed_folders_are_read(make_server, folder, tmp_path, check_envelope):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "adapter_config.json").write_text("{}")
    (outside / "adapter_model.safetensors").write_bytes(b"secret")
    (folder.parent / "link").symlink_to(outside)
    inner = folder.parent / "inner"
    inner.mkdir()
    (inner / "adapter_config.json").write_text("{}")
    (inner / "adapter_model.safetensors").symlink_to(outside / "adapter_model.safetensors")
    async with make_server(allow_adapter_paths=(folder.parent,)) as server:
        assert (await server.http.post("/v1/adapters", json=_source(folder))).status_code == 201
        bad = [outside, folder.parent / "link", f"{folder}/../../outside", inner, "/etc", "", "a\0b", folder / "absent"]
        for uri in bad:
            response = await server.http.post("/v1/adapters", json=_source(uri))
            message = check_envelope(response, 400)["message"]
            assert str(tmp_path) not in message
        assert _state_files(server, "staging") == []
        assert len(_state_files(server, "adapters")) == 1


async def test_vllms_routes_speak_as_vllm_does(make_server, folder, check_envelope):
    async with make_server(allow_adapter_paths=(folder.parent,)) as server:
        body = {"lora_name": "sql", "lora_path": str(folder)}
        response = await server.http.post("/v1/load_lora_adapter", json=body)
        assert (response.status_code, response.text) == (200, "Success: LoRA adapter 'sql' added successfully.")
        again = await server.http.post("/v1/load_lora_adapter", json=body)
        assert "has already been loaded" in check_envelope(again, 400)["message"]
        replaced = await server.http.post("/v1/load_lora_adapter", json={**body, "load_inplace": True})
        assert replaced.status_code == 200
        check_envelope(await server.http.post("/v1/load_lora_adapter", json={"lora_name": "x"}), 400)
        for name in ("absent", 300 * "a"):
            absent = {"lora_name": "x", "lora_path": f"{folder}/{name}"}
            check_envelope(await server.http.post("/v1/load_lora_adapter", json=absent), 404, "adapter_not_found")
        response = await server.http.post("/v1/unload_lora_adapter", json={"lora_name": "sql"})
        assert (response.status_code, response.text) == (200, "Success: LoRA adapter 'sql' removed successfully.")
        gone = await server.http.post("/v1/unload_lora_adapter", json={"lora_name": "sql"})
        assert "cannot be found" in check_envelope(gone, 404)["message"]
        check_envelope(await server.http.post("/v1/unload_lora_adapter", json={}), 400)


async def test_damaged_files_are_told_on_the_card_until_they_are_uploaded_again(server, engine, until):
    card = (await server.upload("a")).json()
    weights = server.config.state_dir / "adapters" / card["digest"] / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes() + b"?")
    engine.publish(EngineStats(damaged_adapters=[card["digest"]]))
    await until(lambda: server.services.owned.library.damaged)
    assert "damaged" in (await server.http.get("/v1/adapters/a")).json()["error"]
    assert _state_files(server, "adapters") == []
    assert len(_state_files(server, "lost+found")) == 1
    again = (await server.upload("a")).json()
    assert (again["version"], again["digest"]) == (2, card["digest"])
    for name in ("a@1", "a@2"):
        assert "error" not in (await server.http.get(f"/v1/adapters/{name}")).json()
