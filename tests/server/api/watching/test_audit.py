"""Who has changed what, told in a file that is only added to."""

import json
import logging

FILE = """
[[keys]]
name = "acme"
key = "sk-acme"
[[keys]]
name = "ops"
key = "sk-ops"
role = "admin"
"""
MIRROR = {"kind": "alias", "target": "sql"}


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_every_change_is_a_line_with_who_made_it(make_server, tmp_path, until):
    log, keys = tmp_path / "audit.jsonl", tmp_path / "keys"
    keys.write_text(FILE)
    fields = {"api_key_file": keys, "audit_log": str(log), "keep_deleted": 60.0}
    async with make_server(**fields) as server:
        http = server.http
        http.headers.update({"Authorization": "Bearer sk-ops", "X-Request-Id": "r-1"})
        card = (await server.upload("sql")).json()
        await server.upload("sql", rank=2)
        await http.post("/v1/adapters/sql/rollback", json={"to": 1})
        await http.patch("/v1/adapters/sql", json={"tags": ["100%s"]})
        await http.put("/v1/default-adapter", json={"adapter": "sql"})
        await http.put("/v1/routes/r", json=MIRROR)
        await http.delete("/v1/routes/r")
        log.rename(tmp_path / "rotated")
        http.headers["Authorization"] = "Bearer sk-acme"
        await http.delete("/v1/adapters/sql")
        await http.post("/v1/completions", json={"model": "nobody", "prompt": "a"})
        await server.upload("mine", rank=3)
        await http.delete("/v1/adapters/mine")
        await http.post("/v1/adapters/mine/restore")
        keys.write_text(FILE.replace("sk-acme", "sk-other"))
        server.services.keys.refresh()
        server.services.keys.refresh()
        keys.write_text("[[keys]]")
        server.services.keys.refresh()
        server.services.keys.refresh()
        await until(lambda: len(lines_of(log)) == 6)
        first, then = lines_of(tmp_path / "rotated"), lines_of(log)
    assert [(line["what"], line.get("name"), line.get("version")) for line in first] == [
        ("adapter.added", "sql", 1),
        ("adapter.added", "sql", 2),
        ("adapter.added", "sql", 3),
        ("settings.changed", "sql", None),
        ("default.changed", "sql", None),
        ("route.changed", "r", None),
        ("route.changed", "r", None),
    ]
    line = first[0]
    assert line.pop("time").endswith("Z")
    assert line == {
        "who": "ops",
        "role": "admin",
        "what": "adapter.added",
        "client": "127.0.0.1",
        "request": "POST /v1/adapters",
        "id": "r-1",
        "name": "sql",
        "version": 1,
        "digest": card["digest"],
    }
    assert first[2]["request"] == "POST /v1/adapters/sql/rollback"
    assert [(line["who"], line["what"], line.get("status"), line.get("keys")) for line in then] == [
        ("acme", "refused", 403, None),
        ("acme", "adapter.added", None, None),
        ("acme", "adapter.deleted", None, None),
        ("acme", "adapter.restored", None, None),
        ("server", "keys.changed", None, 2),
        ("server", "keys.refused", None, 2),
    ]
    assert "sk-" not in log.read_text() + (tmp_path / "rotated").read_text()


async def test_who_is_not_let_in_is_told_of_too(make_server, tmp_path):
    log, keys = tmp_path / "audit.jsonl", tmp_path / "keys"
    keys.write_text(FILE.replace('"acme"', '"100% acme"'))
    async with make_server(api_key_file=keys, audit_log=str(log), root_path="/llm") as server:
        http = server.http
        for path, headers in (
            ("/v1/adapters/a", {}),
            ("/llm/v1/adapters/b", {"Authorization": "Bearer sk-no"}),
            ("/llm/v1/adapters/c", {"Authorization": "Bearer sk-ops", "Origin": "https://evil.example"}),
            ("/llm/v1/adapters/d", {"Authorization": "Bearer sk-acme"}),
        ):
            await http.delete(path, headers=headers)
        acme = {"Authorization": "Bearer sk-acme"}
        await http.put("/v1/routes/explain", json=MIRROR, headers=acme)
        await http.post("/v1/routes/r/explain", json={"prompt": "a"}, headers=acme)
        await http.get("/v1/adapters", headers={"Authorization": "Bearer sk-no"})
    lines = lines_of(log)
    assert [(line["who"], line["role"], line["request"], line["status"]) for line in lines] == [
        ("anyone", "user", "DELETE /v1/adapters/a", 401),
        ("anyone", "user", "DELETE /v1/adapters/b", 401),
        ("anyone", "user", "DELETE /v1/adapters/c", 403),
        ("100% acme", "user", "DELETE /v1/adapters/d", 404),
        ("100% acme", "user", "PUT /v1/routes/explain", lines[-1]["status"]),
    ]


async def test_a_log_whose_folder_is_gone_stops_no_change(make_server, tmp_path, caplog):
    folder = tmp_path / "logs"
    folder.mkdir()
    async with make_server(audit_log=str(folder / "audit.jsonl")) as server:
        folder.rename(tmp_path / "away")
        assert (await server.upload("sql")).status_code == 201
        assert (await server.http.delete("/v1/adapters/nobody")).status_code == 404
        folder.mkdir()
        assert (await server.http.delete("/v1/adapters/sql")).status_code == 200
    assert [line["what"] for line in lines_of(folder / "audit.jsonl")] == ["adapter.deleted"]
    assert [record.message for record in caplog.records if "audit log cannot be written" in record.message]


async def test_a_log_that_cannot_be_written_stops_no_change(make_server, tmp_path, caplog):
    async with make_server(audit_log="/dev/full") as server:
        assert (await server.upload("sql")).status_code == 201
    assert any("audit log cannot be written" in record.message for record in caplog.records)
    assert caplog.records[0].levelno == logging.ERROR
