"""Expressions of PromQL that dashboards and rules are put together from.

Counters and histograms are of one process each, so they are summed. What is in Redis is told by every replica alike, so
its maximum is taken.
"""

from __future__ import annotations

WORST = "error|unavailable"
"""Outcomes of a classify request that are the service's fault and not the caller's."""

# Every replica and every worker tells exactly one of each of these.
REPLICAS = "count(qd_redis_up)"
WORKERS = "count(qd_worker_steps)"


def rate(counter: str, by: str = "", *, where: str = "", window: str = "$__rate_interval") -> str:
    """Events a second, summed over the processes; `by` names the labels that are kept."""
    return f"sum{_by(by)} (rate({counter}{_braced(where)}[{window}]))"


def ratio(counter: str, part: str, by: str = "", *, where: str = "", window: str = "$__rate_interval") -> str:
    """The share of a counter's events that `part` selects.

    It is 0 where there were events, but none of these; it has no value where there were no events at all.
    """
    whole = rate(counter, by, where=where, window=window)
    selected = rate(counter, by, where=_and(where, part), window=window)
    # Compared, as 0 / 0 is a value too, though no number.
    return f"({selected} or 0 * {whole}) / ({whole} > 0)"


def quantile(share: float, histogram: str, by: str = "", *, where: str = "", window: str = "$__rate_interval") -> str:
    """A percentile over all processes; it has no value where nothing was observed."""
    kept = f"le, {by}" if by else "le"
    within = rate(f"{histogram}_bucket", kept, where=where, window=window)
    return f"histogram_quantile({share:g}, {within}) >= 0"


def mean(histogram: str, by: str = "", *, where: str = "", window: str = "$__rate_interval") -> str:
    """The mean of what was observed; it has no value where nothing was."""
    total = rate(f"{histogram}_sum", by, where=where, window=window)
    return f"{total} / ({rate(f'{histogram}_count', by, where=where, window=window)} > 0)"


def shared(gauge: str, by: str = "", *, where: str = "") -> str:
    """A gauge that is the same for every replica."""
    return f"max{_by(by)} ({gauge}{_braced(where)})"


def or_zero(expression: str, label: str = "", value: str = "", *, while_up: str = REPLICAS) -> str:
    """Likewise, with a series at 0 where there is none and a process is there that would know.

    Args:
        expression: Sums of counters, whose labels appear with their first event.
        label: The label of that series, if it has one.
        value: The value that stands for the rest.
        while_up: What is absent when nobody knows.
    """
    zero = f"0 * {while_up}"
    if label:
        zero = f'label_replace({zero}, "{label}", "{value}", "", "")'
    return f"{expression} or {zero}"


def _by(labels: str) -> str:
    return f" by ({labels})" if labels else ""


def _braced(where: str) -> str:
    return f"{{{where}}}" if where else ""


def _and(*parts: str) -> str:
    return ", ".join(part for part in parts if part)
