"""Read a Dockerfile and its .dockerignore: as much of their language as ours need, and an error for the rest."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_NAMES = frozenset(
    {
        "ARG",
        "COPY",
        "CMD",
        "ENTRYPOINT",
        "ENV",
        "EXPOSE",
        "HEALTHCHECK",
        "LABEL",
        "RUN",
        "STOPSIGNAL",
        "USER",
        "WORKDIR",
    }
)
_FLAGS = {"COPY": {"from", "chown"}, "HEALTHCHECK": {"interval", "timeout", "start-period", "retries"}}
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_BASE = re.compile(r"FROM\s+(\S+)(?:\s+AS\s+(\w+))?")


class DockerfileError(Exception):
    """A Dockerfile has what is not understood here, or a step of it failed."""


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        line: Where it begins, counted from 1.
        flags: `--name=value` before the rest.
        rest: All that follows, on one line.
    """

    line: int
    name: str
    flags: Mapping[str, str]
    rest: str

    def pairs(self) -> list[tuple[str, str]]:
        """The `NAME=value` of ARG, ENV and LABEL."""
        found = [word.partition("=") for word in shlex.split(self.rest)]
        if not found or not all(name and (equals or self.name == "ARG") for name, equals, _ in found):
            raise self.error("expected NAME=value")
        return [(name, value) for name, _, value in found]

    def command(self) -> list[str]:
        """The words of CMD, ENTRYPOINT and HEALTHCHECK CMD in the exec form: no shell keeps signals to itself."""
        try:
            words = json.loads(self.rest.removeprefix("CMD "))
        except json.JSONDecodeError:
            words = None
        if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
            raise self.error('expected the exec form, ["word", ...]')
        return words

    def error(self, reason: str) -> DockerfileError:
        return DockerfileError(f"Dockerfile line {self.line}, {self.name}: {reason}, found {self.rest!r}")


@dataclass(frozen=True)
class Stage:
    """A FROM and what follows it.

    Attributes:
        base: The image it begins with.
        name: Its name, or its index as text.
    """

    base: str
    name: str
    instructions: Sequence[Instruction]


def parse(text: str) -> list[Stage]:
    """The stages of a Dockerfile.

    Raises:
        DockerfileError: If it has an instruction or a flag that is not understood here.
    """
    stages: list[Stage] = []
    arguments: dict[str, str] = {}
    for line, content in _logical_lines(text):
        if match := _BASE.fullmatch(content):
            name = match[2] or str(len(stages))
            stages.append(Stage(substitute(match[1], arguments), name, []))
            continue
        instruction = _instruction(line, content)
        if stages:
            stages[-1] = Stage(stages[-1].base, stages[-1].name, [*stages[-1].instructions, instruction])
        elif instruction.name == "ARG":
            arguments |= dict(instruction.pairs())
        else:
            raise instruction.error("expected FROM before it")
    if not stages:
        raise DockerfileError("the Dockerfile has no FROM")
    return stages


def substitute(text: str, variables: Mapping[str, str]) -> str:
    """`$NAME` and `${NAME}` replaced.

    Raises:
        DockerfileError: If a name has no value.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in variables:
            raise DockerfileError(f"${name} has no value in {text!r}")
        return variables[name]

    return _VARIABLE.sub(value, text)


class Ignored:
    """Tells which paths of the build context a .dockerignore keeps out.

    Args:
        text: The file; the last pattern that matches a path or a folder that it is in decides.
    """

    def __init__(self, text: str) -> None:
        lines = [line.strip() for line in text.splitlines()]
        patterns = [line for line in lines if line and not line.startswith("#")]
        self._patterns = [(_glob(line.removeprefix("!").strip("/")), not line.startswith("!")) for line in patterns]

    def __call__(self, path: PurePosixPath) -> bool:
        """Whether a path, relative to the context, is kept out."""
        candidates = [str(path), *(str(parent) for parent in path.parents if parent.name)]
        ignored = False
        for pattern, keeps_out in self._patterns:
            if any(pattern.fullmatch(candidate) for candidate in candidates):
                ignored = keeps_out
        return ignored

    def files(self, context: Path, source: str) -> list[Path]:
        """The files of the context that a COPY source stands for: itself, or all in it."""
        path = context / source
        found = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
        return [each for each in found if not self(PurePosixPath(each.relative_to(context).as_posix()))]


def _glob(pattern: str) -> re.Pattern[str]:
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    words = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    return re.compile("".join(parts.get(word) or re.escape(word) for word in words))


def _logical_lines(text: str) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    begun: list[str] = []
    first = 0
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        first = first if begun else number
        begun.append(line.strip().removesuffix("\\").strip())
        if not line.rstrip().endswith("\\"):
            found.append((first, " ".join(begun)))
            begun = []
    return found


def _instruction(line: int, content: str) -> Instruction:
    name, _, rest = content.partition(" ")
    flags: dict[str, str] = {}
    while match := re.match(r"--([a-z-]+)=(\S+)\s+", rest):
        flags[match[1]] = match[2]
        rest = rest[match.end() :]
    found = Instruction(line, name, flags, rest.strip())
    if name not in _NAMES:
        raise found.error(f"expected one of {', '.join(sorted(_NAMES))}")
    if unknown := flags.keys() - _FLAGS.get(name, set()):
        raise found.error(f"--{min(unknown)} is not understood")
    return found
