"""`qdserve`, the command."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from models.errors import StudentError
from service.errors import ServiceError
from service.logs import configure_logging
from service.settings import Settings, load_settings

_CHECK_FAILED = 1
_CANNOT_START = 2
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit code."""
    parsed = _parser().parse_args(arguments)
    overrides = {name: value for name in ("host", "port") if (value := getattr(parsed, name, None)) is not None}
    if parsed.command == "check" and parsed.provider:
        overrides["quafu_provider"] = parsed.provider
    try:
        # `port` of the emulator is its own and not the service's.
        settings = load_settings(**({} if parsed.command == "emulator" else overrides))
        # What a child of the command does is no news to whoever asks for a table.
        configure_logging("warning" if parsed.command == "keys" else settings.log_level)
        match parsed.command:
            # Each command loads what it needs and nothing of the others.
            case "serve":
                from service.serve import serve

                asyncio.run(serve(settings))
            case "worker":
                from service.worker import work

                asyncio.run(work(settings))
            case "emulator":
                _emulate(settings, parsed.port, parsed.state)
            case "check":
                return asyncio.run(_check(settings))
            case "keys":
                asyncio.run(_keys(settings, parsed))
    except (ServiceError, StudentError) as exc:
        print(f"qdserve: {exc}", file=sys.stderr)
        return _CANNOT_START
    except KeyboardInterrupt:
        return _INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qdserve",
        description="Serve distilled quantum students over HTTP. QD_* variables hold every setting.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    serve = commands.add_parser("serve", help="answer HTTP requests", description="Answer HTTP requests.")
    serve.add_argument("--host", help="address to listen on (QD_HOST)")
    serve.add_argument("--port", help="port to listen on, 0 for a free one (QD_PORT)")
    commands.add_parser(
        "worker",
        help="take circuits from the queue to the provider",
        description="Take circuits from the queue in QD_REDIS_URL to the provider. Any number of workers may run, "
        "on any host.",
    )
    emulator = commands.add_parser(
        "emulator",
        help="emulate the provider and the chip",
        description="Speak both Quafu protocols on a loopback address and answer from a noise model of Baihua. Takes "
        "the token in QD_QUAFU_TOKEN, or makes one.",
    )
    emulator.add_argument("--port", type=int, default=8010, help="port to listen on, 0 for a free one (8010)")
    emulator.add_argument("--state", type=Path, help="file that keeps jobs and results; without it they are in memory")
    check = commands.add_parser(
        "check",
        help="check that jobs can run at the provider",
        description="Check token, quota, device and limits, and prove the bit order with a small circuit that is run.",
    )
    check.add_argument(
        "--provider",
        nargs="?",
        const="",
        required=True,
        metavar="NAME",
        help="check the provider; that of QD_QUAFU_PROVIDER unless one is named",
    )
    _add_keys(commands.add_parser("keys", help="make, list and revoke API keys", description="API keys, in Redis."))
    return parser


def _add_keys(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="ACTION", dest="action")
    create = commands.add_parser(
        "create",
        help="make a key",
        description="Make a key and print it on stdout, once. From the first key on, the service asks for one.",
    )
    create.add_argument("name", metavar="NAME", help="whose it is")
    create.add_argument(
        "--scope",
        action="append",
        required=True,
        dest="scopes",
        metavar="SCOPE",
        help="what it is for: classify, hardware or admin; may be given several times, as none implies another",
    )
    create.add_argument("--expires", metavar="WHEN", help="30d, 12h, or an ISO date or time in UTC; never without it")
    create.add_argument(
        "--requests-per-minute", type=int, metavar="N", help="most requests in a minute, 0 for any; 600 without it"
    )
    create.add_argument(
        "--shots-per-day",
        type=int,
        metavar="N",
        help="most shots that it may bring into the hardware's queue in a day (UTC), 0 for any; 1024000 without it",
    )
    commands.add_parser("list", help="list the keys", description="List the keys, without what opens anything.")
    revoke = commands.add_parser(
        "revoke", help="make a key open nothing", description="Make a key open nothing, within 2 s on every replica."
    )
    revoke.add_argument("id", metavar="ID", help="the key's id, the part between the underscores")


async def _keys(settings: Settings, parsed: argparse.Namespace) -> None:
    from service.control import commands

    match parsed.action:
        case "create":
            limits = {
                name: value
                for name in ("requests_per_minute", "shots_per_day")
                if (value := getattr(parsed, name)) is not None
            }
            key, facts = await commands.create(settings, parsed.name, parsed.scopes, parsed.expires, **limits)
            # Alone on stdout, so that it can be piped.
            print(key, flush=True)
            print(facts, file=sys.stderr)
        case "list":
            print(await commands.show(settings))
        case "revoke":
            print(await commands.revoke(settings, parsed.id), file=sys.stderr)


def _emulate(settings: Settings, port: int, state: Path | None) -> None:
    from service.emulator.app import run
    from service.emulator.config import EmulatorConfig

    token = settings.token() if settings.has_token else f"qf_{secrets.token_hex(16)}"
    config = EmulatorConfig(
        token=token,
        name=settings.quafu_device,
        exact=settings.emulator_exact,
        queue_seconds=settings.emulator_queue_seconds,
        state=state,
    )
    # A token that was given is known, and not shown.
    shown = "" if settings.has_token else f" QD_QUAFU_TOKEN={token}"
    run(config, port, lambda url: print(f"Emulating {config.name}: QD_QUAFU_URL={url}{shown}", flush=True))


async def _check(settings: Settings) -> int:
    from service.check import check, table
    from service.providers.make import make_provider

    provider = make_provider(settings.quafu_provider, settings.quafu_url, settings.token(), settings.quafu_device)
    try:
        findings = await check(
            provider,
            shots=settings.shots,
            chain=settings.chain,
            progress=lambda line: print(f"... {line}", file=sys.stderr, flush=True),
        )
    finally:
        await provider.close()
    print(table(findings))
    return 0 if all(finding.ok for finding in findings) else _CHECK_FAILED


if __name__ == "__main__":
    sys.exit(main())
