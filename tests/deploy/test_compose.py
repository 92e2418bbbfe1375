"""The compose file: valid, hardened, and of one mind with the image, the settings and what Prometheus scrapes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.dockerfile import parse
from service.cli import _parser
from service.settings import Settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("service", "worker")
SETTINGS = {f"QD_{name.upper()}" for name in Settings.model_fields}


def valid(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    return subprocess.run(command, capture_output=True, text=True)


def test_file_is_valid_by_the_compose_specification() -> None:
    found = valid(DEPLOY / "compose.yaml")
    assert found.returncode == 0, found.stdout


def test_an_unknown_field_would_be_found(tmp_path: Path) -> None:
    wrong = tmp_path / "compose.yaml"
    wrong.write_text((DEPLOY / "compose.yaml").read_text().replace("cap_drop:", "cap_dropp:"))
    assert valid(wrong).returncode == 1


def test_it_runs_what_operating_needs() -> None:
    assert SERVICES.keys() == {"service", "worker", "redis", "prometheus", "grafana"}


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_is_confined(name: str) -> None:
    found = SERVICES[name]
    assert found["read_only"] is True
    assert found["cap_drop"] == ["ALL"]
    assert found["security_opt"] == ["no-new-privileges:true"]
    assert re.fullmatch(r"[1-9]\d*:\d+", found["user"])
    limits = found["deploy"]["resources"]["limits"]
    assert limits.keys() == {"cpus", "memory", "pids"}
    assert found["healthcheck"]["test"][0] == "CMD"
    assert "privileged" not in found


@pytest.mark.parametrize("name", SERVICES)
def test_every_image_is_of_a_fixed_version(name: str) -> None:
    assert re.fullmatch(r"[a-z/-]+:v?\d+\.\d+\.\d+(-alpine)?", SERVICES[name]["image"])


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_bound_to_loopback_alone(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


def test_redis_is_reached_by_nothing_but_the_other_containers() -> None:
    assert "ports" not in SERVICES["redis"]
    assert SERVICES["redis"]["networks"] == ["inside"]
    assert COMPOSE["networks"]["inside"] == {"internal": True}


def test_redis_keeps_what_it_is_given() -> None:
    command = SERVICES["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"
    assert "redis:/data" in SERVICES["redis"]["volumes"]


@pytest.mark.parametrize("name", OURS)
def test_containers_wait_until_redis_answers(name: str) -> None:
    assert SERVICES[name]["depends_on"] == {"redis": {"condition": "service_healthy"}}


@pytest.mark.parametrize("name", OURS)
def test_every_variable_is_a_setting_and_its_value_is_taken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment: Mapping[str, Any] = SERVICES[name]["environment"]
    assert {variable for variable in environment if variable.startswith("QD_")} == environment.keys()
    assert environment.keys() <= SETTINGS
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    Settings()


def test_service_and_workers_agree_on_whose_jobs_they_are() -> None:
    service, worker = (SERVICES[name]["environment"] for name in OURS)
    shared = {variable for variable in SETTINGS if variable.startswith("QD_QUAFU_") and "TOKEN" not in variable}
    for variable in (shared | {"QD_REDIS_URL"}) & (service.keys() | worker.keys()):
        assert service[variable] == worker[variable]


def test_only_workers_hold_the_token_and_from_a_file() -> None:
    assert [name for name, found in SERVICES.items() if "secrets" in found] == ["worker"]
    assert SERVICES["worker"]["environment"]["QD_QUAFU_TOKEN_FILE"] == "/run/secrets/quafu_token"
    assert not any("QD_QUAFU_TOKEN" in found.get("environment", {}) for found in SERVICES.values())
    ignored = (DEPLOY / ".gitignore").read_text().split()
    assert Path(COMPOSE["secrets"]["quafu_token"]["file"]).name in ignored


def test_ports_agree_with_the_image_and_with_prometheus() -> None:
    service, worker = (SERVICES[name]["environment"] for name in OURS)
    listened = {"service": int(service["QD_PORT"]), "worker": int(worker["QD_WORKER_METRICS_PORT"])}
    assert [port.rpartition(":")[2] for port in SERVICES["service"]["ports"]] == [service["QD_PORT"]]
    scraped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    found = {name: each["port"] for job in scraped for each in job.get("dns_sd_configs", []) for name in each["names"]}
    assert found == listened
    exposed = next(each for each in parse((ROOT / "Dockerfile").read_text())[-1].instructions if each.name == "EXPOSE")
    assert sorted(int(port) for port in exposed.rest.split()) == sorted(listened.values())


def test_image_has_the_settings_that_a_container_needs() -> None:
    last = parse((ROOT / "Dockerfile").read_text())[-1]
    variables = {name: value for each in last.instructions if each.name == "ENV" for name, value in each.pairs()}
    own = {name for name in variables if name.startswith("QD_")}
    assert own == {"QD_HOST", "QD_PORT", "QD_STATE_DIR", "QD_WORKER_METRICS_HOST", "QD_WORKER_METRICS_PORT"}
    assert own <= SETTINGS
    assert SERVICES["service"]["user"] == next(each.rest for each in last.instructions if each.name == "USER")


def test_a_container_is_given_the_time_that_requests_in_flight_may_take() -> None:
    grace = int(SERVICES["service"]["environment"]["QD_SHUTDOWN_GRACE_SECONDS"])
    assert int(SERVICES["service"]["stop_grace_period"].removesuffix("s")) > grace


def test_threads_fit_the_cpu_limit() -> None:
    assert (
        SERVICES["service"]["environment"]["QD_THREADS"] == SERVICES["service"]["deploy"]["resources"]["limits"]["cpus"]
    )


def test_every_file_that_is_mounted_is_there_and_every_dashboard_is_mounted() -> None:
    mounts = [mount.split(":") for found in SERVICES.values() for mount in found.get("volumes", [])]
    files = [(source, options) for source, _, *options in mounts if source.startswith(".")]
    assert files
    for source, options in files:
        assert (DEPLOY / source).exists(), source
        assert options == ["ro"]
    assert {source for source, _, *_ in mounts if not source.startswith(".")} == COMPOSE["volumes"].keys()
    mounted = {Path(source).name for source, _ in files}
    assert {path.name for path in (DEPLOY / "grafana").glob("*.json")} <= mounted


def test_grafana_finds_its_datasource_and_dashboards() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    [source] = yaml.safe_load(next((provisioning / "datasources").iterdir()).read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    [provider] = yaml.safe_load(next((provisioning / "dashboards").iterdir()).read_text())["providers"]
    targets = {Path(mount.split(":")[1]) for mount in SERVICES["grafana"]["volumes"]}
    dashboards = {target.name for target in targets if str(target.parent) == provider["options"]["path"]}
    assert dashboards == {path.name for path in (DEPLOY / "grafana").glob("*.json")}
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert Path(home) in targets
    uids = [json.loads(path.read_text())["uid"] for path in (DEPLOY / "grafana").glob("*.json")]
    assert len(set(uids)) == len(uids)


def test_nobody_can_log_in_to_grafana() -> None:
    environment = SERVICES["grafana"]["environment"]
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert environment["GF_AUTH_BASIC_ENABLED"] == "false"
    assert environment["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"


@pytest.mark.parametrize(
    "document", ["deploy/compose.yaml", "docs/deploy.md", "deploy/helm/qd-students/templates/NOTES.txt"]
)
def test_commands_that_documents_give_are_ones_that_qdserve_takes(document: str) -> None:
    text = (ROOT / document).read_text().replace("\\\n", " ")
    found = re.findall(
        r"(?:qdserve|run --rm (?:--no-deps )?(?:service|worker)) +((?:keys|check|worker|serve)\b[^\n`#]*)", text
    )
    assert found
    for command in found:
        _parser().parse_args(command.split())
