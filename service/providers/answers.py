"""Reading what a provider answered: JSON of which nothing is taken on trust."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from service.providers.base import MalformedAnswerError

_SHOWN = 80


class Answer(BaseModel):
    """Part of an answer: members that are not named are passed over, and nothing is converted."""

    model_config = ConfigDict(frozen=True, strict=True)


A = TypeVar("A", bound=Answer)


def read(form: type[A], value: Any, what: str) -> A:
    """A value in a form.

    Args:
        form: What is expected.
        value: Parsed JSON.
        what: What the value is, for the error.

    Raises:
        MalformedAnswerError: If the value does not have the form; names the first member that is wrong.
    """
    try:
        return form.model_validate(value)
    except ValidationError as exc:
        error = exc.errors(include_url=False)[0]
        member = ".".join(str(part) for part in error["loc"]) or "it"
        raise MalformedAnswerError(f"{what}: {member} is {shown(error['input'])}: {error['msg']}") from exc


def checked_counts(counts: Any, n_bits: int, what: str) -> dict[str, int]:
    """Counts that are counts: `n_bits` bits of 0 and 1 to a number of shots, at least one shot in all.

    Raises:
        MalformedAnswerError: If they are not; says expected and found.
    """
    if not isinstance(counts, dict):
        raise MalformedAnswerError(f"{what}: the counts are {shown(counts)}, expected an object")
    for bits, n in counts.items():
        if len(bits) != n_bits or set(bits) - {"0", "1"}:
            raise MalformedAnswerError(f"{what}: the counts hold {shown(bits)}, expected {n_bits} bits of 0 and 1")
        if type(n) is not int or n < 0:
            raise MalformedAnswerError(f"{what}: {bits} was counted {shown(n)} times, expected 0, 1, 2, ...")
    if sum(counts.values()) == 0:
        raise MalformedAnswerError(f"{what}: the counts hold no shots, expected at least 1")
    return counts


def shown(value: object) -> str:
    """A value as an error shows it: not all of it, if it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
