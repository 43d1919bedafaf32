"""Merges and their jobs over HTTP, with real processes that merge and an engine that is a few lines."""

import asyncio
import os
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from peftserve.adapters.merging.plan import Module
from peftserve.server.api import merges

GATED = """
import os, sys, time
from peftserve.adapters.merging.__main__ import main
while not os.path.exists(os.environ["GATE"]):
    time.sleep(0.01)
sys.exit(main())
"""
TWO = [{"name": "a", "weight": 0.7}, {"name": "b", "weight": -0.2}]


@pytest.fixture
def gate(tmp_path, monkeypatch):
    """Holds every process of a merge before it reads its order, until the file exists."""
    (tmp_path / "gated_merge.py").write_text(GATED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("GATE", str(tmp_path / "gate"))
    monkeypatch.setattr(merges, "MODULE", "gated_merge")
    return tmp_path / "gate"


async def _merge(server, wait=0, **fields):
    body = {"name": "both", "adapters": TWO, **fields}
    return await server.http.post("/v1/adapters/merge", params={"wait": wait} if wait else {}, json=body, timeout=60)


def _staged(server):
    return os.listdir(server.config.state_dir / "staging")


@pytest.mark.slow
async def test_a_merge_is_a_new_adapter_with_its_provenance(server):
    await server.upload("a", rank=4)
    await server.upload("b", rank=2)
    made = await _merge(server, wait=60, combination_type="cat")
    assert made.status_code == 201, made.text
    card = made.json()
    assert (card["name"], card["version"], card["rank"]) == ("both", 1, 6)
    assert (await server.http.get("/v1/adapters/both")).json() == card
    a, b = [(await server.http.get(f"/v1/adapters/{name}")).json()["digest"] for name in "ab"]
    assert server.services.adapters.registry.get("both").origin == {
        "kind": "merge",
        "sources": [
            {"name": "a@1", "digest": a, "weight": 0.7},
            {"name": "b@1", "digest": b, "weight": -0.2},
        ],
        "combination_type": "cat",
        "density": 0.5,
        "majority_sign_method": "total",
        "svd_rank": None,
        "seed": 0,
    }
    stored = server.config.state_dir / "adapters" / card["digest"]
    assert sorted(os.listdir(stored)) == ["adapter_config.json", "adapter_model.safetensors"]
    tensors = load_file(stored / "adapter_model.safetensors")
    product = tensors["base_model.model.q_proj.lora_B.weight"] @ tensors["base_model.model.q_proj.lora_A.weight"]
    assert product == pytest.approx(4 * 0.7 - 2 * 0.2)  # sums of products of ones, scaled by 1

    again = await _merge(server, wait=60, combination_type="cat")
    assert (again.json()["version"], again.json()["digest"]) == (2, card["digest"])
    jobs = (await server.http.get("/v1/jobs")).json()["data"]
    assert [(job["status"], job["progress"], job["result"]["version"]) for job in jobs] == [
        ("succeeded", 1.0, 2),
        ("succeeded", 1.0, 1),
    ]
    assert _staged(server) == []
    assert server.services.adapters.leases.counts() == {}


@pytest.mark.slow
async def test_a_job_holds_what_it_merges_and_is_cancelled(server, gate, check_envelope):
    """Adapters deleted meanwhile are merged all the same, and then leave; a cancelled job leaves nothing."""
    for name, rank in (("a", 2), ("b", 2)):
        await server.upload(name, rank=rank)
    first, second, third = [(await _merge(server, name=name)).json() for name in ("one", "two", "three")]
    assert (first["object"], first["kind"], first["result"], first["error"]) == ("job", "merge", None, None)
    assert first["status"] in ("queued", "running")
    assert (await server.http.get(f"/v1/jobs/{third['id']}")).json()["status"] == "queued"
    waited = await _merge(server, wait=0.01, name="four")
    assert waited.status_code == 202
    assert waited.json()["status"] == "queued"

    for name in ("a", "b"):
        assert (await server.http.delete(f"/v1/adapters/{name}")).status_code == 200
    check_envelope(await _merge(server), 404, "model_not_found")
    cancelled = await server.http.delete(f"/v1/jobs/{second['id']}")
    assert cancelled.json()["status"] == "cancelled"
    assert (await server.http.delete(f"/v1/jobs/{waited.json()['id']}")).json()["status"] == "cancelled"
    gate.touch()
    for job in (first, third):
        ended = await server.services.owned.jobs.wait(job["id"], 60)
        assert (ended.status, ended.result.version) == ("succeeded", 1)
    await server.services.owned.library.settled()
    names = [card["name"] for card in (await server.http.get("/v1/adapters")).json()["data"]]
    assert names == ["one", "three"]
    digests = {card["digest"] for card in (await server.http.get("/v1/adapters")).json()["data"]}
    assert set(os.listdir(server.config.state_dir / "adapters")) == digests
    assert _staged(server) == []
    check_envelope(await server.http.get("/v1/jobs/none"), 404, "job_not_found")
    check_envelope(await server.http.delete("/v1/jobs/none"), 404, "job_not_found")


async def test_what_is_wrong_is_said_at_once(server, check_envelope):
    for name, rank in (("a", 4), ("b", 2)):
        await server.upload(name, rank=rank)
    await server.upload("wide", rank=64)
    server.services.owned.routes.put("way", '{"kind": "alias", "target": "a"}')
    both, alone = [{"name": "a", "weight": 1}, {"name": "b", "weight": 1}], [{"name": "a", "weight": 1}]
    cases = {
        "adapters": [
            {"adapters": [{"name": "base", "weight": 1}]},
            {"adapters": [{"name": "a", "weight": 1e9}]},
            {"combination_type": "slerp", "adapters": alone},
            {"combination_type": "slerp", "adapters": TWO},
            {"adapters": []},
        ],
        "combination_type": [{"combination_type": "average"}, {"combination_type": "linear", "adapters": both}],
        "name": [{"name": "base"}, {"name": "default"}, {"name": "way"}, {"name": "a b"}],
        "density": [{"density": 0}, {"density": 1.5}],
        "svd_rank": [{"svd_rank": 0}],
        "majority_sign_method": [{"majority_sign_method": "mean"}],
    }
    for param, wrong in cases.items():
        for fields in wrong:
            error = check_envelope(await _merge(server, **fields), 400)
            assert error["param"] == param, (fields, error)
    for adapters in ([{"name": "nobody", "weight": 1}], [{"name": "a@2", "weight": 1}], [{"name": "way", "weight": 1}]):
        check_envelope(await _merge(server, adapters=adapters), 404, "model_not_found")
    large = [{"name": "wide", "weight": 1}, {"name": "a", "weight": 1}]
    error = check_envelope(await _merge(server, adapters=large, combination_type="cat"), 413, "adapter_too_large")
    assert "rank 68" in error["message"]
    assert (await server.http.get("/v1/jobs")).json()["data"] == []
    assert server.services.adapters.leases.counts() == {}


@pytest.mark.slow
async def test_what_the_process_or_the_engine_refuses_is_the_jobs_error(server, engine, monkeypatch, check_envelope):
    reasons = []

    async def inspect(digest, path, tenant=""):
        if reasons:
            raise merges.InvalidAdapter(reasons[0], param="files")
        return await engine.inspect_adapter(digest, path, tenant)

    monkeypatch.setattr(server.services.owned.library, "_inspect", inspect)
    await server.upload("a", rank=2)
    await server.upload("nan", rank=2)
    fault = Path(server.config.state_dir, "adapters")
    (folder,) = [fault / name for name in os.listdir(fault)][:1]
    adapters = [{"name": "a", "weight": 1}]

    reasons.append("no use")
    error = check_envelope(await _merge(server, wait=60, adapters=adapters), 400, "invalid_adapter")
    assert error["message"] == "no use"
    (job,) = (await server.http.get("/v1/jobs")).json()["data"]
    assert (job["status"], job["error"]) == ("failed", error)

    (folder / "adapter_model.safetensors").write_bytes(b"")  # after the plan, for the process alone
    module = Module("q_proj", {}, 2, 4, 4, False)
    monkeypatch.setattr(merges, "plan_merge", lambda *_: merges.MergePlan([], "", None, 2, "F32", [module], {}, {}))
    error = check_envelope(await _merge(server, wait=60, adapters=adapters), 400, "invalid_adapter")
    assert error["message"].startswith("a@1: adapter_model.safetensors has 0 bytes")
    monkeypatch.setattr(merges, "MODULE", "no_such_module")
    check_envelope(await _merge(server, wait=60, adapters=adapters), 500, "internal_error")
    assert _staged(server) == []


async def test_jobs_end_with_the_server(make_server, gate, until):
    async with make_server() as server:
        await server.upload("a", rank=2)
        job = (await _merge(server, adapters=[{"name": "a", "weight": 1}])).json()
        await until(lambda: _staged(server) != [])
        state, running = server.config.state_dir, server.services.owned.jobs.find(job["id"])
    assert running.status == "cancelled"
    assert os.listdir(state / "staging") == []
    await asyncio.sleep(0)
