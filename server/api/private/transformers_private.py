"""The rendering of chat templates apart from a tokenizer, which transformers does not document."""

from collections.abc import Callable, Mapping
from typing import Any

NAMES: Mapping[str, str] = {
    "transformers.utils.chat_template_utils.render_jinja_template": (
        "Renders chats in the library's sandbox, with its filters and functions, as every other server of the model "
        "does. Instead: `apply_chat_template` of a tokenizer, which brings torch into this process."
    ),
}


def template_renderer() -> Callable[..., Any]:
    """Return the function that renders chats; its result is (texts, indices).

    Imported here: it takes a second, which the start spends while the model loads. It leaves torch alone.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    return render_jinja_template
