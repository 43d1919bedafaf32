import pytest

from peftserve.server.api.http.errors import ApiError
from peftserve.server.api.text.chat_template import RESERVED, ChatTemplate
from peftserve.server.api.text.long_texts import LongTexts

SOURCE = (
    "{{ bos_token }}{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if refuse %}{{ raise_exception('not so') }}{% endif %}{% if fail %}{{ 1 // 0 }}{% endif %}"
    "{% if add_generation_prompt %}assistant{{ mark }}{% endif %}"
)
MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hel"}]


def _render(arguments, messages=MESSAGES, generate=True, go_on=False):
    template = ChatTemplate(SOURCE, {"bos_token": "<s>"}, LongTexts())
    return template.render(messages, add_generation_prompt=generate, continue_final_message=go_on, arguments=arguments)


async def test_special_tokens_and_a_clients_arguments_reach_the_template():
    assert await _render({"mark": ":"}) == "<s>user: hi\nassistant: Hel\nassistant:"
    assert await _render({"bos_token": ""}) == "user: hi\nassistant: Hel\nassistant"
    assert await _render({}, generate=False, go_on=True) == "<s>user: hi\nassistant: Hel"
    assert len(await _render({}, [{"role": "user", "content": "x" * 10_000}])) > 10_000  # on a thread


@pytest.mark.parametrize(
    ("arguments", "message"), [({"refuse": True}, "refuses these messages: not so"), ({"fail": True}, "cannot render")]
)
async def test_what_the_template_refuses_is_the_clients_error(arguments, message):
    with pytest.raises(ApiError, match=message) as caught:
        await _render(arguments)
    assert (caught.value.status_code, caught.value.body.param) == (400, "messages")


async def test_arguments_do_not_take_the_place_of_the_requests_own():
    for name in RESERVED:
        with pytest.raises(ApiError, match=f"may not set '{name}'"):
            await _render({name: []})


PARTS = (
    "{% for message in messages %}{{ message.role }}: "
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }}{% endfor %}; "
    "{% endfor %}"
)
EITHER = PARTS.replace(
    "{% for part", "{% if message.content is string %}{{ message.content }}{% else %}{% for part"
).replace("{% endfor %}; ", "{% endfor %}{% endif %}; ")


@pytest.mark.parametrize("source", [PARTS, EITHER])
async def test_texts_reach_a_template_that_reads_parts_alone(source):
    template = ChatTemplate(source, {}, LongTexts())
    options = {"add_generation_prompt": False, "continue_final_message": False, "arguments": {}}
    assert await template.render(MESSAGES, **options) == "user: hi; assistant: Hel; "
    assert await template.render(MESSAGES[:1], **options) == "user: hi; "
