"""quafu-sqc.baqis.ac.cn over HTTP: one circuit a task, compiled there.

Submissions cannot be repeated: the platform takes no name for them that it would know again. Its HTTP status codes
say little, so every answer is judged by its JSON first.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from models.device import Device
from models.qasm import to_qasm2
from service.errors import SettingsError
from service.providers.answers import checked_counts, shown
from service.providers.base import (
    DeviceOfflineError,
    Health,
    JobState,
    Limits,
    LostJobError,
    MalformedAnswerError,
    Measured,
    NotMeasured,
    OperatorNeededError,
    Outcome,
    Program,
    ProviderError,
    QuotaExhaustedError,
    RejectedError,
    UncertainSubmitError,
    UnreachableError,
)

DEFAULT_URL = "https://quafu-sqc.baqis.ac.cn"

_CONNECT_SECONDS = 5.0
_LIMITS = Limits(min_shots=1024, max_shots=None, shots_step=1024, max_qubits=None, max_programs=1)
_STATES: Mapping[object, JobState] = {
    "Pending": JobState.QUEUED,
    "Queued": JobState.QUEUED,
    "Running": JobState.RUNNING,
    "Finished": JobState.ENDED,
    "Failed": JobState.ENDED,
    "Cancelled": JobState.ENDED,
    "Canceled": JobState.ENDED,
}
_CANCELLED = ("Cancelled", "Canceled")
_UNKNOWN_TASK = re.compile(r"\bno (such )?task\b|\bnot found\b|\bdoes not exist\b", re.IGNORECASE)
# "unexpected token" is what a parser says of a circuit.
_ABOUT_THE_TOKEN = re.compile(
    r"\b(invalid|expired|wrong|missing|no|illegal)\s+(api\s+)?token\b|"
    r"\btoken\s+(is\s+|has\s+)?(invalid|expired|wrong|missing|not\s+valid|required|disabled)\b|unauthori[sz]ed",
    re.IGNORECASE,
)


class QuafuSqcProvider:
    """Runs one program at a time on one device of the platform.

    Args:
        url: None is the platform's own.
        token: As the platform issued it; it expires after 30 days.
        device: As the platform calls it.
        timeout_seconds: How long a request may take in all.

    Raises:
        SettingsError: If the url or the token is impossible.
    """

    repeatable = False

    def __init__(self, url: str | None, token: str, device: str, *, timeout_seconds: float = 30.0) -> None:
        self.submit_seconds = timeout_seconds
        token = token.strip()
        # HTTP carries it in a header; httpx would quote one that it refuses.
        if not token or not token.isascii() or not token.isprintable():
            raise SettingsError("QD_QUAFU_TOKEN is empty or holds characters other than printable ASCII")
        self._token = token
        self._device = device
        self._timeout_seconds = timeout_seconds
        self._client = httpx.AsyncClient(
            base_url=_checked(DEFAULT_URL if url is None else url),
            headers={"token": token},
            timeout=httpx.Timeout(timeout_seconds, connect=min(_CONNECT_SECONDS, timeout_seconds)),
            # A kept connection may be closed as a task is sent, and nobody could tell whether it was received.
            limits=httpx.Limits(max_keepalive_connections=0),
            trust_env=False,
        )

    async def limits(self) -> Limits:
        """As the platform documents them; it has no address that would tell."""
        return _LIMITS

    async def device(self) -> Device | None:
        """None: the platform publishes no calibration over this protocol."""
        return None

    async def health(self) -> Health:
        """Asks whether the token is accepted and how long the queues are."""
        account = await self._get("/task/verify")
        if account is False:
            raise OperatorNeededError("the platform refuses the token")
        queues = await self._get("/task/status/0")
        if not isinstance(queues, dict):
            raise MalformedAnswerError(f"the queues are {shown(queues)}, expected an object")
        entry = queues.get(self._device, "Offline")
        is_length = type(entry) is int and entry >= 0
        if not is_length and not isinstance(entry, str):
            raise MalformedAnswerError(f"the queue of {self._device} is {shown(entry)}, expected a length or a word")
        facts = account if isinstance(account, dict) else {}
        names = [facts[key] for key in ("name", "user", "email") if isinstance(facts.get(key), str)]
        return Health(
            account=names[0] if names else None,
            device_status="online" if is_length else entry.lower(),
            queue_length=entry if is_length else None,
            quota=None,
            calibration_id=None,
            emulated=facts.get("emulated") is True or queues.get("emulated") is True,
        )

    async def submit(self, programs: Sequence[Program], token: str) -> str:
        """Submit one program; its chain, if it has one, is where the platform's compiler puts it."""
        if len(programs) != 1:
            raise RejectedError(f"{len(programs)} programs in one job, expected {_LIMITS.max_programs}")
        [program] = programs
        options = {
            "compiler": "quarkcircuit",
            "correct": False,
            "open_dd": None,
            "target_qubits": list(program.chain or ()),
        }
        # No Content-Type: the platform reads the body as it is.
        body = json.dumps({"circuit": to_qasm2(program.circuit), "compile": True, "options": options}).encode()
        query = {"name": f"qd-{token}", "chip": self._device, "shots": program.shots}
        try:
            answer = await self._send("POST", "/task/run/", params=query, content=body)
        except UnreachableError as exc:
            # Only a connection that was never opened tells that nothing was sent.
            if isinstance(exc.__cause__, httpx.ConnectError | httpx.ConnectTimeout):
                raise
            raise UncertainSubmitError(f"the answer to the submission was lost: {exc}") from exc
        return self._job_id(answer)

    async def status(self, job_id: str) -> JobState:
        """The platform's word in ours; `Finished` counts once the counts are there."""
        word = await self._get(f"/task/status/{job_id}")
        try:
            state = _STATES[word]
        except (KeyError, TypeError):
            self._require_known(word)
            raise MalformedAnswerError(f"the job's status is {shown(word)}, expected one of {list(_STATES)}") from None
        if word == "Finished" and not _has_ended(await self._result(job_id)):
            return JobState.RUNNING
        return state

    async def result(self, job_id: str, programs: Sequence[Program]) -> list[Outcome]:
        """The outcome of the one program."""
        [program] = programs
        answer = await self._result(job_id)
        if not answer.get("count"):
            return [await self._failure(job_id, answer)]
        counts = checked_counts(answer["count"], program.circuit.n_qubits, "the result")
        calibration_id = answer.get("calibration_id")
        return [
            Measured(
                # The platform writes c[0], which is qubit 0, rightmost.
                counts={bits[::-1]: n for bits, n in counts.items()},
                physical_qubits=program.chain,
                calibration_id=calibration_id if isinstance(calibration_id, str) else None,
                emulated=answer.get("emulated") is True,
            )
        ]

    async def cancel(self, job_id: str) -> None:
        """Ask for it; the platform's answer changes nothing."""
        await self._get(f"/task/cancel/{job_id}")

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _result(self, job_id: str) -> dict[str, Any]:
        answer = await self._get(f"/task/result/{job_id}")
        if not isinstance(answer, dict):
            self._require_known(answer)
            raise MalformedAnswerError(f"the result is {shown(answer)}, expected an object")
        return answer

    @staticmethod
    def _require_known(answer: Any) -> None:
        """Raise for prose that says there is no such task."""
        if isinstance(answer, str) and _UNKNOWN_TASK.search(answer):
            raise LostJobError(f"the platform does not know the job: {_words(answer)}")

    async def _failure(self, job_id: str, answer: Mapping[str, Any]) -> NotMeasured:
        """Why a task that has ended has no counts."""
        word = answer.get("status") or await self._get(f"/task/status/{job_id}")
        if word not in ("Failed", *_CANCELLED):
            raise MalformedAnswerError(f"the result of a task that is {shown(word)} has no count")
        error = str(answer.get("error") or "the provider gives no reason")[:300]
        # A cancelled task may be called failed.
        return NotMeasured(error, cancelled=word in _CANCELLED or error.lower() in ("cancelled", "canceled"))

    def _job_id(self, answer: httpx.Response) -> str:
        if answer.status_code >= 500:
            raise UncertainSubmitError(f"the answer to the submission was lost: HTTP {answer.status_code}")
        try:
            value = self._json(answer)
        except (RecursionError, ValueError):
            value = self._text(answer)
        if answer.is_success and type(value) is int and value > 0:
            return str(value)
        raise _refusal(answer, value) or RejectedError(f"the platform refuses the task: {_words(value)}")

    async def _get(self, path: str) -> Any:
        """The JSON that a path gives."""
        answer = await self._send("GET", path)
        if answer.status_code >= 500:
            raise UnreachableError(f"the platform does not answer: HTTP {answer.status_code}")
        try:
            value = self._json(answer)
        except (RecursionError, ValueError) as exc:
            found = f"{shown(self._text(answer))} (HTTP {answer.status_code})"
            raise MalformedAnswerError(f"{path} gives {found}, expected JSON") from exc
        refusal = _refusal(answer, value)
        if refusal is not None:
            raise refusal
        if answer.status_code == 404:
            raise LostJobError(f"the platform does not know the job: {_words(value)}")
        return value

    async def _send(self, method: str, path: str, **content: Any) -> httpx.Response:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await self._client.request(method, path, **content)
        except (TimeoutError, httpx.RequestError) as exc:
            raise UnreachableError(f"the platform does not answer: {type(exc).__name__}") from exc

    def _json(self, answer: httpx.Response) -> Any:
        """The body's value without the token, however the platform escapes it."""
        value = json.loads(answer.text)
        plain, token = (json.dumps(each, ensure_ascii=False) for each in (value, self._token))
        return json.loads(plain.replace(token[1:-1], "***"))

    def _text(self, answer: httpx.Response) -> str:
        """The body without the token, so that no message can quote it."""
        return answer.text.replace(self._token, "***")


def _checked(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as exc:
        raise SettingsError(f"QD_QUAFU_URL is not a URL: {exc}") from exc
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.userinfo:
        raise SettingsError("QD_QUAFU_URL is not of the form https://host")
    return parsed


def _has_ended(result: Mapping[str, Any]) -> bool:
    return bool(result.get("count")) or result.get("status") in ("Failed", *_CANCELLED)


def _refusal(answer: httpx.Response, value: Any) -> ProviderError | None:
    """What an answer says of the account, if anything."""
    complaint = value.get("error") or value.get("detail") if isinstance(value, dict) else value
    about_the_token = isinstance(complaint, str) and _ABOUT_THE_TOKEN.search(complaint)
    if answer.status_code in (401, 403) or about_the_token:
        return OperatorNeededError(f"the platform refuses the token: {_words(value)}")
    if answer.status_code == 409:
        return DeviceOfflineError(f"the device takes no jobs: {_words(value)}")
    if answer.status_code == 429:
        seconds = answer.headers.get("Retry-After", "")
        return QuotaExhaustedError(
            f"the account may not submit now: {_words(value)}", float(seconds) if seconds.isdecimal() else None
        )
    return None


def _words(value: Any) -> str:
    """What an answer says, for people."""
    return value[:300] if isinstance(value, str) else json.dumps(value, ensure_ascii=False)[:300]
