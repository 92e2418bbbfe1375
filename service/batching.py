"""Dynamic batching: texts of concurrent requests share forward passes of the encoder, whatever their tasks.

A request's texts are tokenised on one thread as they arrive. A second thread computes: when it becomes free, the
oldest waiting text and those of like length behind it form the next batch, so that nothing ever waits for a batch to
fill. All bookkeeping happens on the event loop; the threads only compute.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import perf_counter
from types import TracebackType
from typing import Self

import numpy as np
from opentelemetry import trace
from opentelemetry.trace import Span, Tracer

from models.embedder import Tokens
from service.errors import OverloadedError, ShuttingDownError
from service.metrics import Metrics
from service.registry import LoadedBundle
from service.tracing import OFF, Period, exemplar, record

# Every text of a batch is padded to its longest: up to this many tokens that is cheap, beyond it up to this factor.
_CHEAP_TOKENS = 16
_PADDING_FACTOR = 2
# Weight of the newest batch in the running mean of seconds a text, from which Retry-After is told.
_SMOOTHING = 0.1


@dataclass(frozen=True)
class Evaluation:
    """What one request gets back, rows in its own order.

    Attributes:
        angles: Shape (n_texts, n_qubits), radians.
        logits: Shape (n_texts, n_classes).
        truncated: Whether each text was longer than the embedder reads.
        embed_seconds: Tokenisation and forward passes that this request took part in.
        circuit_seconds: Reducer, circuit and head for the batches it took part in.
    """

    angles: np.ndarray
    logits: np.ndarray
    truncated: tuple[bool, ...]
    embed_seconds: float
    circuit_seconds: float


@dataclass(eq=False)
class _Request:
    bundle: LoadedBundle
    n_texts: int
    future: asyncio.Future[None]
    n_waiting: int
    span: Span  # of whoever asks
    tokens: list[Tokens] = field(default_factory=list)
    tokenised_at: float | None = None  # None again once a batch has begun on it
    angles: dict[int, np.ndarray] = field(default_factory=dict)
    logits: dict[int, np.ndarray] = field(default_factory=dict)
    embed_seconds: float = 0.0
    circuit_seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class _Row:
    request: _Request
    index: int

    @property
    def length(self) -> int:
        return len(self.request.tokens[self.index].ids)


@dataclass(frozen=True)
class _Share:
    """One bundle's part of a batch: its rows with their angles and logits, or what went wrong."""

    rows: list[_Row]
    angles: np.ndarray
    logits: np.ndarray
    period: Period
    error: Exception | None = None


class Batcher:
    """Evaluates texts in batches; an async context manager that owns the two threads.

    Args:
        metrics: Where batches are observed.
        max_batch_texts: Most texts in one forward pass.
        max_queued_texts: Most texts that wait for one.
        tracer: Records the parts of an evaluation below the span that is current when it is asked for.
    """

    def __init__(self, metrics: Metrics, *, max_batch_texts: int, max_queued_texts: int, tracer: Tracer = OFF) -> None:
        self._metrics = metrics
        self._tracer = tracer
        self._max_batch_texts = max_batch_texts
        self._max_queued_texts = max_queued_texts
        self._task: asyncio.Task[None] | None = None
        self._rows: list[_Row] = []
        self._requests: set[_Request] = set()
        self._n_waiting = 0
        self._seconds_per_text = 0.0

    async def __aenter__(self) -> Self:
        self._wake = asyncio.Event()
        self._tokeniser = ThreadPoolExecutor(1, "tokeniser")
        self._encoder = ThreadPoolExecutor(1, "encoder")
        self._task = asyncio.create_task(self._run(), name="batching")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for executor in (self._tokeniser, self._encoder):
            executor.shutdown()

    @property
    def is_running(self) -> bool:
        """Whether texts are being evaluated."""
        return self._task is not None and not self._task.done()

    async def evaluate(self, bundle: LoadedBundle, texts: Sequence[str]) -> Evaluation:
        """Evaluate a bundle's student for texts, at least one. Cancelling it takes its texts out of the queue.

        Raises:
            OverloadedError: If the texts do not fit into the queue.
            ShuttingDownError: If the batcher stops first.
        """
        self._check_room(len(texts))
        loop = asyncio.get_running_loop()
        request = _Request(bundle, len(texts), loop.create_future(), len(texts), trace.get_current_span())
        self._requests.add(request)
        self._add_waiting(len(texts))
        try:
            begun = perf_counter()
            request.tokens = await loop.run_in_executor(self._tokeniser, bundle.embedder.tokenise, texts)
            request.tokenised_at = perf_counter()
            tokenising = Period(begun, request.tokenised_at)
            request.embed_seconds = tokenising.seconds
            self._metrics.tokenise_seconds.observe(tokenising.seconds, exemplar(request.span))
            record(self._tracer, "tokenise", request.span, tokenising)
            if not request.future.done():  # it is if the batcher stopped meanwhile
                self._rows += [_Row(request, index) for index in range(len(texts))]
                self._wake.set()
            await request.future
        finally:
            self._withdraw(request)
        return Evaluation(
            angles=np.stack([request.angles[index] for index in range(len(texts))]),
            logits=np.stack([request.logits[index] for index in range(len(texts))]),
            truncated=tuple(tokens.truncated for tokens in request.tokens),
            embed_seconds=request.embed_seconds,
            circuit_seconds=request.circuit_seconds,
        )

    def _check_room(self, n_texts: int) -> None:
        if not self.is_running:
            raise ShuttingDownError("the service does not take texts", 1)
        if self._n_waiting + n_texts > self._max_queued_texts:
            raise OverloadedError(
                f"{self._n_waiting} texts are waiting and {n_texts} more were sent, "
                f"expected at most {self._max_queued_texts} together",
                max(1, math.ceil(self._n_waiting * self._seconds_per_text)),
                limit=self._max_queued_texts,
            )

    async def _run(self) -> None:
        try:
            await self._evaluate_batches()
        finally:
            for request in list(self._requests):
                self._fail(request, ShuttingDownError("the service stopped before it could answer", 1))

    async def _evaluate_batches(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            while self._rows:
                rows = self._next_batch()
                try:
                    encoding, shares = await loop.run_in_executor(self._encoder, _compute, rows)
                except Exception as exc:
                    for request in {row.request for row in rows}:
                        self._fail(request, exc)
                    continue
                self._observe(rows, encoding)
                for request in {row.request for row in rows}:
                    request.embed_seconds += encoding.seconds
                for share in shares:
                    self._deliver(share)
            self._wake.clear()

    def _next_batch(self) -> list[_Row]:
        """Take the oldest row and, in order of age, rows on the same embedder that pad well with the batch."""
        first, batch, rest = self._rows[0], list[_Row](), list[_Row]()
        shortest = longest = first.length
        for row in self._rows:
            low, high = min(shortest, row.length), max(longest, row.length)
            pads_well = high <= max(_CHEAP_TOKENS, _PADDING_FACTOR * low)
            same = row.request.bundle.embedder is first.request.bundle.embedder
            if same and pads_well and len(batch) < self._max_batch_texts:
                batch.append(row)
                shortest, longest = low, high
            else:
                rest.append(row)
        self._rows = rest
        for row in batch:
            row.request.n_waiting -= 1
        self._add_waiting(-len(batch))
        return batch

    def _observe(self, rows: list[_Row], encoding: Period) -> None:
        n_rows = Counter(row.request for row in rows)
        self._metrics.batch_texts.observe(len(rows))
        self._metrics.encoder_seconds.observe(encoding.seconds, _exemplar(n_rows))
        for request, n_texts in n_rows.items():
            if request.tokenised_at is not None:
                waiting = Period(request.tokenised_at, encoding.begun)
                self._metrics.batch_wait_seconds.observe(waiting.seconds, exemplar(request.span))
                record(self._tracer, "batch wait", request.span, waiting)
                request.tokenised_at = None
            numbers = {"qd.texts": n_texts, "qd.batch_texts": len(rows)}
            record(self._tracer, "encoder", request.span, encoding, numbers)
        newest = (perf_counter() - encoding.begun) / len(rows)
        self._seconds_per_text += _SMOOTHING * (newest - self._seconds_per_text)

    def _deliver(self, share: _Share) -> None:
        requests = Counter(row.request for row in share.rows)
        if share.error is not None:
            for request in requests:
                self._fail(request, share.error)
            return
        task = share.rows[0].request.bundle.task
        self._metrics.circuit_seconds.labels(task).observe(share.period.seconds, _exemplar(requests))
        for position, row in enumerate(share.rows):
            row.request.angles[row.index] = share.angles[position]
            row.request.logits[row.index] = share.logits[position]
        for request, n_texts in requests.items():
            record(self._tracer, "circuit", request.span, share.period, {"qd.texts": n_texts})
            request.circuit_seconds += share.period.seconds
            if len(request.logits) == request.n_texts and not request.future.done():
                request.future.set_result(None)

    def _fail(self, request: _Request, error: Exception) -> None:
        self._withdraw(request)
        if not request.future.done():
            request.future.set_exception(error)

    def _withdraw(self, request: _Request) -> None:
        """Forget a request; what a batch has already begun on is computed and dropped."""
        self._requests.discard(request)
        if request.n_waiting:
            self._rows = [row for row in self._rows if row.request is not request]
            self._add_waiting(-request.n_waiting)
            request.n_waiting = 0

    def _add_waiting(self, n_texts: int) -> None:
        self._n_waiting += n_texts
        self._metrics.queued_texts.set(self._n_waiting)


def _exemplar(requests: Iterable[_Request]) -> dict[str, str] | None:
    """Of one of the requests that are traced, if any is."""
    return next(filter(None, (exemplar(request.span) for request in requests)), None)


def _compute(rows: Sequence[_Row]) -> tuple[Period, list[_Share]]:
    """One forward pass for all rows, then each bundle's student on its own; runs on the encoder's thread."""
    embedder = rows[0].request.bundle.embedder
    begun = perf_counter()
    pooled = embedder.pooled([row.request.tokens[row.index] for row in rows])
    encoding = Period(begun, perf_counter())
    shares: dict[str, list[int]] = {}
    for position, row in enumerate(rows):
        shares.setdefault(row.request.bundle.id, []).append(position)
    return encoding, [_share([rows[p] for p in positions], pooled[positions]) for positions in shares.values()]


def _share(rows: list[_Row], pooled: np.ndarray) -> _Share:
    bundle = rows[0].request.bundle
    begun = perf_counter()
    try:
        angles = bundle.student.angles(bundle.embedder.select(pooled, bundle.features))
        logits = bundle.student.logits(angles)
    except Exception as exc:  # one task's fault must not fail the other tasks of the batch
        return _Share(rows, np.empty(0), np.empty(0), Period(begun, perf_counter()), exc)
    return _Share(rows, angles, logits, Period(begun, perf_counter()))
