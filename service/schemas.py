"""The bodies of requests and answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    SerializerFunctionWrapHandler,
    StrictFloat,
    StrictInt,
    model_serializer,
    model_validator,
)
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


MAX_WAIT_SECONDS = 30


class ClassifyQuery(BaseModel):
    """The query of a classify request; an unknown parameter is refused, so that a misspelt one is not ignored."""

    model_config = ConfigDict(extra="forbid")

    backend: str | None = Field(default=None, description="What runs the circuit: `simulator` or `baihua`.")
    shots: int | None = Field(
        default=None, description="Shots of each circuit on `baihua`, a multiple of 1024; QD_SHOTS without it."
    )
    provider: str | None = Field(
        default=None, description="The provider that `baihua` must be reached through; refused if another is in use."
    )
    wait: int = Field(
        default=0,
        ge=0,
        le=MAX_WAIT_SECONDS,
        description="Seconds to wait for a job's results before answering 202; `Prefer: wait=` says the same.",
    )
    expvals: bool = Field(default=False, description="Whether `simulator` adds the exact <Z> of every qubit.")


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


class ExactResult(Result):
    """What the simulator found for one text, with what it comes from."""

    expvals: list[float] = Field(description="<Z> of every qubit, exact.")


class HardwareResult(Result):
    """What a device found for one text."""

    device: str
    emulated: bool = Field(description="Whether an emulator gave the counts, and no chip.")
    shots: int = Field(description="Shots that the device returned.")
    cached: bool = Field(description="Whether the counts were there before the request.")
    expvals: list[float] = Field(description="<Z> of every qubit, corrected for readout errors if `mitigated`.")
    expvals_raw: list[float] = Field(description="<Z> of every qubit as measured.")
    mitigated: bool = Field(description="Whether readout errors were known and corrected.")
    flip_probability: float = Field(
        description="The chance, from shot noise alone, that the label would change on a rerun; with more than two "
        "labels an upper bound."
    )
    calibration_id: str | None = Field(description="The device's calibration under which it ran.")
    executed_at: AwareDatetime = Field(description="When it ran; where the provider does not say, when it was fetched.")


class Timing(BaseModel):
    """Milliseconds that the answer took. Parts shared with other requests count whole."""

    embed_ms: float = Field(description="Tokenisation and forward passes of the encoder.")
    circuit_ms: float = Field(
        description="Reducer, circuit and head; on hardware, finding the counts or waiting for them."
    )
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
    results: list[ExactResult] | list[Result] = Field(description="With `expvals` if they were asked for.")
    timing: Timing


class HardwareResponse(ClassifyResponse):
    """The answer to a classify request on hardware."""

    model_config = ConfigDict(json_schema_extra={})

    results: list[HardwareResult]  # type: ignore[assignment]  # a list of a narrower type, and never changed


class Sparse(BaseModel):
    """Leaves out its own fields that are None, and not those of what it holds."""

    @model_serializer(mode="wrap")
    def _without_none(self, inner: SerializerFunctionWrapHandler) -> Any:
        return {name: value for name, value in inner(self).items() if value is not None}


class Change(BaseModel):
    """When a job entered a state."""

    status: str
    at: AwareDatetime


class Held(BaseModel):
    """Why an unfinished job does not go on."""

    reason: str = Field(
        description="`provider-unreachable`, `quota-exhausted`, `device-offline`, `operator-needed`, "
        "`malformed-answer` or `lost-by-provider`."
    )
    detail: str
    until: AwareDatetime = Field(description="When it is tried again.")


class JobBody(Sparse):
    """A job on hardware."""

    id: str
    task: str
    backend: str
    bundle: str
    status: str = Field(description="`queued`, `submitted`, `running`, `done`, `failed` or `cancelled`.")
    created_at: AwareDatetime
    changes: list[Change] = Field(description="Every state it has been in, in order.")
    eta: AwareDatetime | None = Field(
        default=None, description="When it will probably be done, from the history of this service; absent without one."
    )
    held: Held | None = Field(default=None, description="Why it does not go on, if it does not.")
    shots: int
    n_texts: int
    provider_jobs: list[str] = Field(description="The provider's ids of the jobs that its circuits travelled in.")
    results: list[HardwareResult | None] | None = Field(
        default=None,
        description="Once it has ended, one entry a text in the order of `inputs`; null for a text that has none.",
    )
    error: dict[str, Any] | None = Field(default=None, description="A problem document, if it has failed.")


class JobList(Sparse):
    """Jobs, the newest first."""

    jobs: list[JobBody]
    next: str | None = Field(default=None, description="Path of the next page; absent on the last.")


class JobsQuery(BaseModel):
    """Which jobs to list."""

    model_config = ConfigDict(extra="forbid")

    status: Literal["queued", "submitted", "running", "done", "failed", "cancelled"] | None = Field(
        default=None, description="Only jobs in this state."
    )
    task: str | None = Field(default=None, description="Only jobs of this task.")
    limit: int = Field(default=50, ge=1, le=200, description="Most jobs in the answer.")
    before: float | None = Field(
        default=None, allow_inf_nan=False, description="Only jobs created before this time, in seconds since the epoch."
    )


class JobQuery(BaseModel):
    """How to ask for a job."""

    model_config = ConfigDict(extra="forbid")

    wait: int = Field(default=0, ge=0, le=MAX_WAIT_SECONDS, description="Seconds to wait for its end.")


class TaskSummary(BaseModel):
    """A task in short."""

    task: str
    bundle: str
    labels: list[str]
    versions: list[str] = Field(
        description="What may follow the task in a path, as in `emotion@1f0c9a2b`; the bundle's own is among them."
    )


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


class SwitchRequest(BaseModel):
    """What requests for a task run on that name no backend."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"backend": "baihua"}, {"backend": "simulator", "shadow_percent": 25}],
        },
    )

    backend: str = Field(description="`simulator` or `baihua`.")
    shadow_percent: StrictFloat = Field(
        default=0.0,
        ge=0,
        le=100,
        allow_inf_nan=False,
        description="How many of 100 requests that the simulator answers by default run on `baihua` too; 0 with "
        "`baihua`.",
    )


class SwitchBody(Sparse):
    """What requests for a task run on that name no backend."""

    task: str
    backend: str
    shadow_percent: float
    source: Literal["redis", "settings"] = Field(
        description="Where it comes from: `redis` if an operator has switched it, and otherwise, or while Redis is "
        "away, `settings` (QD_DEFAULT_BACKEND)."
    )
    since: AwareDatetime | None = Field(default=None, description="When it was switched.")
    by: str | None = Field(default=None, description="Id of the API key that did; `open` where no key is needed.")


class AuditQuery(BaseModel):
    """How much of the audit to list."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(default=50, ge=1, le=1000, description="Most changes in the answer.")


class AuditEntry(Sparse):
    """One change."""

    at: AwareDatetime
    by: str = Field(description="Id of the API key; `open` where no key is needed; `qdserve` for a command.")
    action: str = Field(description="`switch`, `reload`, `create-key` or `revoke-key`.")
    task: str | None = Field(default=None, description="Absent for what concerns all.")
    before: dict[str, Any] = Field(
        description="`backend` and `shadow_percent`, the `bundles` that were served, or the `key`."
    )
    after: dict[str, Any]
    request_id: str = Field(description="Of the request that asked for it, as in its `X-Request-ID` and the log.")


class AuditList(BaseModel):
    """Changes, the newest first."""

    entries: list[AuditEntry]


class ReloadRequest(BaseModel):
    """Nothing: what is loaded is what the folder holds."""

    model_config = ConfigDict(extra="forbid")


class ReloadBody(Sparse):
    """What is served after a reload."""

    bundles: list[str] = Field(description="Id of every bundle, those among them that are only served when pinned.")
    changed: list[str] = Field(
        description="Those of them that were not served before, or not as the default of their task."
    )
    removed: list[str] = Field(description="Those that were served and are not any more, pinned or not.")
    generation: int | None = Field(
        default=None, description="Number of the bundles, the same in all replicas; absent without Redis."
    )


class Alive(BaseModel):
    """The process answers."""

    status: str = "alive"


class Ready(BaseModel):
    """The service takes traffic."""

    status: str = Field(description="`ready`, or `degraded` if `baihua` cannot be used now.")
    parts: dict[str, str]
