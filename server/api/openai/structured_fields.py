"""The fields by which clients say what form an answer must have: OpenAI's, vLLM's old and new, and other servers'.

A field that is null or empty asks for nothing. Knows no grammar.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MAX_CHOICES = 1024
MAX_TEXT = 1 << 18  # characters of a schema, an expression or a grammar

Kind = Literal["json_schema", "regex", "choice", "grammar"]
Schema = dict[str, Any] | bool
Text = Annotated[str, Field(max_length=MAX_TEXT)]
Choices = Annotated[list[str], Field(max_length=MAX_CHOICES)]

ANY_OBJECT: Schema = {"type": "object"}


class Wanted(NamedTuple):
    """One form that is asked for, and the field that asks. value: a schema, an expression, choices or a grammar."""

    field: str
    kind: Kind
    value: Any


class _Fields(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class JsonSchemaFormat(_Fields):
    """A JSON schema with a name, as OpenAI has it."""

    name: str | None = Field(default=None, max_length=256)
    description: str | None = None
    schema_: Schema | Text | None = Field(default=None, alias="schema", description="The schema of the answer.")
    strict: bool | None = Field(default=None, description="The answer is of the schema either way.")


class ResponseFormat(_Fields):
    """The form of an answer: any text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = Field(default=None, description="With `json_schema`.")
    schema_: Schema | Text | None = Field(default=None, alias="schema", description="The schema, as llama.cpp has it.")

    @model_validator(mode="before")
    @classmethod
    def _say_what_is_served(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("type") in ("structural_tag", "grammar", "regex"):
            raise ValueError(f"type {data['type']!r} is not supported by this server; use structured_outputs")
        return data

    @model_validator(mode="after")
    def _has_schema(self) -> "ResponseFormat":
        if self.type == "json_schema" and self.asked is None:
            raise ValueError("json_schema.schema is missing: give the schema of the answer")
        return self

    @property
    def asked(self) -> Schema | str | None:
        """Return the schema, wherever it stands."""
        inner = self.json_schema.schema_ if self.json_schema is not None else None
        return self.schema_ if inner is None else inner


class StructuredOutputs(_Fields):
    """What vLLM calls structured outputs: exactly one of the first five."""

    json_: Schema | Text | None = Field(default=None, alias="json", description="A JSON schema.")
    regex: Text | None = Field(default=None, description="A regular expression of the whole answer.")
    choice: Choices | None = Field(default=None, description="The answer is one of these.")
    grammar: Text | None = Field(default=None, description="A grammar in Lark's notation or in GBNF.")
    json_object: bool | None = Field(default=None, description="Any JSON object.")
    disable_any_whitespace: bool = Field(default=False, description="No blanks and line breaks between JSON's parts.")
    whitespace_pattern: str | None = Field(
        default=None, max_length=256, description="A regular expression of what may be between JSON's parts."
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_others(cls, data: Any) -> Any:
        for name in ("structural_tag", "disable_additional_properties"):
            if isinstance(data, dict) and data.get(name):
                raise ValueError(f"{name} is not supported by this server; leave it out")
        return data


class StructuredFields(_Fields):
    """The part of a body that says what form its answer must have. At most one field may."""

    response_format: ResponseFormat | None = Field(default=None, description="The form of the answer.")
    structured_outputs: StructuredOutputs | None = Field(default=None, description="The form of the answer, as vLLM's.")
    guided_json: Schema | Text | None = Field(default=None, description="A JSON schema; vLLM's older name.")
    guided_regex: Text | None = Field(default=None, description="A regular expression; vLLM's older name.")
    guided_choice: Choices | None = Field(default=None, description="The answer is one of these; vLLM's older name.")
    guided_grammar: Text | None = Field(default=None, description="A grammar; vLLM's older name.")
    guided_whitespace_pattern: str | None = Field(
        default=None, max_length=256, description="What may be between JSON's parts; vLLM's older name."
    )
    json_schema: Schema | Text | None = Field(default=None, description="A JSON schema, as SGLang has it.")
    regex: Text | None = Field(default=None, description="A regular expression, as SGLang has it.")
    ebnf: Text | None = Field(default=None, description="A grammar in GBNF, as SGLang has it.")
    grammar: Text | None = Field(default=None, description="A grammar in GBNF, as llama.cpp has it.")
    format: Schema | Text | None = Field(default=None, description='`"json"` or a JSON schema, as Ollama has it.')

    @field_validator("response_format", "structured_outputs", mode="before")
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        return None if value == {} else value

    @property
    def wanted(self) -> list[Wanted]:
        """Return the forms that are asked for, of which there should be one at most."""
        return list(self._found()) if self.model_fields_set & StructuredFields.model_fields.keys() else []

    @property
    def whitespace(self) -> str | None:
        """Return what may be between JSON's parts, "" for nothing and None for the usual."""
        options = self.structured_outputs or StructuredOutputs()
        if options.disable_any_whitespace:
            return ""
        return options.whitespace_pattern or self.guided_whitespace_pattern

    def _found(self) -> Iterator[Wanted]:
        if self.response_format is not None and self.response_format.type != "text":
            yield _of_format(self.response_format)
        if self.structured_outputs is not None:
            yield from _of_outputs(self.structured_outputs)
        for field, kind in _PLAIN.items():
            if _asks(value := getattr(self, field)):
                yield Wanted(field, kind, value)
        if _asks(self.format):
            yield Wanted("format", "json_schema", ANY_OBJECT if self.format == "json" else self.format)


_PLAIN: dict[str, Kind] = {
    "guided_json": "json_schema",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "json_schema": "json_schema",
    "regex": "regex",
    "ebnf": "grammar",
    "grammar": "grammar",
}


def _asks(value: Any) -> bool:
    return value is not None and value not in ("", [])


def _of_format(asked: ResponseFormat) -> Wanted:
    inner = asked.json_schema is not None and asked.json_schema.schema_ is not None
    field = "response_format.json_schema.schema" if inner else "response_format.schema"
    if asked.asked is None:
        return Wanted("response_format", "json_schema", ANY_OBJECT)
    return Wanted(field, "json_schema", asked.asked)


def _of_outputs(asked: StructuredOutputs) -> Iterator[Wanted]:
    values: tuple[tuple[str, Kind, Any], ...] = (
        ("json", "json_schema", asked.json_),
        ("regex", "regex", asked.regex),
        ("choice", "choice", asked.choice),
        ("grammar", "grammar", asked.grammar),
        ("json_object", "json_schema", ANY_OBJECT if asked.json_object else None),
    )
    yield from (Wanted(f"structured_outputs.{name}", kind, value) for name, kind, value in values if _asks(value))
