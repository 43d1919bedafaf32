"""Fields of other servers that name an adapter: as good as `model`, or refused by name; never silently the base."""

import pytest

from peftserve.server.api.http.errors import ApiError
from peftserve.server.api.openai.adapter_fields import INSIDE, NAMING, find_named

MIXTURE = [{"name": "sql", "weight": 0.5}, {"name": "json", "weight": 0.5}]
GENERATING = ["completions", "chat/completions"]


@pytest.fixture(params=[*GENERATING, "tokenize", "detokenize"])
def route(request):
    return request.param


@pytest.fixture
async def ask(server):
    """POST to a route, with two adapters there and none the default."""
    await server.upload("sql", rank=4)
    await server.upload("json", rank=8)

    async def post(route, **fields):
        bodies = {
            "completions": {"prompt": [5] * 4, "max_tokens": 1},
            "chat/completions": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1},
            "tokenize": {"prompt": "hi"},
            "detokenize": {"tokens": [5]},
        }
        path = f"/v1/{route}" if route in GENERATING else f"/{route}"
        return await server.http.post(path, json={**bodies[route], **fields})

    return post


def _who(response):
    assert response.status_code == 200, response.text
    return response.headers["x-peftserve-adapter"]


@pytest.mark.slow
@pytest.mark.parametrize("beside", [{}, {"model": None}, {"model": "base"}, {"model": "default"}, {"model": "sql"}])
@pytest.mark.parametrize(
    "fields",
    [
        *({field: "sql"} for field in sorted(NAMING - {"model"})),
        *({field: ["sql", "sql"]} for field in ("lora_path", "adapter_names")),
        {"lora_request": {"lora_name": "sql", "lora_int_id": 1, "lora_path": "/somewhere/sql"}},
        {"adapter_id": "sql", "adapter_source": "hub", "lora_scale": 1.0, "lora_weights": [1]},
        {"adapter_id": "sql", "lora_path": "sql", "lora": None},
        *({place: {"adapter_id": "sql"}} for place in INSIDE),
        {"extra_body": {"model": "sql"}},
    ],
    ids=str,
)
async def test_a_field_that_names_one_adapter_is_as_good_as_model(ask, fields, beside):
    for route in GENERATING:
        response = await ask(route, **beside, **fields)
        assert _who(response) == "sql@1"
        assert response.json()["model"] == "sql"


@pytest.mark.parametrize("name", ["sql@1", "base", "default"])
async def test_it_names_whatever_model_names(ask, name):
    assert _who(await ask("completions", adapter_id=name)) == _who(await ask("completions", model=name))


@pytest.mark.slow
@pytest.mark.parametrize("beside", [{}, {"model": "base"}])
@pytest.mark.parametrize("fields", [{"adapter_id": "nobody"}, {"lora_path": "/a/path"}, {"extra_body": {"lora": "x"}}])
async def test_an_unknown_name_is_a_404_like_any(ask, route, fields, beside, check_envelope):
    check_envelope(await ask(route, **fields, **beside), 404, "model_not_found")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "json", "adapter_id": "sql"}, "adapter_id is 'sql', and model is 'json': give one of them."),
        ({"adapter_id": "sql", "lora_path": "json"}, "adapter_id is 'sql', and lora_path is 'json': give one of them."),
        ({"model": "nobody", "lora": "sql"}, "lora is 'sql', and model is 'nobody': give one of them."),
        ({"parameters": {"adapter_id": "sql"}, "model": "json"}, "parameters.adapter_id is 'sql', and model is 'json'"),
        ({"lora_path": ["sql", "json"]}, "lora_path: one adapter answers all prompts of a request; send one for each."),
        ({"lora_path": ["sql", None]}, "lora_path is not served like this: name an adapter as model"),
        ({"lora": [{"id": 0, "scale": 0.5}]}, "lora is not served like this: an adapter is named here, not numbered"),
        ({"lora_request": {"lora_int_id": 1}}, "lora_request is not served like this: name an adapter as model"),
        ({"merged_adapters": {"ids": ["a"], "weights": [1]}}, "merged_adapters is not served like this: a mixture is"),
        ({"adapter_id": "sql", "lora_scale": 0.5}, "lora_scale is not served like this: give a weight in adapters"),
        ({"lora_weights": [1, 0.5]}, "lora_weights is not served like this: give a weight in adapters"),
        ({"adapter_id": 7}, "adapter_id is not served like this"),
        ({"lora": True}, "lora is not served like this"),
        ({"loras": [{"name": "sql"}]}, "loras is not served like this: name an adapter as model, or several as"),
        ({"loraPath": "sql"}, "loraPath is not served like this: name an adapter as model"),
        ({"my_lora_config": {"r": 8}}, "my_lora_config is not served like this"),
        ({"extra_body": {"adapters": MIXTURE}}, "extra_body.adapters is not served like this: it belongs at the top"),
    ],
    ids=str,
)
async def test_what_is_not_one_name_is_refused_by_name(ask, route, fields, message, check_envelope):
    error = check_envelope(await ask(route, **fields), 400)
    assert error["message"].startswith(message)
    assert error["param"] in {
        *fields,
        *(f"{place}.{field}" for place in fields for field in ("adapter_id", "adapters")),
    }


async def test_a_mixture_and_another_field_are_a_conflict(ask, check_envelope):
    for route in GENERATING:
        error = check_envelope(await ask(route, adapters=MIXTURE, lora_name="sql"), 400)
        assert error["message"] == "lora_name is 'sql', and adapters is a mixture: give one of them."


@pytest.mark.parametrize(
    "fields",
    [
        *(
            {field: nothing}
            for field in ("adapter_id", "lora", "lora_request")
            for nothing in (None, "", [], {}, False)
        ),
        {"lora_path": [None, None]},
        {"lora_scale": 1},
        {"merged_adapters": None},
        {"adapter_source": "hub"},
        {"parameters": {"temperature": 0.5, "adapter_id": None}},
        {"parameters": "adapter_id", "extra_body": ["lora"]},
        {"exploration": 1, "flora": "rose", "chloral": True, "adapted": 1, "adaptersize": 2},
    ],
    ids=str,
)
async def test_fields_that_say_nothing_are_left_out(ask, fields):
    for route in GENERATING:
        assert _who(await ask(route, **fields)) == "base"
        assert _who(await ask(route, model="sql", **fields)) == "sql@1"


async def test_a_field_never_beats_the_default_unless_it_names_something(ask, server):
    await server.http.put("/v1/default-adapter", json={"adapter": "json"})
    assert _who(await ask("completions", adapter_id="sql")) == "sql@1"
    assert _who(await ask("completions", adapter_id=None)) == "json@1"
    assert _who(await ask("completions", adapter_id="base")) == "base"


@pytest.mark.parametrize("body", [{"adapter_id": "x" * 10_000, "lora": "y" * 10_000}, {"lora_" + "x" * 10_000: 1}])
def test_messages_do_not_repeat_all_that_was_sent(body):
    with pytest.raises(ApiError) as caught:
        find_named(body)
    assert len(caught.value.body.message) < 600
