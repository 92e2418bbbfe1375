"""Write what Grafana and Prometheus read.

    python -m deploy.generate [--check]

With `--check` nothing is written, and a file that is out of date ends with exit code 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.backends_dashboard import backends
from deploy.rules import rules_file
from deploy.scenarios import tests_file
from deploy.service_dashboard import service

FOLDER = Path(__file__).parent
_HEAD = "# Written by `python -m deploy.generate`; edit deploy/{source} instead.\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a file is out of date")
    options = parser.parse_args(argv)
    outdated = [path for path, text in files().items() if not path.is_file() or path.read_text("utf-8") != text]
    for path in outdated:
        if options.check:
            sys.stderr.write(f"{path.relative_to(FOLDER.parent)} is out of date; run `python -m deploy.generate`\n")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(files()[path], "utf-8")
    return int(options.check and bool(outdated))


def files() -> dict[Path, str]:
    """The text of every generated file."""
    return {
        FOLDER / "grafana" / "backends.json": _json(backends()),
        FOLDER / "grafana" / "service.json": _json(service()),
        FOLDER / "prometheus" / "rules.yml": _yaml("rules.py and deploy/alerts.py", rules_file()),
        FOLDER / "prometheus" / "rules_test.yml": _yaml("scenarios.py", tests_file()),
    }


def _json(dashboard: Any) -> str:
    return json.dumps(dashboard.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def _yaml(source: str, content: dict[str, Any]) -> str:
    text: str = yaml.safe_dump(content, sort_keys=False, width=110, allow_unicode=True)
    return _HEAD.format(source=source) + text


if __name__ == "__main__":
    sys.exit(main())
