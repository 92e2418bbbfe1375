"""The bodies of requests and answers."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, FailFast, Field, StrictInt, model_validator
from pydantic_core import PydanticCustomError


def _texts(value: Any) -> Any:
    """One text is a batch of one, so that every limit and check is the same for both."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise PydanticCustomError("texts_type", "Expected a text or a list of texts")
    if not value:
        raise PydanticCustomError("texts_empty", "Expected at least one text")
    return value


def _readable(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("text_blank", "Expected a text, found none but white space")
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        # JSON can escape half of a surrogate pair, which is no character.
        place = {"position": exc.start}
        raise PydanticCustomError(
            "text_surrogate", "Expected Unicode text, found a lone surrogate at character {position}", place
        ) from exc
    return text


Text = Annotated[str, AfterValidator(_readable)]
# One wrong text is enough to refuse a batch; without FailFast, 2 MB of empty texts make 700,000 errors.
Texts = Annotated[list[Text], FailFast(), BeforeValidator(_texts, json_schema_input_type=str | list[str])]


_MAX_FIELDS = 64


class ClassifyRequest(BaseModel):
    """Texts to classify."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"inputs": "what a lovely day"},
                {"inputs": ["what a lovely day", "the train is late again"], "top_k": 1},
            ]
        },
    )

    inputs: Texts = Field(description="A text, or a list of texts. A list is always a batch.")
    top_k: StrictInt | None = Field(
        default=None, ge=1, description="How many entries `scores` keeps, best first; all of them without it."
    )

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, value: Any) -> Any:
        # Each unknown field becomes an error of its own: 2 MB of them would hold up the event loop for a second.
        if isinstance(value, dict) and len(value) > _MAX_FIELDS:
            raise PydanticCustomError(
                "too_many_fields", "Expected the fields inputs and top_k, found {count} fields", {"count": len(value)}
            )
        return value


class ClassifyQuery(BaseModel):
    """The query of a classify request; an unknown parameter is refused, so that a misspelt one is not ignored."""

    model_config = ConfigDict(extra="forbid")

    backend: str | None = Field(default=None, description="What runs the circuit: `simulator` or `baihua`.")


class CircuitQuery(BaseModel):
    """The query of a circuit request."""

    model_config = ConfigDict(extra="forbid")

    text: Text | None = Field(default=None, description="Bind the circuit's angles for this text.")


class QasmQuery(CircuitQuery):
    """The query of a QASM request."""

    version: int = Field(default=2, ge=2, le=3, description="OpenQASM version, 2 or 3.")


class Score(BaseModel):
    """A label and its probability."""

    label: str
    score: float = Field(description="Probability, 0 to 1.")


class Result(BaseModel):
    """What was found for one text."""

    label: str = Field(description="The most probable label.")
    score: float = Field(description="Its probability.")
    scores: list[Score] = Field(description="Every label with its probability, best first; cut by `top_k`.")
    truncated: bool = Field(description="Whether the text was longer than the embedder reads, and was cut.")


class Timing(BaseModel):
    """Milliseconds that the answer took. Parts shared with other requests count whole."""

    embed_ms: float = Field(description="Tokenisation and forward passes of the encoder.")
    circuit_ms: float = Field(description="Reducer, circuit and head.")
    total_ms: float = Field(description="From the request's arrival to its answer, waiting included.")


class ClassifyResponse(BaseModel):
    """The answer to a classify request; `results` are in the order of `inputs`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "task": "emotion",
                    "backend": "simulator",
                    "bundle": "emotion@1f0c9a2b",
                    "results": [
                        {
                            "label": "positive",
                            "score": 0.93,
                            "scores": [{"label": "positive", "score": 0.93}, {"label": "negative", "score": 0.07}],
                            "truncated": False,
                        }
                    ],
                    "timing": {"embed_ms": 3.1, "circuit_ms": 0.05, "total_ms": 3.6},
                }
            ]
        }
    )

    task: str
    backend: str
    bundle: str = Field(description="The bundle that answered, down to the last bit.")
    results: list[Result]
    timing: Timing


class TaskSummary(BaseModel):
    """A task in short."""

    task: str
    bundle: str
    labels: list[str]


class TaskList(BaseModel):
    """The tasks that are loaded, by name."""

    tasks: list[TaskSummary]


class CircuitShape(BaseModel):
    """The size of a student's circuit."""

    preset: str
    n_qubits: int
    n_layers: int


class Provenance(BaseModel):
    """Where a student came from; as in its bundle's manifest."""

    command: str
    configuration: dict[str, Any]
    data_sha256: dict[str, str]
    embedder: dict[str, Any]
    library_versions: dict[str, str]
    seed: int
    teacher: dict[str, Any]


class Task(TaskSummary):
    """A task with all that is known of its student."""

    circuit: CircuitShape
    engine: str = Field(description="How the simulator computes it.")
    parameters: dict[str, int] = Field(description="Trainable parameters by part, and their total.")
    metrics: dict[str, Any] = Field(description="As measured when it was trained.")
    provenance: Provenance


class Alive(BaseModel):
    """The process answers."""

    status: str = "alive"


class Ready(BaseModel):
    """Every part is ready."""

    status: str = "ready"
    parts: dict[str, str]
