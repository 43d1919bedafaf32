"""Tools and formats in the flat form of responses, and the same in the nested form of chats."""

from typing import Any

from pydantic import Field

from ..http.errors import bad_request
from ..openai.model_request import Body
from ..openai.places import validate_at

MAX_TOOLS = 128


class FunctionTool(Body):
    """A function of the client's that the model may call."""

    type: str = Field(description="`function`; OpenAI's own tools are not served.")
    name: str = Field(min_length=1, max_length=64, description="The function's name.")
    description: str | None = Field(default=None, description="What it does, for the model.")
    parameters: dict[str, Any] | None = Field(default=None, description="A JSON schema of its arguments.")
    strict: bool | None = Field(default=None, description="Whether the arguments must be valid.")


def read_tools(value: Any) -> list[FunctionTool]:
    """Return the tools of a body, inside its validation. Raises ApiError, pydantic's ValidationError, ValueError."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise ValueError("must be a list of tools")
    if len(value) > MAX_TOOLS:
        raise ValueError(f"at most {MAX_TOOLS} tools")
    for index, tool in enumerate(value):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if isinstance(kind, str) and kind != "function":
            message = f"tools.{index}: tools of type {kind[:64]!r} are not served, only functions of your own."
            raise bad_request(message, f"tools.{index}.type")
    return [validate_at(FunctionTool, tool, (index,)) for index, tool in enumerate(value)]


def chat_tool(tool: FunctionTool) -> dict[str, Any]:
    return {"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)}


def chat_tool_choice(choice: str | dict[str, Any]) -> Any:
    """Return a chat's form of a choice. Raises ApiError for a choice of what is not served."""
    if isinstance(choice, str):
        return choice
    kind = choice.get("type")
    if kind == "function":
        return _named(choice)
    if kind == "allowed_tools":
        allowed = choice.get("tools")
        if not isinstance(allowed, list) or not all(isinstance(tool, dict) for tool in allowed):
            raise bad_request("tool_choice.tools must be a list of tools.", "tool_choice.tools")
        chosen = {"mode": choice.get("mode", "auto"), "tools": [_named(tool) for tool in allowed]}
        return {"type": "allowed_tools", "allowed_tools": chosen}
    raise bad_request(
        "tool_choice must be 'none', 'auto', 'required', or an object of type 'function' or 'allowed_tools'.",
        "tool_choice",
    )


def _named(tool: dict[str, Any]) -> dict[str, Any]:
    name = tool.get("name")
    if tool.get("type") != "function" or not isinstance(name, str):
        raise bad_request('tool_choice names a function as {"type": "function", "name": "…"}.', "tool_choice")
    return {"type": "function", "function": {"name": name}}
