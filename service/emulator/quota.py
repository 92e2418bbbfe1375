"""The day of the quota, which begins at 23:00 Beijing time."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

_BEIJING = timezone(timedelta(hours=8), "Beijing")
_RESET_HOUR = 23


def last_reset(now: float) -> datetime:
    """The latest reset that is not after `now`, in seconds since the epoch."""
    moment = datetime.fromtimestamp(now, _BEIJING)
    reset = moment.replace(hour=_RESET_HOUR, minute=0, second=0, microsecond=0)
    return reset if reset <= moment else reset - timedelta(days=1)


def next_reset(now: float) -> datetime:
    """The earliest reset after `now`, in seconds since the epoch."""
    return last_reset(now) + timedelta(days=1)
