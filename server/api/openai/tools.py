"""The fields of a chat that are about tools: which there are, and which may or must be called."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from .model_request import Body

MAX_TOOLS = 128
MAX_DESCRIPTION = 1 << 16

Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$", description="Letters, digits, `_` and `-`.")]
Mode = Literal["auto", "none", "required"]


class FunctionDefinition(Body):
    """A function that may be called."""

    name: Name
    description: str | None = Field(default=None, max_length=MAX_DESCRIPTION, description="When to call it, and how.")
    parameters: dict[str, Any] | None = Field(
        default=None, description="Its parameters as a JSON schema of an object. Left out: it has none."
    )
    strict: bool | None = Field(default=None, description="Hold the arguments to the schema, also when `auto`.")

    @model_validator(mode="after")
    def _takes_an_object(self) -> "FunctionDefinition":
        if (self.parameters or {}).get("type", "object") != "object":
            raise ValueError("parameters has to be a schema of type 'object'")
        return self


class Tool(Body):
    """A tool. Only functions are served."""

    type: Literal["function"]
    function: FunctionDefinition

    @property
    def schema_of_arguments(self) -> dict[str, Any]:
        """Return the schema of the arguments, closed where it does not say what else may be there."""
        schema = self.function.parameters
        if schema is None:
            return {"type": "object", "properties": {}, "additionalProperties": False}
        is_list = "properties" in schema and not _OPEN_ENDED.intersection(schema)
        return {"type": "object", **({"additionalProperties": False} if is_list else {}), **schema}

    def as_template_sees_it(self) -> dict[str, Any]:
        function: dict[str, Any] = {"name": self.function.name}
        if self.function.description is not None:
            function["description"] = self.function.description
        return {
            "type": "function",
            "function": {**function, "parameters": self.function.parameters or {"type": "object", "properties": {}}},
        }


_OPEN_ENDED = frozenset(
    ("additionalProperties", "patternProperties", "unevaluatedProperties", "allOf", "anyOf", "oneOf", "$ref", "if")
)
"""With one of these a schema says elsewhere which properties there may be."""


class FunctionName(Body):
    """A function by its name."""

    name: str = Field(max_length=64)


class NamedTool(Body):
    """One tool, by its name."""

    type: Literal["function"]
    function: FunctionName


class AllowedTools(Body):
    """Some of the tools, and whether one of them has to be called."""

    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1, max_length=MAX_TOOLS)


class AllowedChoice(Body):
    """A choice of some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _kind_of_choice(choice: Any) -> str:
    return str(choice.get("type")) if isinstance(choice, Mapping) else getattr(choice, "type", "mode")


Choice = Annotated[
    Annotated[Mode, Tag("mode")]
    | Annotated[NamedTool, Tag("function")]
    | Annotated[AllowedChoice, Tag("allowed_tools")],
    Discriminator(_kind_of_choice),
]


@dataclass(frozen=True)
class Calling:
    """What may be called. shown: definitions in the prompt. callable_: of them, those that may be called.

    forced: at least one has to be called. named: exactly one has. single: at most one may be.
    """

    shown: tuple[Tool, ...] = ()
    callable_: tuple[Tool, ...] = ()
    forced: bool = False
    single: bool = False

    @property
    def definitions(self) -> list[dict[str, Any]]:
        """What is in the prompt, as templates see it."""
        return [tool.as_template_sees_it() for tool in self.shown]

    @property
    def names(self) -> frozenset[str]:
        return frozenset(tool.function.name for tool in self.callable_)


class ToolFields(Body):
    """The fields of tools, in OpenAI's newer form and in the older one."""

    tools: list[Tool] | None = Field(default=None, max_length=MAX_TOOLS, description="Functions that may be called.")
    tool_choice: Choice | None = Field(
        default=None,
        description="`auto`: the model decides; `none`: no calls; `required`: at least one; or one tool, or some. "
        "Default: `auto` with tools.",
    )
    parallel_tool_calls: bool | None = Field(default=None, description="False: at most one call. Default: true.")
    functions: list[FunctionDefinition] | None = Field(
        default=None, max_length=MAX_TOOLS, description="The older form of `tools`."
    )
    function_call: Literal["auto", "none"] | FunctionName | None = Field(
        default=None, description="The older form of `tool_choice`."
    )

    @field_validator("tool_choice", mode="before")
    @classmethod
    def _look_at_choice(cls, choice: Any) -> Any:
        kind = choice.get("type") if isinstance(choice, Mapping) else choice
        if kind not in (None, "auto", "none", "required") and not (
            isinstance(choice, Mapping) and kind in ("function", "allowed_tools")
        ):
            raise ValueError("should be 'auto', 'none', 'required', or an object of type 'function' or 'allowed_tools'")
        return choice

    @model_validator(mode="after")
    def _tools_agree(self) -> "ToolFields":
        if self.functions is not None and self.tools is not None:
            raise ValueError("send tools or functions, which is their older form, not both")
        names = [tool.function.name for tool in self.all_tools]
        for place, name in enumerate(names):
            if name in names[:place]:
                raise ValueError(f"tools[{place}].function.name: there are two tools of the name {name!r}")
        self._check_choice(set(names))
        return self

    def _check_choice(self, names: set[str]) -> None:
        field, chosen = ("function_call", self.function_call) if self.is_older else ("tool_choice", self.tool_choice)
        if not names and chosen not in (None, "none", "auto"):
            raise ValueError(f"{field} needs tools to choose from; send tools")
        for name in _named(chosen):
            if name not in names:
                raise ValueError(f"{field} names {name!r}, and there is no such tool; there are {sorted(names)}")

    @property
    def is_older(self) -> bool:
        """Return whether the client speaks the older form."""
        return self.tools is None and (self.functions is not None or self.function_call is not None)

    @property
    def all_tools(self) -> Sequence[Tool]:
        if self.tools is not None:
            return self.tools
        return [Tool(type="function", function=function) for function in self.functions or ()]

    @property
    def calling(self) -> Calling:
        """Return what may be called."""
        chosen = self.function_call if self.is_older else self.tool_choice
        tools = tuple(self.all_tools)
        single = self.parallel_tool_calls is False or self.is_older
        if not tools or chosen == "none":
            return Calling(shown=tools)
        if chosen in (None, "auto", "required"):
            return Calling(tools, tools, forced=chosen == "required", single=single)
        some = tuple(tool for tool in tools if tool.function.name in _named(chosen))
        if isinstance(chosen, AllowedChoice):
            return Calling(some, some, forced=chosen.allowed_tools.mode == "required", single=single)
        return Calling(tools, some, forced=True, single=True)


def _named(chosen: Any) -> Sequence[str]:
    """Return the tools that a choice names."""
    if isinstance(chosen, AllowedChoice):
        return [tool.function.name for tool in chosen.allowed_tools.tools]
    if isinstance(chosen, NamedTool):
        return [chosen.function.name]
    return [chosen.name] if isinstance(chosen, FunctionName) else []


def place_of(fields: ToolFields, tool: Tool) -> str:
    """Return where a client has put the parameters of a tool."""
    if fields.is_older:
        return f"functions[{[f.name for f in fields.functions or ()].index(tool.function.name)}].parameters"
    names = [other.function.name for other in fields.all_tools]
    return f"tools[{names.index(tool.function.name)}].function.parameters"
