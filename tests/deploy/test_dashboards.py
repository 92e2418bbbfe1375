"""The dashboards as they are in the repository: complete, readable, and of metrics that there are."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from expressions import DASHBOARDS, Asked, existing, of_dashboards, of_variables, panels, series

from deploy import generate
from service.metrics import Shared

ASKED = list(of_dashboards())
each_dashboard = pytest.mark.parametrize("name", DASHBOARDS)


def test_generated_files_are_up_to_date() -> None:
    assert generate.main(["--check"]) == 0


def test_check_fails_on_a_file_that_was_edited_and_writing_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate, "FOLDER", tmp_path / "deploy")
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
    (tmp_path / "deploy" / "grafana" / "service.json").write_text("{}")
    assert generate.main(["--check"]) == 1
    assert "deploy/grafana/service.json is out of date" in capsys.readouterr().err
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0


def test_dashboards_link_to_each_other_by_their_fixed_uids() -> None:
    uids = {name: dashboard["uid"] for name, dashboard in DASHBOARDS.items()}
    assert uids == {"backends": "qd-backends", "service": "qd-service"}
    for name, other in (("backends", "service"), ("service", "backends")):
        links = [link["url"] for link in DASHBOARDS[name]["links"]]
        assert links == [f"/d/{uids[other]}"]


@each_dashboard
def test_every_panel_says_what_it_shows_in_which_unit_and_from_where(name: str) -> None:
    found = panels(DASHBOARDS[name])
    assert len({panel["id"] for panel in found}) == len(found) >= 15
    for panel in found:
        assert panel["title"], panel
        assert panel["description"].endswith("."), panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}", panel["title"]
        defaults = panel.get("fieldConfig", {}).get("defaults", {})
        assert panel["type"] in ("table", "state-timeline") or defaults["unit"], panel["title"]
        if panel["type"] in ("stat", "bargauge", "state-timeline"):  # of which the colour is half of what they say
            assert defaults["thresholds"]["steps"], panel["title"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0, panel["title"]


@each_dashboard
def test_panels_stay_on_the_page_and_do_not_overlap(name: str) -> None:
    places = [(panel["title"], panel["gridPos"]) for panel in DASHBOARDS[name]["panels"]]
    for title, place in places:
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24, title
    for (title, one), (other_title, other) in itertools.combinations(places, 2):
        apart_in_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart_in_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart_in_x or apart_in_y, (title, other_title)


@pytest.mark.parametrize("asked", ASKED, ids=[asked.where for asked in ASKED])
def test_expression_reads_metrics_that_there_are_by_labels_that_they_have(asked: Asked) -> None:
    known = existing()
    read = list(series(asked.expression))
    assert read
    for name, labels in read:
        assert name in known
        assert labels <= known[name]
    for kept in re.findall(r"by \(([^)]*)\)", asked.expression):
        assert set(kept.split(", ")) <= set().union(*(known[name] for name, _ in read))


def test_what_every_replica_tells_alike_is_never_added_up() -> None:
    shared = {each._name for each in Shared().instruments}
    read = 0
    for asked in ASKED:
        for name, _ in series(asked.expression):
            if name in shared:
                read += 1
                assert re.search(rf"max (by \([^)]*\) )?\({name}\b", asked.expression), asked
    assert read >= len(shared) - 1


def test_every_metric_is_on_a_dashboard_or_in_a_rule() -> None:
    from deploy.rules import ALERTS, RECORDINGS

    expressions = [asked.expression for asked in ASKED]
    expressions += [rule.expression for rule in (*RECORDINGS, *ALERTS)]
    read = {name for expression in expressions for name, _ in series(expression)}
    read |= {metric for metric, _ in of_variables()}
    families = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in existing() if name.startswith("qd_")}
    assert families - {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in read} == set()


def test_variables_are_labels_that_there_are() -> None:
    known = existing()
    found = list(of_variables())
    assert found
    for metric, label in found:
        assert label in known[metric]
