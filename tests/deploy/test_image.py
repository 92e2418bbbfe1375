"""The Dockerfile's own steps, carried out in a clean folder, give an image that runs as it says."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from tempfile import mkdtemp
from textwrap import dedent
from typing import Any

import pytest

from deploy import image as image_module
from deploy.dockerfile import DockerfileError, Ignored, parse
from deploy.image import UNWANTED, Image, ImageError, build, check, main, missing, sizes

FROM = f"FROM python:{sys.version_info.major}.{sys.version_info.minor}-slim"
like_the_image = pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="needs Python 3.11, which the image begins with"
)


@pytest.fixture(scope="module")
def built() -> Iterator[Image]:
    # Not pytest's folder, which only its owner may enter.
    folder = Path(mkdtemp(prefix="qd-image-"))
    folder.chmod(0o755)
    yield build(folder)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def found(built: Image) -> dict[str, Any]:
    return check(built)


@like_the_image
def test_the_image_starts_answers_and_ends_with_nothing_but_state_written(found: dict[str, Any]) -> None:
    assert found["answered"] == ["/", "/classify/emotion", "/docs", "/metrics", "/readyz", "/tasks"]
    assert found["added_mb"] < 400
    assert [each["package"] for each in found["largest"]][:2] == ["onnxruntime", "numpy"]


@like_the_image
def test_the_image_says_how_it_is_run(built: Image) -> None:
    assert (built.entrypoint, built.command, built.user) == (["qdserve"], ["serve"], "10001:10001")
    assert built.stop_signal is signal.SIGTERM
    assert built.env["QD_HOST"] == "0.0.0.0"
    assert {label.rpartition(".")[2] for label in built.labels} == {"title", "description", "version", "revision"}


@like_the_image
def test_nothing_of_the_source_tree_but_the_packages_is_in_it(built: Image) -> None:
    assert {path.name for path in built.root.iterdir()} == {"venv", "state", "tmp"}
    for package in ("models", "service"):
        assert (built.site_packages / package).is_dir()
    for package in ("training", "tests", "benchmarks", "deploy", "pip"):
        assert not (built.site_packages / package).exists()


@like_the_image
def test_the_committed_report_is_of_such_an_image(found: dict[str, Any]) -> None:
    kept = json.loads((image_module.ROOT / "docs" / "image.json").read_text())
    assert kept.keys() == found.keys()
    assert {each["package"] for each in kept["largest"][:3]} == {each["package"] for each in found["largest"][:3]}
    assert kept["added_mb"] == pytest.approx(found["added_mb"], rel=0.1)


def test_the_documents_give_the_size_that_was_found() -> None:
    kept = json.loads((image_module.ROOT / "docs" / "image.json").read_text())
    assert f" {kept['added_mb']:.0f} MB on top of" in (image_module.ROOT / "docs" / "deploy.md").read_text()


@like_the_image
def test_an_unwanted_package_is_found(built: Image) -> None:
    assert "torch" in UNWANTED
    metadata = built.site_packages / "torch-2.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.0\n")
    try:
        with pytest.raises(ImageError, match="none of them in the image, found torch"):
            check(built)
    finally:
        shutil.rmtree(metadata)


@like_the_image
def test_a_file_that_was_not_packaged_is_found(built: Image) -> None:
    [path] = (built.site_packages / "models" / "bundles" / "emotion").glob("manifest.json")
    kept = path.read_bytes()
    path.unlink()
    try:
        assert missing(built) == ["models/bundles/emotion/manifest.json"]
        with pytest.raises(ImageError, match=r"not installed: models/bundles/emotion/manifest\.json"):
            check(built)
    finally:
        path.write_bytes(kept)


@like_the_image
@pytest.mark.parametrize("user", ["0", "root", "0:0", "qd", ""])
def test_a_user_that_kubernetes_cannot_tell_from_root_is_refused(built: Image, user: str) -> None:
    with pytest.raises(ImageError, match="expected USER to be a number other than 0"):
        check(replace(built, user=user))


@like_the_image
def test_a_service_that_writes_to_its_image_is_found(built: Image) -> None:
    # As it does where byte code is written, and root may write everywhere.
    script = built.root / "venv" / "bin" / "writes"
    where = built.root / "venv" / "written"
    script.write_text(f'#!/bin/sh\n: > {where}\nexec qdserve "$@"\n')
    script.chmod(0o755)
    try:
        with pytest.raises(ImageError, match=r"did not become healthy|written to the image while it ran: venv/written"):
            check(replace(built, entrypoint=["writes"]))
    finally:
        script.unlink()
        where.unlink(missing_ok=True)


@like_the_image
def test_sizes_add_up_to_what_is_installed(built: Image) -> None:
    files = [path for path in built.site_packages.rglob("*") if path.is_file() and not path.is_symlink()]
    found = sizes(built.site_packages)
    assert sum(found.values()) == sum(path.stat().st_size for path in files)
    # Byte code of extension packages and files that nobody lists are few.
    assert found[("other", "")] < 0.01 * sum(found.values())


def context(folder: Path, dockerfile: str, ignore: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "Dockerfile").write_text(dedent(dockerfile))
    (folder / ".dockerignore").write_text(ignore)
    return folder


def test_stages_are_built_at_one_place_so_that_paths_in_them_stay_right(tmp_path: Path) -> None:
    source = context(
        tmp_path / "context",
        f"""\
        ARG BASE={FROM.removeprefix("FROM ")}
        FROM ${{BASE}} AS first
        WORKDIR /work
        COPY a b/ ./
        RUN echo /made/there > note \\
            # a comment in between
            && mkdir /made
        FROM ${{BASE}}
        ARG WHO=me
        COPY --from=first --chown=1:1 /work /copied
        ENV PATH=/copied:$PATH WHO=${{WHO}}
        """,
    )
    (source / "a").write_text("a")
    (source / "b").mkdir()
    (source / "b" / "c").write_text("c")
    image = build(tmp_path / "out", source)
    assert sorted(path.name for path in (image.root / "copied").iterdir()) == ["a", "c", "note"]
    assert (image.root / "copied" / "note").read_text() == f"{image.root}/made/there\n"
    assert not (image.root / "made").exists()
    assert image.env["PATH"].startswith(f"{image.root}/copied:")
    assert image.env["WHO"] == "me"


def test_files_that_are_ignored_are_not_copied(tmp_path: Path) -> None:
    source = context(tmp_path / "context", f"{FROM}\nCOPY kept /kept\n", "*\n!kept\n**/*.pyc\n")
    (source / "kept").mkdir()
    for name in ("a.py", "a.pyc"):
        (source / "kept" / name).write_text("")
    image = build(tmp_path / "out", source)
    assert [path.name for path in (image.root / "kept").iterdir()] == ["a.py"]
    context(tmp_path / "context", f"{FROM}\nCOPY kept /kept\n", "*\n")
    with pytest.raises(DockerfileError, match="line 2, COPY: the build context has no kept"):
        build(tmp_path / "other", source)


@pytest.mark.parametrize(
    ("path", "ignored"),
    [
        ("models/a.py", False),
        ("models/deep/a.json", False),
        ("models/__pycache__/a.pyc", True),
        ("models/deep/__pycache__/a.pyc", True),
        ("training/a.py", True),
        ("deploy/quafu-token", True),
        (".git/config", True),
        ("requirements/serve.txt", False),
        ("requirements/dev.txt", True),
    ],
)
def test_the_build_context_holds_what_is_copied_and_no_secret(path: str, ignored: bool) -> None:
    patterns = Ignored((image_module.ROOT / ".dockerignore").read_text())
    assert patterns(PurePosixPath(path)) is ignored


@pytest.mark.parametrize(
    ("dockerfile", "said"),
    [
        ("", "has no FROM"),
        ("RUN true", "line 1, RUN: expected FROM before it"),
        (f"{FROM}\nADD a b", "line 2, ADD: expected one of ARG, "),
        (f"{FROM}\nCOPY --link=true a b", "line 2, COPY: --link is not understood"),
        (f"{FROM}\nRUN exit 3", "line 2 ended with 3"),
        (f"{FROM}\nCMD qdserve serve", "line 2, CMD: expected the exec form"),
        (f"{FROM}\nENV A", "line 2, ENV: expected NAME=value"),
        (f"{FROM}\nENV A=$B", r"\$B has no value"),
        ("FROM ${BASE}", r"\$BASE has no value"),
        ("FROM python:2.7-slim", "begins with python:2.7-slim, expected Python 3"),
        ("FROM debian:12", "begins with debian:12, expected Python 3"),
    ],
)
def test_what_is_not_understood_or_fails_is_an_error(tmp_path: Path, dockerfile: str, said: str) -> None:
    with pytest.raises(DockerfileError, match=said):
        build(tmp_path / "out", context(tmp_path / "context", dockerfile))


def test_base_is_an_argument_so_that_a_digest_can_be_given() -> None:
    stages = parse((image_module.ROOT / "Dockerfile").read_text())
    assert [stage.base for stage in stages] == ["python:3.11-slim"] * 2
    assert "FROM ${PYTHON}" in (image_module.ROOT / "Dockerfile").read_text()


def test_command_says_what_is_wrong_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(folder: Path) -> Image:
        raise DockerfileError("line 2 ended with 3: no")

    monkeypatch.setattr(image_module, "build", fails)
    assert main(["--keep", str(tmp_path / "kept")]) == 1
    assert capsys.readouterr().err == "image: line 2 ended with 3: no\n"
