"""The chart: what it renders is what Kubernetes takes, hardened, and fits what the service listens on."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from helm_python import Chart, HelmError, lint
from needs import needs_promtool

from service.settings import Settings

CHART = Path(__file__).parents[2] / "deploy" / "helm" / "qd-students"
# kubernetes-validate has no schema of these.
SCHEMAS = {path.stem: json.loads(path.read_text()) for path in (Path(__file__).parent / "schemas").glob("*.json")}
KUBERNETES = ("1.25", "1.31", "1.37")
SETTINGS = {f"QD_{name.upper()}" for name in Settings.model_fields}

PLAIN: dict[str, Any] = {}
FULL: dict[str, Any] = {
    "image": {"repository": "registry.example.org/qd", "digest": f"sha256:{'0' * 64}", "pullSecrets": ["registry"]},
    "config": {"QD_OTLP_ENDPOINT": "http://collector:4318", "QD_SHOTS": 20480, "QD_TRACE_RATIO": 0.1},
    "allowAnonymous": True,
    "service": {
        "autoscaling": {"enabled": True},
        "bundles": {"persistentVolumeClaim": {"claimName": "qd-bundles"}},
        "podAnnotations": {"a": "b"},
        "nodeSelector": {"kubernetes.io/arch": "amd64"},
        "tolerations": [{"key": "dedicated", "operator": "Exists"}],
    },
    "worker": {"autoscaling": {"enabled": True}},
    "ingress": {"enabled": True, "className": "nginx", "tlsSecret": "qd-tls"},
    "networkPolicy": {
        "ingressPeers": [{"ipBlock": {"cidr": "203.0.113.0/24"}}],
        "redisPeers": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
    },
    "monitoring": {"monitors": True, "rules": True, "dashboards": True, "labels": {"release": "prometheus"}},
}
BARE: dict[str, Any] = {
    "worker": {"enabled": False},
    "podDisruptionBudget": {"enabled": False},
    "networkPolicy": {"enabled": False},
}
VALUES = {"plain": PLAIN, "full": FULL, "bare": BARE}


@pytest.fixture(scope="module")
def chart() -> Iterator[Chart]:
    with Chart.load(CHART) as loaded:
        yield loaded


def rendered(chart: Chart, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every object, as the cluster gets it."""
    files: dict[str, str] = chart.render(dict(values), name="demo", namespace="quantum")
    texts = [text for path, text in files.items() if not path.endswith("NOTES.txt")]
    return [each for text in texts for each in yaml.safe_load_all(text) if each]


def of(objects: list[dict[str, Any]], kind: str, component: str | None = None) -> dict[str, Any]:
    """The one object of a kind, or of those of a component."""
    label = "app.kubernetes.io/component"
    found = [
        each
        for each in objects
        if each["kind"] == kind and component in (None, each["metadata"].get("labels", {}).get(label))
    ]
    assert len(found) == 1, [each["metadata"]["name"] for each in found]
    return found[0]


def pod(objects: list[dict[str, Any]], component: str) -> dict[str, Any]:
    spec: dict[str, Any] = of(objects, "Deployment", component)["spec"]["template"]["spec"]
    return spec


def settings_of(container: Mapping[str, Any]) -> dict[str, Any]:
    return {each["name"]: each.get("value") for each in container["env"]}


def test_chart_passes_helms_own_lint() -> None:
    for values in VALUES.values():
        found = lint(CHART, values=values, strict=True)
        assert found["errors"] == []
        assert [each["error"] for each in found["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("name", VALUES)
def test_every_object_is_one_that_kubernetes_knows(chart: Chart, name: str) -> None:
    objects = rendered(chart, VALUES[name])
    assert objects
    for each in objects:
        if schema := SCHEMAS.get(each["kind"].lower()):
            jsonschema.validate(each, schema)
            continue
        for version in KUBERNETES:
            kubernetes_validate.validate(each, version, strict=True)


def test_the_full_chart_has_every_kind_that_has_a_schema_here(chart: Chart) -> None:
    assert SCHEMAS.keys() <= {each["kind"].lower() for each in rendered(chart, FULL)}


@pytest.mark.parametrize("kind", ["ServiceMonitor", "PodMonitor", "PrometheusRule", "ScaledObject"])
def test_schemas_here_refuse_a_field_they_do_not_know(chart: Chart, kind: str) -> None:
    each = of(rendered(chart, FULL), kind)
    each["spec"]["bogus"] = 1
    with pytest.raises(jsonschema.ValidationError, match="bogus"):
        jsonschema.validate(each, SCHEMAS[kind.lower()])


@pytest.mark.parametrize("name", VALUES)
def test_names_are_unique_and_every_reference_between_objects_resolves(chart: Chart, name: str) -> None:
    objects = rendered(chart, VALUES[name])
    names = [(each["kind"], each["metadata"]["name"]) for each in objects]
    assert len(set(names)) == len(names)
    for each in objects:
        spec = each.get("spec", {})
        if target := spec.get("scaleTargetRef"):
            assert (target["kind"], target["name"]) in names
        if each["kind"] == "Deployment":
            template = spec["template"]
            assert spec["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
            assert ("ServiceAccount", template["spec"]["serviceAccountName"]) in names
            volumes = {volume["name"] for volume in template["spec"]["volumes"]}
            for container in template["spec"]["containers"]:
                assert {mount["name"] for mount in container["volumeMounts"]} == volumes
                assert ("ConfigMap", container["envFrom"][0]["configMapRef"]["name"]) in names
    for path in (rule for each in objects if each["kind"] == "Ingress" for rule in each["spec"]["rules"]):
        assert ("Service", path["http"]["paths"][0]["backend"]["service"]["name"]) in names


@pytest.mark.parametrize("name", VALUES)
def test_every_pod_is_confined(chart: Chart, name: str) -> None:
    deployments = [each for each in rendered(chart, VALUES[name]) if each["kind"] == "Deployment"]
    assert len(deployments) == (1 if name == "bare" else 2)
    for deployment in deployments:
        spec = deployment["spec"]["template"]["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] >= 10_000
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "runAsNonRoot": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"].keys() == {"cpu", "memory"}
            assert {"startupProbe", "livenessProbe", "readinessProbe"} <= container.keys()
            writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
            assert writable == {"/state", "/tmp"}
            assert "latest" not in container["image"]
            assert container["image"].partition("/")[2] or ":" in container["image"]


def test_image_is_pinned_by_digest_where_one_is_given(chart: Chart) -> None:
    [container] = pod(rendered(chart, FULL), "service")["containers"]
    assert container["image"] == f"registry.example.org/qd@sha256:{'0' * 64}"
    [container] = pod(rendered(chart, PLAIN), "service")["containers"]
    assert container["image"] == f"qd-students:{chart.metadata['appVersion']}"


def test_liveness_does_not_ask_for_what_needs_redis(chart: Chart) -> None:
    [service] = pod(rendered(chart, PLAIN), "service")["containers"]
    assert service["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert service["startupProbe"]["httpGet"]["path"] == "/livez"
    assert service["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_a_pod_has_the_time_that_its_requests_may_take(chart: Chart) -> None:
    for grace, pause in ((30, 5), (600, 0)):
        values = {"service": {"shutdownGraceSeconds": grace, "preStopSeconds": pause}}
        spec = pod(rendered(chart, values), "service")
        assert settings_of(spec["containers"][0])["QD_SHUTDOWN_GRACE_SECONDS"] == str(grace)
        assert spec["terminationGracePeriodSeconds"] > grace + pause


def test_threads_fit_the_cpu_limit(chart: Chart) -> None:
    [container] = pod(rendered(chart, PLAIN), "service")["containers"]
    assert settings_of(container)["QD_THREADS"] == container["resources"]["limits"]["cpu"]


@pytest.mark.parametrize("name", VALUES)
def test_every_variable_is_a_setting(chart: Chart, name: str) -> None:
    objects = rendered(chart, VALUES[name])
    set_by_config = of(objects, "ConfigMap", "config")["data"]
    assert set_by_config.keys() <= SETTINGS
    for each in objects:
        if each["kind"] == "Deployment":
            [container] = each["spec"]["template"]["spec"]["containers"]
            own = settings_of(container).keys()
            assert own <= SETTINGS
            assert not own & set_by_config.keys()


def test_config_is_taken_as_the_service_reads_it(chart: Chart, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = rendered(chart, FULL)
    values = of(objects, "ConfigMap", "config")["data"] | {
        name: value for name, value in settings_of(pod(objects, "service")["containers"][0]).items() if value
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert (settings.shots, settings.trace_ratio, settings.otlp_endpoint) == (20480, 0.1, "http://collector:4318")
    assert (settings.host, settings.port, settings.allow_anonymous, settings.embedded) == ("0.0.0.0", 8000, True, False)


def test_ports_are_those_that_are_listened_on(chart: Chart) -> None:
    objects = rendered(chart, FULL)
    [service] = pod(objects, "service")["containers"]
    [worker] = pod(objects, "worker")["containers"]
    assert [port["containerPort"] for port in service["ports"]] == [int(settings_of(service)["QD_PORT"])]
    assert [port["containerPort"] for port in worker["ports"]] == [int(settings_of(worker)["QD_WORKER_METRICS_PORT"])]
    assert of(objects, "Service")["spec"]["ports"][0]["targetPort"] == service["ports"][0]["name"]
    assert (
        of(objects, "ServiceMonitor")["spec"]["endpoints"][0]["port"]
        == of(objects, "Service")["spec"]["ports"][0]["name"]
    )
    assert of(objects, "PodMonitor")["spec"]["podMetricsEndpoints"][0]["port"] == worker["ports"][0]["name"]
    for component, container in (("service", service), ("worker", worker)):
        for rule in of(objects, "NetworkPolicy", component)["spec"]["ingress"]:
            assert [port["port"] for port in rule["ports"]] == [container["ports"][0]["name"]]


def test_bundles_are_served_from_a_volume_where_one_is_given(chart: Chart) -> None:
    spec = pod(rendered(chart, FULL), "service")
    where = settings_of(spec["containers"][0])["QD_BUNDLES_DIR"]
    assert {"name": "bundles", "mountPath": where, "readOnly": True} in spec["containers"][0]["volumeMounts"]
    assert "QD_BUNDLES_DIR" not in settings_of(pod(rendered(chart, PLAIN), "service")["containers"][0])


def test_only_workers_hold_the_token_and_no_secret_is_in_the_chart(chart: Chart) -> None:
    objects = rendered(chart, FULL)
    assert "qd-students-quafu" not in json.dumps(pod(objects, "service"))
    assert "qd-students-quafu" in json.dumps(pod(objects, "worker"))
    assert not [each for each in objects if each["kind"] == "Secret"]


def test_each_deployment_has_one_autoscaler_and_then_no_count_of_its_own(chart: Chart) -> None:
    objects = rendered(chart, FULL)
    scaled = [each["spec"]["scaleTargetRef"]["name"] for each in objects if "scaleTargetRef" in each.get("spec", {})]
    assert sorted(scaled) == ["demo-qd-students-service", "demo-qd-students-worker"]
    deployments = [each for each in objects if each["kind"] == "Deployment"]
    assert all("replicas" not in each["spec"] for each in deployments)
    plain = rendered(chart, PLAIN)
    assert not [each for each in plain if "scaleTargetRef" in each.get("spec", {})]
    assert [each["spec"]["replicas"] for each in plain if each["kind"] == "Deployment"] == [2, 2]


def test_latency_target_is_written_in_the_unit_of_kubernetes(chart: Chart) -> None:
    for seconds, written in ((0.25, "250m"), (1, "1000m"), (0.0015, "2m")):
        values = {"service": {"autoscaling": {"enabled": True, "targetSeconds": seconds}}}
        [metric] = of(rendered(chart, values), "HorizontalPodAutoscaler")["spec"]["metrics"]
        assert metric["pods"]["target"] == {"type": "AverageValue", "averageValue": written}


def adapter_rule() -> dict[str, Any]:
    """The rule for prometheus-adapter that the documents give."""
    text = (CHART.parents[2] / "docs" / "deploy.md").read_text()
    match = re.search(r"<!-- adapter -->\n```yaml\n(.*?)```", text, re.DOTALL)
    assert match
    [rule] = yaml.safe_load(match[1])["rules"]["custom"]
    found: dict[str, Any] = rule
    return found


def test_latency_is_scaled_by_the_metric_that_the_documents_define(chart: Chart) -> None:
    [metric] = of(rendered(chart, FULL), "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == adapter_rule()["name"]["as"]


@needs_promtool
def test_latency_of_each_pod_is_its_95th_percentile_and_0_without_requests(tmp_path: Path) -> None:
    query = adapter_rule()["metricsQuery"].replace("<<.GroupBy>>", "pod")
    query = query.replace("<<.LabelMatchers>>", 'namespace="quantum",pod=~"busy|idle|new"')
    labels = 'namespace="quantum",pod="%s",backend="%s",outcome="ok"'

    def of_pod(pod: str, backend: str, per_minute: int) -> list[dict[str, str]]:
        # Nine in ten answers take at most 0.1 s, the others at most 0.2 s.
        return [
            {
                "series": f'qd_request_seconds_bucket{{le="{le}",{labels % (pod, backend)}}}',
                "values": f"0+{per_minute * share // 10}x10",
            }
            for le, share in (("0.1", 9), ("0.2", 10), ("+Inf", 10))
        ]

    tests = {
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    *of_pod("busy", "simulator", 600),
                    *of_pod("idle", "simulator", 0),
                    *of_pod("idle", "baihua", 600),
                    *(
                        {"series": f'up{{namespace="quantum",pod="{pod}"}}', "values": "1x10"}
                        for pod in ("busy", "idle", "new")
                    ),
                ],
                "promql_expr_test": [
                    {
                        "expr": f"sort(round({query}, 0.001))",
                        "eval_time": "10m",
                        "exp_samples": [
                            {"labels": '{pod="idle"}', "value": 0},
                            {"labels": '{pod="new"}', "value": 0},
                            {"labels": '{pod="busy"}', "value": 0.15},
                        ],
                    }
                ],
            }
        ],
    }
    path = tmp_path / "adapter_test.yml"
    path.write_text(yaml.safe_dump(tests))
    ran = subprocess.run(["promtool", "test", "rules", str(path)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_workers_scale_with_the_one_queue_that_every_replica_reports(chart: Chart) -> None:
    [trigger] = of(rendered(chart, FULL), "ScaledObject")["spec"]["triggers"]
    assert trigger["metadata"]["query"] == 'max(qd_queue_circuits{namespace="quantum"})'


def test_network_lets_out_only_what_each_part_needs(chart: Chart) -> None:
    def out(values: Mapping[str, Any], component: str) -> set[int]:
        rules = of(rendered(chart, values), "NetworkPolicy", component)["spec"]["egress"]
        return {port["port"] for rule in rules for port in rule["ports"]}

    assert out(PLAIN, "service") == {53, 6379}
    assert out(PLAIN, "worker") == {53, 6379, 443}
    assert out(FULL, "service") == {53, 6379, 4318}
    assert out({"redis": {"ports": [26379, 6379]}}, "service") == {53, 6379, 26379}


def test_rules_and_dashboards_are_those_that_are_generated(chart: Chart) -> None:
    deploy = CHART.parents[1]
    objects = rendered(chart, FULL)
    assert of(objects, "PrometheusRule")["spec"] == yaml.safe_load((deploy / "prometheus" / "rules.yml").read_text())
    shown = {
        name: content
        for each in objects
        if each["kind"] == "ConfigMap" and "grafana_dashboard" in each["metadata"]["labels"]
        for name, content in each["data"].items()
    }
    assert shown == {f"qd-{path.name}": path.read_text() for path in (deploy / "grafana").glob("*.json")}
    assert len(shown) >= 2
    assert max(len(content) for content in shown.values()) < 900_000  # a ConfigMap takes 1 MiB


def test_monitors_name_the_jobs_as_compose_does(chart: Chart) -> None:
    objects = rendered(chart, FULL)
    endpoints = [
        *of(objects, "ServiceMonitor")["spec"]["endpoints"],
        *of(objects, "PodMonitor")["spec"]["podMetricsEndpoints"],
    ]
    jobs = {relabeling["replacement"] for each in endpoints for relabeling in each["relabelings"]}
    scraped = yaml.safe_load((CHART.parents[1] / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    assert jobs == {each["job_name"] for each in scraped} - {"prometheus"}


def test_notes_say_how_to_make_the_first_key(chart: Chart) -> None:
    def notes(values: Mapping[str, Any]) -> str:
        files: dict[str, str] = chart.render(dict(values), name="demo", namespace="quantum")
        return next(text for path, text in files.items() if path.endswith("NOTES.txt"))

    assert "deployment/demo-qd-students-worker" in notes(PLAIN)
    assert "keys create" in notes(BARE)
    assert "keys create" not in notes(FULL)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"sevice": {}}, "additional properties 'sevice' not allowed"),
        ({"service": {"replicas": 0}}, "'/service/replicas': minimum: got 0, want 1"),
        ({"service": {"replicas": "two"}}, "'/service/replicas': got string, want integer"),
        ({"service": {"port": 70000}}, "'/service/port': maximum: got 70,000, want 65,535"),
        ({"service": {"resources": {"limits": None}}}, "'/service/resources"),
        ({"worker": {"autoscaling": {"minReplicas": 0}}}, "'/worker/autoscaling/minReplicas': minimum: got 0, want 1"),
        ({"worker": {"autoscaling": {"prometheusAddress": "prom:9090"}}}, "does not match pattern '^https?://'"),
        ({"redis": {"existingSecret": ""}}, "'/redis/existingSecret'"),
        ({"image": {"digest": "sha256:1"}}, "'/image/digest'"),
        ({"image": {"pullPolicy": "Sometimes"}}, "'/image/pullPolicy': value must be one of"),
        ({"config": {"LOG_LEVEL": "info"}}, "'LOG_LEVEL' does not match pattern"),
        ({"image": {"tag": "latest"}}, "image.tag is latest, expected a release"),
        (
            {"config": {"QD_REDIS_URL": "redis://r"}},
            "config.QD_REDIS_URL is not set there, expected redis.existingSecret",
        ),
        (
            {"config": {"QD_QUAFU_TOKEN": "qf_1"}},
            "config.QD_QUAFU_TOKEN is not set there, expected quafu.existingSecret",
        ),
        ({"config": {"QD_THREADS": 4}}, "config.QD_THREADS is not set there, expected service.threads"),
        ({"config": {"QD_PORT": 81}}, "config.QD_PORT is the chart's own and cannot be set"),
        (
            {"service": {"autoscaling": {"minReplicas": 11}}},
            "service.autoscaling: minReplicas is 11, expected at most maxReplicas (10)",
        ),
    ],
)
def test_wrong_values_are_refused_with_what_is_wrong(chart: Chart, values: dict[str, Any], said: str) -> None:
    with pytest.raises(HelmError) as caught:
        chart.render(values, name="demo", namespace="quantum")
    assert said in str(caught.value)


def test_versions_agree_with_the_package() -> None:
    version = tomllib.loads((CHART.parents[2] / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert str(chart["appVersion"]) == version
    compose = yaml.safe_load((CHART.parents[1] / "compose.yaml").read_text())
    assert compose["services"]["service"]["image"] == f"qd-students:{version}"
    assert f"ARG VERSION={version}\n" in (CHART.parents[2] / "Dockerfile").read_text()
