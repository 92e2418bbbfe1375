"""What the provider says of itself, kept in Redis so that every replica can show it without asking."""

from __future__ import annotations

import logging
from time import time

from service.hardware.records import ProviderFacts
from service.hardware.store import Store
from service.providers.base import Health, Provider, ProviderError

logger = logging.getLogger(__name__)

_ONLINE = "online"


class FactFinder:
    """Asks the provider for device, queue and quota.

    Args:
        store: On its noticeboard what it said is kept.
        provider: Is asked.
    """

    def __init__(self, store: Store, provider: Provider) -> None:
        self._store = store
        self._provider = provider

    async def keep_up(self) -> None:
        """Ask anew; without an answer the last one stays, with the time at which it was given."""
        try:
            health = await self._provider.health()
        except ProviderError as exc:
            logger.warning("no health from the provider", extra={"fields": {"detail": str(exc)}})
            return
        await self._store.noticeboard.keep_provider_facts(_facts(health))


def _facts(health: Health) -> ProviderFacts:
    quota = health.quota
    return ProviderFacts(
        device_online=health.device_status == _ONLINE,
        queue_length=health.queue_length,
        quota_left=None if quota is None or quota.limit is None else max(0, quota.limit - quota.used),
        seen_at=time(),
    )
