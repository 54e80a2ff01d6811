"""docs/metrics.md and the dashboard speak of the metrics that there are, and of all of them."""

import json
import re
from itertools import combinations
from pathlib import Path

import pytest

from kvstore.admin.metric_table import METRICS
from tests.kvstore.promql import problems_of, sample_names
from tools import dashboard, metrics_table

DOCS = Path(__file__).resolve().parents[2] / "docs"
TEXT = metrics_table.DOC.read_text(encoding="utf-8")
DASHBOARD = json.loads(dashboard.FILE.read_text(encoding="utf-8"))
PANELS = DASHBOARD["panels"]

EXAMPLES = re.findall(r"```promql\n(.*?)```", TEXT, re.DOTALL)
ALERTS = re.findall(r"^ +expr: (?:>-\n)?(.*?)\n +(?:for|annotations):", TEXT, re.DOTALL | re.MULTILINE)
TARGETS = [target["expr"] for panel in PANELS for target in panel.get("targets", [])]


# --- the document ---------------------------------------------------------------------------------------------------


def test_the_document_has_the_table_of_the_code():
    assert metrics_table.with_table(TEXT) == TEXT, "write it anew: python -m tools.metrics_table"


def test_the_table_has_every_metric_once():
    rows = re.findall(r"^\| `(kvtide_\w+)` \|", TEXT, re.MULTILINE)
    assert rows == [metric.name for metric in METRICS]


@pytest.mark.parametrize("query", EXAMPLES)
def test_examples_ask_for_what_there_is(query):
    assert not problems_of(query)


@pytest.mark.parametrize("query", ALERTS)
def test_alerts_ask_for_what_there_is(query):
    assert query == 'up{job="kvtide"} == 0' or not problems_of(query)


def test_examples_and_alerts_were_found():
    """Else the tests above would hold of nothing."""
    assert len(EXAMPLES) == TEXT.count("```promql")
    assert len(ALERTS) == TEXT.count("- alert:")


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_no_page_names_a_metric_that_is_not_there(page):
    named = set(re.findall(r"`(kvtide_[a-z_]+)[`{\[]", page.read_text(encoding="utf-8")))
    assert named <= {*sample_names(), *(metric.name for metric in METRICS)}


# --- the dashboard --------------------------------------------------------------------------------------------------


def test_the_dashboard_is_the_one_of_the_code():
    assert dashboard.FILE.read_text(encoding="utf-8") == dashboard.written(), (
        "write it anew: python -m tools.dashboard"
    )


@pytest.mark.parametrize("query", TARGETS)
def test_panels_ask_for_what_there_is(query):
    assert not problems_of(query)


@pytest.mark.parametrize("query", TARGETS)
def test_panels_keep_to_the_chosen_instances(query):
    """Each name in a query is followed by matchers, the instances among them."""
    named = re.findall(r"kvtide_\w+(\{[^}]*\})?", query)
    assert named and all('instance=~"$instance"' in matchers for matchers in named)


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: f"{panel['id']} {panel['title']}")
def test_a_legend_has_labels_that_its_query_leaves(panel):
    for target in panel.get("targets", []):
        query = target["expr"]
        by = re.search(r"\bby \(([^)]*)\)", query)
        left = set(re.findall(r"\w+", by.group(1))) if by else set() if "sum" in query else {"instance"}
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= left - {"le"}, query


def test_panels_have_ids_of_their_own_units_and_a_data_source():
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    for panel in PANELS:
        if panel["type"] == "row":
            continue
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs) > 0


def test_no_panel_lies_over_another():
    places = [panel["gridPos"] for panel in PANELS]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 and place["h"] > 0 for place in places)
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, (one, other)


def test_the_rows_are_what_one_looks_for():
    rows = [panel["title"] for panel in PANELS if panel["type"] == "row"]
    assert rows == ["Overview", "Tiers", "Transfers", "Disk", "Misses", "GPU", "Endpoint"]


def test_it_can_be_imported_anywhere():
    """It has no id of a Grafana, names no data source of one, and asks for both that it needs."""
    assert DASHBOARD["id"] is None
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["instance"]["datasource"]["uid"] == "${datasource}"
    assert variables["instance"]["query"]["query"] == "label_values(kvtide_build_info, instance)"


# --- the checker can fail -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    [
        "rate(kvtide_cached_token_total[5m])",  # no such name
        "rate(kvtide_ttft_seconds[5m])",  # a histogram has no sample of its own name
        "rate(kvtide_requests_total_bucket[5m])",
        'kvtide_slots{place="host"}',  # no such label
        'kvtide_slots{tier="disk"}',  # nor value of it
        'rate(kvtide_missed_tokens_total{reason=~"evicted|gone"}[5m])',
        "sum by (reason) (rate(kvtide_requests_total[5m]))",
        "kvtide_blocks / on (tier) kvtide_leases",
        'kvtide_slots{tier="host", state}',
        "rates(kvtide_requests_total[5m])",
        "sum by (tier) (node_load1)",
        "up == 0",  # asks for none of ours
        '{tier="host"}',
    ],
)
def test_a_query_for_what_is_not_there_is_found(query):
    assert problems_of(query)
