"""What RL trainers send, call by call as their clients do."""

import pytest


async def test_prime_rl_pushes_a_new_version_under_one_name(make_server, adapter_bytes, tmp_path):
    """`update_weights` of its client with a LoRA: the name stays, the folder is another after each step."""
    async with make_server(allow_adapter_paths=(tmp_path,), keep_versions=1) as server:
        for step in (1, 2, 3):
            folder = tmp_path / f"step_{step}"
            missing = await server.http.post(
                "/load_lora_adapter", json={"lora_name": "policy", "lora_path": folder.as_posix()}
            )
            assert missing.status_code == 404, "which it tries again, for files that come late over NFS"
            folder.mkdir()
            for name, content in adapter_bytes(rank=step).items():
                (folder / name).write_bytes(content)
            response = await server.http.post(
                "/load_lora_adapter", json={"lora_name": "policy", "lora_path": folder.as_posix()}
            )
            assert response.json() == {"status": "ok"}
            card = (await server.http.get("/v1/adapters/policy")).json()
            assert (card["version"], card["rank"]) == (step, step)
            answer = await server.openai.completions.create(
                model="policy", prompt="ab", max_tokens=2, extra_body={"cache_salt": str(step)}
            )
            assert answer.model == "policy"
            assert server.engine.requests[-1].adapters[0].digest == card["digest"]
        await server.http.post("/v1/unload_lora_adapter", json={"lora_name": "policy"})
        assert (await server.http.get("/v1/adapters/policy")).status_code == 404


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/pause?mode=keep&clear_cache=false", None),
        ("/update_weights", {"weight_dir": "/weights/step_1"}),
        ("/init_broadcaster", {"host": "10.0.0.1", "port": 29501, "rank_offset": 0, "inference_world_size": 1}),
        ("/init_communicator/", {"host": "0.0.0.0", "port": 51216, "world_size": 2, "client_device_uuid": "42"}),
        ("/update_named_param/", {"name": "lm_head.weight", "dtype": "torch.float32", "shape": [4, 4]}),
        ("/init_weight_transfer_engine", {"init_info": {}}),
        ("/start_weight_update", {"is_checkpoint_format": True}),
    ],
)
async def test_whole_weights_are_refused_with_what_to_do(server, check_envelope, path, body):
    error = check_envelope(await server.http.post(path, json=body), 400, "frozen_base")
    assert "POST /v1/adapters" in error["message"]


async def test_trl_asks_whether_the_server_is_there_and_resets_its_cache(server, check_envelope):
    assert (await server.http.get("/health/")).status_code == 200
    assert (await server.http.post("/reset_prefix_cache/")).status_code == 200
    check_envelope(await server.http.get("/get_world_size/"), 400, "frozen_base")


async def test_a_push_needs_a_key_where_there_are_keys(make_server, check_envelope):
    async with make_server(api_keys=("k",)) as server:
        check_envelope(await server.http.post("/load_lora_adapter", json={}), 401)
