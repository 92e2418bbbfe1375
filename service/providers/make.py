"""A provider by its name."""

from __future__ import annotations

from service.providers.base import Provider, ProviderName
from service.providers.quafu import QuafuProvider
from service.providers.quafu_sqc import QuafuSqcProvider


def make_provider(name: ProviderName, url: str | None, token: str, device: str) -> Provider:
    """The provider of a name; nothing is sent yet.

    Args:
        name: Which platform.
        url: Its address; None is the platform's own.
        token: Of the account.
        device: As the platform calls it.

    Raises:
        SettingsError: If the url or the token is impossible; names the variable, and not the token.
    """
    match name:
        case ProviderName.QUAFU:
            return QuafuProvider(url, token, device)
        case ProviderName.QUAFU_SQC:
            return QuafuSqcProvider(url, token, device)
