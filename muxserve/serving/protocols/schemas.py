"""A request's bytes in, a checked request out; and the shapes of answers, for the documentation.

Types are strict: nothing is coerced, and an unknown field is refused, so that a misspelt one cannot
pass for a default. Errors name the field.
"""

from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    ValidationInfo,
)
from pydantic.config import JsonDict

from muxserve.errors import InvalidInput
from muxserve.serving.errors import dotted, shown
from muxserve.serving.protocols.json_bodies import read_json
from muxserve.serving.service import check_count

ScoreFunction = Literal["softmax", "sigmoid", "none"]
#: As text-embeddings-inference writes it, and nothing else.
TruncationDirection = Literal["Left", "Right"]


def check_texts(inputs: Any, most: int) -> str | list[str]:
    """``inputs`` of a request: a text, a list of texts, or a batch written ``[[text], [text]]``.

    Args:
        inputs: as they came.
        most: texts that one request may have; they are counted before any is looked at.

    Raises:
        InvalidInput: naming the first element that is at fault.
        TooManyTexts: more than ``most``.
    """
    if isinstance(inputs, str):
        return inputs
    if not isinstance(inputs, list):
        raise InvalidInput(
            f"inputs must be a text or a list of texts, got {_json_type(inputs)}", field="inputs"
        )
    if not inputs:
        raise InvalidInput("inputs is an empty list; give at least one text", field="inputs")
    check_count(inputs, most)
    return [_check_text(one, index) for index, one in enumerate(inputs)]


def _check_text(one: Any, index: int) -> str:
    if isinstance(one, str):
        return one
    field = f"inputs[{index}]"
    if not isinstance(one, list):
        raise InvalidInput(f"a text must be a string, got {_json_type(one)}", field=field)
    if len(one) == 2:
        raise InvalidInput(
            "pairs of texts are not supported; give each text by itself", field=field
        )
    if len(one) != 1 or not isinstance(one[0], str):
        raise InvalidInput("a list within inputs must hold exactly one text", field=field)
    return one[0]


def _json_type(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", list: "a list", str: "a text"}
    return names.get(type(value), "an object")


def _texts(inputs: Any, info: ValidationInfo) -> str | list[str]:
    assert info.context is not None, "parse() gives it"
    return check_texts(inputs, info.context["most_texts"])


Texts = Annotated[
    str | list[str],
    PlainValidator(_texts, json_schema_input_type=str | list[str] | list[list[str]]),
]


_EXAMPLE: JsonDict = {"example": {"inputs": "A moving, beautifully shot film."}}


class _Strict(BaseModel):
    """Coerces nothing, and refuses unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid")


class PredictRequest(_Strict):
    """Body of ``POST /predict``, in the shape of text-embeddings-inference."""

    model_config = ConfigDict(json_schema_extra=_EXAMPLE)

    inputs: Texts = Field(
        description="A text, or a list of texts. A list of two strings is two texts; pairs are not "
        "supported. A batch may also be written [[text], [text]]."
    )
    raw_scores: bool | None = Field(False, description="Give logits instead of probabilities.")
    truncate: bool | None = Field(
        True, description="Cut a text over the length limit and say so; false refuses it with 413."
    )
    truncation_direction: TruncationDirection | None = Field(
        None,
        description="Where a text over the length limit is cut: Right keeps its start, Left its "
        "end. By default where the family says, at the right for most.",
    )
    prompt_name: None = Field(
        None, description="Only null: families have no prompts. Clients send it unasked."
    )
    max_num_instances: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None, description="Widest N that may answer this request; 1 asks for the plain model."
    )
    isolation_key: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        None, description="Texts with different keys never share a forward's group."
    )
    timeout_ms: Annotated[float, Field(gt=0, le=3_600_000, allow_inf_nan=False)] | None = Field(
        None, description="Answer within this time or with 504; the server's own limit holds too."
    )


class ClassificationParameters(_Strict):
    """``parameters`` of ``POST /``."""

    function_to_apply: ScoreFunction | None = Field(
        None, description="How logits become scores; by default as the family was trained."
    )
    top_k: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Give only the best labels."
    )


class ClassificationRequest(_Strict):
    """Body of ``POST /``, in the shape of ``huggingface_hub.InferenceClient``."""

    model_config = ConfigDict(json_schema_extra=_EXAMPLE)

    inputs: Texts = Field(description="A text, or a list of texts.")
    parameters: ClassificationParameters | None = Field(None, description="What to answer.")


class TokenClassificationParameters(_Strict):
    """``parameters`` of ``POST /`` where words are labelled."""

    aggregation_strategy: Literal["first"] | None = Field(
        None, description="A word has the label of its first token; there is no other way here."
    )
    ignore_labels: Annotated[list[str], Field(fail_fast=True)] | None = Field(
        None, description="Leave out words of these labels."
    )


class TokenClassificationRequest(_Strict):
    """Body of ``POST /`` where words are labelled, as ``huggingface_hub.InferenceClient``'s."""

    model_config = ConfigDict(json_schema_extra={"example": {"inputs": "The jury further said."}})

    inputs: Texts = Field(description="A text, or a list of texts.")
    parameters: TokenClassificationParameters | None = Field(None, description="What to answer.")


class _Scored(BaseModel):
    """What every entry of an answer has."""

    score: float = Field(description="Probability of the label, or logit.")
    num_instances: int = Field(description="The N that served the text.")
    truncated: Literal[True] | None = Field(
        None, description="Present where the text was cut to the family's maximum."
    )


class _InText(BaseModel):
    """Where a word is."""

    word: str = Field(description="The word, as it stands in the text.")
    start: int = Field(description="Its first character in the text.")
    end: int = Field(description="The character after its last.")


class LabelEntry(_Scored):
    """One label of an answer; entries of a text come best first."""

    label: str = Field(description="Name of the label.")


class WordEntry(LabelEntry, _InText):
    """One word of an answer and its best label; entries of a text come in order."""


class EntityEntry(_Scored, _InText):
    """One word of an answer, in the shape of ``huggingface_hub.InferenceClient``."""

    entity_group: str = Field(description="Name of the label.")


class Health(BaseModel):
    """Body of ``/health`` and ``/ready``."""

    status: str


class ErrorBody(BaseModel):
    """Body of every error."""

    error: str = Field(description="A stable code, for programs.")
    message: str = Field(description="What is wrong, and what to do.")
    field: str | None = Field(None, description="The field at fault, such as inputs[3].")


class OipErrorBody(BaseModel):
    """Body of every error below ``/v2``."""

    error: str = Field(description="What is wrong, and what to do.")
    code: str = Field(description="A stable code, for programs.")


Body = TypeVar("Body", bound=BaseModel)


def parse(model: type[Body], body: bytes, most_texts: int) -> Body:
    """A request from its bytes.

    Its cost grows with the body's size alone: unknown fields are refused before any is validated,
    and the validation of a list ends at its first bad element.

    Args:
        model: what the body must be.
        body: JSON in UTF-8.
        most_texts: that one request may have.

    Raises:
        MalformedJson: not JSON, or not UTF-8.
        InvalidInput: naming the field and what is wrong with it.
        TooManyTexts: more than ``most_texts``.
    """
    value = read_json(body, most_texts)
    if not isinstance(value, dict):
        raise InvalidInput("the body must be a JSON object with the field inputs")
    _check_fields(model, value, ())
    try:
        return model.model_validate(value, context={"most_texts": most_texts})
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    message, field = first["msg"], dotted(first["loc"])
    raise InvalidInput(f"{field}: {message}" if field else message, field=field)


def _check_fields(model: type[BaseModel], value: dict[str, Any], loc: tuple[str, ...]) -> None:
    """Raise InvalidInput for the first field that ``model`` does not know, if it minds."""
    if model.model_config.get("extra") != "forbid":
        return
    for name, inner in value.items():
        field = model.model_fields.get(name)
        if field is None:
            where = ".".join((*loc, shown(name, quoted=False)))
            known = ", ".join(model.model_fields)
            raise InvalidInput(f"{where}: there is no such field; fields: {known}", field=where)
        if isinstance(inner, dict):
            # A nested model here is optional: a union with None.
            for one in get_args(field.annotation):
                if isinstance(one, type) and issubclass(one, BaseModel):
                    _check_fields(one, inner, (*loc, name))
