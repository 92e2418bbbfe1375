"""The real command: `qdserve serve` in a process of its own, over real HTTP."""

from __future__ import annotations

import json
import shutil
import signal
import socket
from pathlib import Path

import httpx
import pytest
from processes import refused, serving, until

from service.errors import AddressError
from service.listening import bind
from service.serve import _listen
from service.settings import Settings


def address(url: str) -> tuple[str, int]:
    parsed = httpx.URL(url)
    assert parsed.port is not None
    return parsed.host, parsed.port


def everything(connection: socket.socket) -> bytes:
    received = b""
    while chunk := connection.recv(65536):
        received += chunk
    return received


def refuses(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) != 0


def test_request_that_is_running_at_sigterm_is_answered_and_the_exit_code_is_0(
    bundles_dir: Path, tmp_path: Path
) -> None:
    with serving(bundles_dir, tmp_path) as (process, url):
        answer = httpx.post(f"{url}/classify/emotion", json={"inputs": "what a lovely day"})
        assert answer.status_code == 200
        host, port = address(url)
        body = json.dumps({"inputs": "what a lovely day"}).encode()
        head = "POST /classify/emotion HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        with (
            socket.create_connection((host, port), timeout=30) as connection,
            socket.create_connection((host, port), timeout=30) as probe,
        ):
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:5])
            # A request for readiness that will be complete only after the signal.
            probe.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n")
            # The reader of the metrics is itself in flight.
            until(lambda: "qd_requests_in_flight 3.0" in httpx.get(f"{url}/metrics").text)
            process.popen.send_signal(signal.SIGTERM)
            until(lambda: refuses(host, port))
            assert process.runs
            probe.sendall(b"x")
            assert b'"shutdown": "draining"' in everything(probe)
            connection.sendall(body[5:])
            received = everything(connection)
        status, _, rest = received.partition(b"\r\n")
        assert status == b"HTTP/1.1 200 OK"
        drained = json.loads(rest.partition(b"\r\n\r\n")[2])
        (result,), (expected,) = drained["results"], answer.json()["results"]
        assert result["label"] == expected["label"]
        assert result["score"] == pytest.approx(expected["score"], abs=1e-5)
        assert process.popen.wait(30) == 0
    assert not (tmp_path / "serve.json").exists()
    answered = [line for line in process.lines("request") if line["route"] == "/classify/{task}"]
    assert [line["status"] for line in answered] == [200, 200]


def test_too_large_body_is_answered_to_a_client_that_is_still_sending(bundles_dir: Path, tmp_path: Path) -> None:
    with serving(bundles_dir, tmp_path, QD_MAX_BODY_BYTES="1000000") as (process, url):
        head = "POST /classify/emotion HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        for n_bytes in (1_500_000, 20_000_000):
            with socket.create_connection(address(url), timeout=30) as connection:
                # Unlike httpx, this client does not look for an answer before it has sent everything.
                connection.sendall(f"{head}Content-Length: {n_bytes}\r\n\r\n".encode() + b"a" * n_bytes)
                assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")
        process.popen.send_signal(signal.SIGINT)
        assert process.popen.wait(30) == 0


def test_wrong_setting_ends_with_one_line(bundles_dir: Path, tmp_path: Path) -> None:
    assert refused(bundles_dir, tmp_path, QD_PORT="http").startswith("qdserve: QD_PORT is 'http': ")
    assert refused(bundles_dir, tmp_path, "--port", "70000").startswith("qdserve: QD_PORT is '70000': ")
    assert "baihua is not configured" in refused(bundles_dir, tmp_path, QD_DEFAULT_BACKEND="baihua")


def test_altered_bundle_ends_with_one_line_that_names_the_file(bundles_dir: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(bundles_dir, tmp_path / "own"))
    golden = own / "bundle-1" / "golden.json"
    golden.write_bytes(golden.read_bytes().replace(b"0.", b"1.", 1))
    assert refused(own, tmp_path).startswith(f"qdserve: {golden}: expected sha256")


def test_port_in_use_ends_with_one_line(bundles_dir: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refused(bundles_dir, tmp_path, "--port", str(port))
    assert line == f"qdserve: cannot listen on 127.0.0.1 port {port}: Address already in use"


def test_second_of_two_services_that_start_together_is_refused() -> None:
    # Both bind, as SO_REUSEADDR allows while neither listens; the first to listen has the port.
    with socket.socket() as first:
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        first.bind(("127.0.0.1", 0))
        settings = Settings(host="127.0.0.1", port=first.getsockname()[1])
        with bind(settings.host, settings.port) as second:
            first.listen()
            with pytest.raises(
                AddressError, match=f"^cannot listen on 127.0.0.1 port {settings.port}: Address already"
            ):
                _listen(second, settings)


def test_state_folder_that_cannot_be_written_ends_with_one_line(bundles_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert refused(bundles_dir, tmp_path / "file").startswith("qdserve: QD_STATE_DIR: cannot write ")


def test_answers_are_sent_without_waiting_for_acknowledgements() -> None:
    # asyncio switches TCP_NODELAY on for connections of a listener that names its protocol, and for no others.
    with bind("127.0.0.1", 0) as listener:
        listener.listen()
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
            assert accepted.proto == socket.IPPROTO_TCP
