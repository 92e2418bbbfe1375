"""Carry out the Dockerfile's steps in a clean folder, without Docker and without root, and check what comes of them.

    python -m deploy.image [--json FILE] [--keep FOLDER]

Each stage's RUN and COPY steps run with the image's absolute paths put under one folder. What results is then started
as the image says, with nothing of the source tree in reach and its own tree not writable: it must answer, be found
healthy, write nothing but to its state, and end with 0 when it is told to stop; and it must not open to callers without
a key unless it is told to.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import Distribution, distributions
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from deploy.dockerfile import DockerfileError, Ignored, Instruction, Stage, parse, substitute

ROOT = Path(__file__).parents[1]
# What makes students or emulates a chip, and what only installs packages.
UNWANTED = frozenset(
    {
        "torch",
        "transformers",
        "peft",
        "accelerate",
        "onnx",
        "scikit-learn",
        "pandas",
        "mindquantum",
        "scipy",
        "matplotlib",
    }
    | {"pip", "setuptools"}
)
# The folder at which every stage is built: what a stage writes of its own place is right in the next, as in Docker.
_FILE_SYSTEM = "fs"
# Not after a letter, a colon or a slash: those are URLs and relative paths.
_ABSOLUTE = re.compile(r"(?<![\w.:/@}$-])/(?=[a-z])")
_START_SECONDS = 60
_TOP = 10
_MB = 1e6


class ImageError(Exception):
    """What the steps made is not what an image should be."""


@dataclass
class Image:
    """A file system and how it is run.

    Attributes:
        root: The folder that stands for `/`.
        env: Variables, with paths below `root`.
        workdir: Below `root`.
    """

    root: Path
    env: dict[str, str]
    workdir: Path
    user: str = "0"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    stop_signal: signal.Signals | None = None

    @property
    def site_packages(self) -> Path:
        """Where its Python packages are."""
        found = list(self.root.glob("venv/lib/python3.*/site-packages"))
        if len(found) != 1:
            raise ImageError(f"expected one venv/lib/python3.*/site-packages, found {len(found)}")
        return found[0]

    def under(self, path: str) -> Path:
        """Where a path of the image is here."""
        return self.root / path.lstrip("/") if path.startswith("/") else self.workdir / path


def build(folder: Path, context: Path = ROOT) -> Image:
    """Carry out every stage of the context's Dockerfile in an empty folder; returns the last.

    Raises:
        DockerfileError: If a step is not understood or fails.
    """
    ignored = Ignored((context / ".dockerignore").read_text(encoding="utf-8"))
    stages = parse((context / "Dockerfile").read_text(encoding="utf-8"))
    image: Image | None = None
    for index, stage in enumerate(stages):
        _expect_this_python(stage.base)
        image = _Builder(folder, context, ignored, stage).carry_out()
        if index + 1 < len(stages):
            image.root.rename(folder / stage.name)
    assert image is not None
    return image


def check(image: Image, source: Path = ROOT) -> dict[str, Any]:
    """What an image holds, once it was started, asked and stopped.

    Raises:
        ImageError: If it holds what it should not, lacks what it should have, or does not behave.
    """
    if image.user.partition(":")[0] in ("", "0", "root") or not image.user.replace(":", "").isdecimal():
        raise ImageError(f"expected USER to be a number other than 0, found {image.user!r}")
    names = {distribution.name.lower() for distribution in _installed(image.site_packages)}
    if unwanted := sorted(names & UNWANTED):
        raise ImageError(f"expected none of them in the image, found {', '.join(unwanted)}")
    if (image.site_packages / "training").exists():
        raise ImageError("expected no training code in the image, found the package training")
    if lacking := missing(image, source):
        raise ImageError(f"not installed: {', '.join(lacking)}; see package-data in pyproject.toml")
    before = _files(image.root)
    _set_writable(image.root, False)
    try:
        ran = _run(image)
    finally:
        _set_writable(image.root, True)
    after = _files(image.root)
    if changed := sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path)):
        raise ImageError(f"written to the image while it ran: {changed[0].relative_to(image.root)}")
    largest = sizes(image.site_packages).most_common(_TOP)
    return {
        "python": sys.version.split()[0],
        "added_mb": _mb(sum(size for size, _ in after.values())),
        "n_packages": len(names),
        "largest": [{"package": name, "version": version, "mb": _mb(size)} for (name, version), size in largest],
    } | ran


def sizes(site_packages: Path) -> Counter[tuple[str, str]]:
    """Bytes that each package, by name and version, has in a folder of them, byte code included."""
    owner = {
        str(file): (distribution.name, distribution.version)
        for distribution in _installed(site_packages)
        for file in distribution.files or ()
    }
    found: Counter[tuple[str, str]] = Counter()
    for path, (size, _) in _files(site_packages).items():
        of = path.relative_to(site_packages)
        if of.parent.name == "__pycache__":  # made afterwards, so in no list
            of = of.parent.parent / f"{of.name.partition('.')[0]}.py"
        found[owner.get(of.as_posix(), ("other", ""))] += size
    return found


def missing(image: Image, source: Path = ROOT) -> list[str]:
    """Files of our packages that are in the source tree and were not installed."""
    ours = [
        path.relative_to(source)
        for package in ("models", "service")
        for path in _files(source / package)
        if "__pycache__" not in path.parts
    ]
    return sorted(str(path) for path in ours if not (image.site_packages / path).is_file())


class _Builder:
    """Carries out one stage."""

    def __init__(self, folder: Path, context: Path, ignored: Ignored, stage: Stage) -> None:
        self._folder, self._context, self._ignored, self._stage = folder, context, ignored, stage
        root = folder / _FILE_SYSTEM
        (root / "tmp").mkdir(parents=True)
        self._image = Image(root, {"PATH": f"{_python(folder).parent}:/usr/bin:/bin"}, root)
        self._arguments: dict[str, str] = {}

    def carry_out(self) -> Image:
        for instruction in self._stage.instructions:
            getattr(self, f"_{instruction.name.lower()}")(instruction)
        return self._image

    def _run(self, instruction: Instruction) -> None:
        # The builder's own way to the package registry, which no image keeps.
        ways = ("PIP_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_", "HOME")
        outside = {name: value for name, value in os.environ.items() if name.upper().startswith(ways)}
        ran = subprocess.run(
            ["/bin/sh", "-c", self._rewritten(instruction.rest)],
            cwd=self._image.workdir,
            env=outside | self._arguments | self._image.env | {"TMPDIR": str(self._image.root / "tmp")},
            capture_output=True,
            text=True,
        )
        if ran.returncode:
            raise DockerfileError(f"line {instruction.line} ended with {ran.returncode}: {ran.stderr.strip()[-2000:]}")

    def _copy(self, instruction: Instruction) -> None:
        *sources, target = instruction.rest.split()
        destination = self._image.under(target)
        into = target.endswith("/") or len(sources) > 1
        for source in sources:
            if stage := instruction.flags.get("from"):
                self._copy_path(self._folder / stage / source.lstrip("/"), destination)
                continue
            files = self._ignored.files(self._context, source)
            if not files:
                raise instruction.error(f"the build context has no {source}")
            for file in files:
                name = (
                    Path(source).name
                    if (self._context / source).is_file()
                    else file.relative_to(self._context / source)
                )
                self._copy_path(
                    file, destination / name if into or not file.samefile(self._context / source) else destination
                )

    @staticmethod
    def _copy_path(source: Path, destination: Path) -> None:
        destination.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, destination, symlinks=True, dirs_exist_ok=True)
        else:
            shutil.copy2(source, destination)

    def _env(self, instruction: Instruction) -> None:
        for name, value in instruction.pairs():
            self._image.env[name] = substitute(self._rewritten(value), self._arguments | self._image.env)

    def _arg(self, instruction: Instruction) -> None:
        self._arguments |= dict(instruction.pairs())

    def _label(self, instruction: Instruction) -> None:
        pairs = instruction.pairs()
        self._image.labels |= {name: substitute(value, self._arguments | self._image.env) for name, value in pairs}

    def _workdir(self, instruction: Instruction) -> None:
        self._image.workdir = self._image.under(instruction.rest)
        self._image.workdir.mkdir(parents=True, exist_ok=True)

    def _user(self, instruction: Instruction) -> None:
        self._image.user = instruction.rest

    def _expose(self, instruction: Instruction) -> None:
        self._image.ports += [int(port) for port in instruction.rest.split()]

    def _stopsignal(self, instruction: Instruction) -> None:
        self._image.stop_signal = signal.Signals[instruction.rest]

    def _entrypoint(self, instruction: Instruction) -> None:
        self._image.entrypoint = instruction.command()

    def _cmd(self, instruction: Instruction) -> None:
        self._image.command = instruction.command()

    def _healthcheck(self, instruction: Instruction) -> None:
        self._image.healthcheck = instruction.command()

    def _rewritten(self, text: str) -> str:
        return _ABSOLUTE.sub(f"{self._image.root}/", text)


def _run(image: Image) -> dict[str, Any]:
    """Start, ask and stop it; what was found on the way."""
    if image.stop_signal is None or not image.healthcheck:
        raise ImageError("expected a STOPSIGNAL and a HEALTHCHECK")
    as_user, said = _unprivileged(image)
    with tempfile.TemporaryDirectory(prefix="qd-image-") as temporary:
        outside = Path(temporary)
        outside.chmod(0o777)
        port = _free_port()
        # In a container /state and /tmp can be written, and its port is its own.
        env = image.env | {"QD_PORT": str(port), "QD_STATE_DIR": temporary, "HOME": temporary, "TMPDIR": temporary}
        env |= {"QD_ALLOW_ANONYMOUS": "true", "QD_EMBEDDED": "false", "QD_THREADS": "1"}
        log = outside / "log"
        command = [*as_user, *_found(image, image.entrypoint)]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, *image.command], env=env, cwd=image.workdir, stdout=output, stderr=output
            )
        try:
            _until_healthy(image, env, process, log)
            answers = {path: _ask(port, path) for path in ("/", "/readyz", "/tasks", "/docs", "/metrics")}
            answers["/classify/emotion"] = _ask(port, "/classify/emotion", {"inputs": "what a lovely day"})
            if wrong := {path: status for path, (status, _) in answers.items() if status != 200}:
                raise ImageError(f"expected 200 on every path, found {wrong}")
            resident = _resident_mb(process.pid)
            process.send_signal(image.stop_signal)
            code = process.wait(_START_SECONDS)
        finally:
            process.kill()
            process.wait()
        if code != 0:
            raise ImageError(
                f"expected exit code 0 after {image.stop_signal.name}, found {code}: {log.read_text()[-2000:]}"
            )
        if _is_healthy(image, env):
            raise ImageError("the health check passes although the service has ended")
        del env["QD_ALLOW_ANONYMOUS"]
        _expect_refusal([*command, *image.command], env, "QD_ALLOW_ANONYMOUS")
        _expect_refusal([*command, "worker"], env, "QD_REDIS_URL")
    return {"ran_as": said, "resident_mb": resident, "answered": sorted(answers)}


def _expect_refusal(command: Sequence[str], env: Mapping[str, str], missed: str) -> None:
    """Expect one that exits because a setting is not there, and names it."""
    ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=_START_SECONDS)
    if ran.returncode != 2 or missed not in ran.stderr:
        raise ImageError(f"expected {command[-1]} to miss {missed}, found {ran.returncode}: {ran.stderr[-500:]}")


def _unprivileged(image: Image) -> tuple[list[str], str]:
    """What to put before a command so that it cannot write the image's tree, and what that is."""
    if os.getuid() != 0:
        return [], "the user who checks"
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise ImageError("expected setpriv (Debian's util-linux) where root checks, found none")
    user, _, group = image.user.partition(":")
    without = [setpriv, "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
    other = [*without, f"--reuid={user}", f"--regid={group or user}", "--clear-groups"]
    python = [str(image.root / "venv/bin/python"), "-c", "import sys; print(sys.version)"]
    # The interpreter, which an image brings with it, may be in a folder that only root may enter, or find there the
    # library of another one.
    if subprocess.run([*other, *python], capture_output=True, text=True).stdout.strip() == sys.version:
        return other, f"user {image.user}"
    return without, "root without any capability"


def _until_healthy(image: Image, env: Mapping[str, str], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = monotonic() + _START_SECONDS
    while not _is_healthy(image, env):
        if process.poll() is not None or monotonic() > deadline:
            raise ImageError(f"did not become healthy: {log.read_text()[-2000:]}")
        sleep(0.5)


def _is_healthy(image: Image, env: Mapping[str, str]) -> bool:
    return subprocess.run(_found(image, image.healthcheck), env=env, capture_output=True).returncode == 0


def _found(image: Image, command: Sequence[str]) -> list[str]:
    """A command with its program as the image's PATH has it."""
    program = shutil.which(command[0], path=image.env["PATH"])
    if program is None or not Path(program).is_relative_to(image.root):
        raise ImageError(f"expected {command[0]} in the image's PATH, found {program}")
    return [program, *command[1:]]


def _ask(port: int, path: str, body: Any = None) -> tuple[int, bytes]:
    """Status and content of an answer, asked with nothing but the standard library."""
    content = b"" if body is None else json.dumps(body).encode()
    head = f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(head.encode() + content)
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    return int(answer.split(b" ", 2)[1]), answer.partition(b"\r\n\r\n")[2]


def _resident_mb(pid: int) -> int | None:
    """Most memory that a process has had at once; None where the system does not tell."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return round(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / _MB)


def _expect_this_python(base: str) -> None:
    wanted = re.match(r"(?:.*/)?python:(\d+\.\d+)", base)
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if wanted is None or wanted[1] != here:
        raise DockerfileError(f"the image begins with {base}, expected Python {here}, which carries out its steps")


def _python(folder: Path) -> Path:
    """A `python` like the base image's, in a folder of nothing else."""
    link = folder / "base" / "python"
    if not link.is_symlink():
        link.parent.mkdir()
        link.symlink_to(os.path.realpath(sys.executable))
    return link


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _installed(site_packages: Path) -> list[Distribution]:
    return list(distributions(path=[str(site_packages)]))


def _files(folder: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of change of every file in a folder."""
    found = {}
    for path, _, names in os.walk(folder):
        for name in names:
            file = Path(path, name)
            stat = file.lstat()
            found[file] = (stat.st_size, stat.st_mtime_ns)
    return found


def _set_writable(folder: Path, writable: bool) -> None:
    """Allow or forbid that anything comes into a folder, or goes; files in it belong to whoever built it."""
    for path, _, _ in os.walk(folder):
        os.chmod(path, 0o755 if writable else 0o555)


def _mb(size: int) -> float:
    return round(size / _MB, 1)


@contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    if kept is not None:
        kept.mkdir(parents=True)
        yield kept.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="qd-image-") as temporary:
        # Whoever the image runs as must reach it.
        Path(temporary).chmod(0o755)
        yield Path(temporary)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found to a file")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="build in a new folder, which is kept")
    options = parser.parse_args(argv)
    try:
        with _folder(options.keep) as folder:
            found = check(build(folder))
    except (DockerfileError, ImageError) as exc:
        sys.stderr.write(f"image: {exc}\n")
        return 1
    written = json.dumps(found, indent=2) + "\n"
    if options.json:
        options.json.write_text(written, encoding="utf-8")
    sys.stdout.write(written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
