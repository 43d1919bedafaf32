import asyncio
import os

import httpx

from peftserve.server.api.routes import adapter_files


async def test_files_come_back_byte_for_byte(server, adapter_bytes):
    card = (await server.upload("sql", rank=4)).json()
    await server.upload("sql", rank=8)
    sent = adapter_bytes(rank=4)
    listed = (await server.http.get("/v1/adapters/sql@1/files")).json()
    assert listed == {
        "object": "list",
        "id": "sql@1",
        "digest": card["digest"],
        "data": [{"name": name, "size": len(content)} for name, content in sent.items()],
    }
    kinds = {"adapter_config.json": "application/json", "adapter_model.safetensors": "application/octet-stream"}
    tags = set()
    for version, rank in ((1, 4), (2, 8)):
        for name, content in adapter_bytes(rank=rank).items():
            answer = await server.http.get(f"/v1/adapters/sql@{version}/files/{name}")
            assert answer.content == content
            assert answer.headers["content-type"] == kinds[name]
            assert answer.headers["content-length"] == str(len(content))
            tags.add(answer.headers["etag"])
            again = await server.http.get(answer.url, headers={"if-none-match": answer.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
    assert len(tags) == 4
    assert (await server.http.get("/v1/adapters/sql/files")).json()["id"] == "sql@2"


async def test_other_names_are_not_found(server, check_envelope):
    await server.upload("sql")
    for path in ("nobody/files", "nobody/files/adapter_config.json", "sql@2/files", "a%20b/files"):
        check_envelope(await server.http.get(f"/v1/adapters/{path}"), 404, "model_not_found")
    hidden = server.config.state_dir / "adapters" / "hidden"
    hidden.write_text("hidden")
    names = ("nothing", "..%2fhidden", "%2e%2e/hidden", "..%2f..%2fregistry.sqlite", str(hidden).replace("/", "%2f"))
    for name in (*names, "adapter_config.json%00", "a/adapter_config.json", "%ed%a0%80", "x" * 5000):
        answer = await server.http.get(httpx.URL(f"{server.url}/v1/adapters/sql/files/{name}"))
        assert check_envelope(answer, 404, "file_not_found")["param"] == "file"
        assert "hidden" not in answer.text
        assert str(server.config.state_dir) not in answer.text


async def test_a_link_and_a_folder_that_is_gone_are_damage(server, check_envelope):
    digest = (await server.upload("sql")).json()["digest"]
    folder = server.config.state_dir / "adapters" / digest
    (folder / "adapter_config.json").unlink()
    (folder / "adapter_config.json").symlink_to("/etc/passwd")
    check_envelope(await server.http.get("/v1/adapters/sql/files/adapter_config.json"), 503, "adapter_damaged")
    os.rename(folder, folder.with_name("elsewhere"))
    for path in ("files", "files/adapter_config.json"):
        check_envelope(await server.http.get(f"/v1/adapters/sql/{path}"), 503, "adapter_damaged")


async def test_a_deletion_does_not_break_what_is_being_sent(server, adapter_bytes, until, monkeypatch):
    monkeypatch.setattr(adapter_files, "_PIECE", 1 << 16)
    digest = (await server.upload("large", width=1 << 18)).json()["digest"]
    wanted = adapter_bytes(width=1 << 18)["adapter_model.safetensors"]
    async with server.http.stream("GET", "/v1/adapters/large/files/adapter_model.safetensors") as answer:
        pieces = answer.aiter_bytes(1 << 16)
        content = await anext(pieces)
        await server.http.delete("/v1/adapters/large")
        await until(lambda: not (server.config.state_dir / "adapters" / digest).exists())
        async for piece in pieces:
            content += piece
    assert content == wanted


async def test_files_are_closed_when_a_client_leaves(server, until, monkeypatch):
    opened = []
    real = adapter_files._opened
    monkeypatch.setattr(adapter_files, "_opened", lambda *args: opened.append(real(*args)) or opened[-1])
    monkeypatch.setattr(adapter_files, "_PIECE", 1 << 16)
    await server.upload("large", width=1 << 18)
    async with server.http.stream("GET", "/v1/adapters/large/files/adapter_model.safetensors") as answer:
        await anext(answer.aiter_bytes(1 << 16))
    await until(lambda: opened[0].closed)
    await asyncio.gather(*(server.http.get("/v1/adapters/large/files/adapter_config.json") for _ in range(8)))
    await until(lambda: all(file.closed for file in opened))
