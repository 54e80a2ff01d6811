"""Panels, and how Grafana writes them: a dashboard as it exports and imports it."""

from dataclasses import dataclass
from typing import Any, Literal

COLUMNS = 24
SCHEMA_VERSION = 42  # Grafana 12: older ones show what they know of it, newer ones migrate it
SOURCE = {"type": "prometheus", "uid": "${datasource}"}

Kind = Literal["timeseries", "stat", "bargauge"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """What one panel shows.

    asks: the query of each line or number, by its legend.
    unit: Grafana's name of it.   most: the upper end of the axis.   stacked: whether lines add up.
    """

    title: str
    asks: dict[str, str]
    unit: str
    says: str = ""
    kind: Kind = "timeseries"
    columns: int = 8
    rows: int = 8
    most: float | None = None
    stacked: bool = False


def dashboard(rows: dict[str, list[Panel]]) -> dict[str, Any]:
    """All of it, as Grafana exports and imports it."""
    return {
        "uid": "kvtide",
        "id": None,
        "title": "kvtide",
        "description": "A tiered prefix cache for LLM inference: what it serves, from where, and why not the rest.",
        "tags": ["kvtide", "llm"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timepicker": {},
        "timezone": "browser",
        "fiscalYearStartMonth": 0,
        "links": [],
        "annotations": {"list": []},
        "templating": {"list": [_datasource(), _instance()]},
        "panels": _panels(rows),
    }


def _datasource() -> dict[str, Any]:
    return {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "refresh": 1,
        "hide": 0,
        "includeAll": False,
        "multi": False,
        "options": [],
        "current": {},
    }


def _instance() -> dict[str, Any]:
    query = "label_values(kvtide_build_info, instance)"
    return {
        "name": "instance",
        "label": "Instance",
        "type": "query",
        "datasource": SOURCE,
        "definition": query,
        "query": {"query": query, "refId": "instance"},
        "refresh": 2,
        "sort": 1,
        "hide": 0,
        "includeAll": True,
        "multi": True,
        "options": [],
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def _panels(rows: dict[str, list[Panel]]) -> list[dict[str, Any]]:
    """Rows and panels from left to right, from top to bottom."""
    found: list[dict[str, Any]] = []
    top = 0
    for title, panels in rows.items():
        place = {"x": 0, "y": top, "w": COLUMNS, "h": 1}
        found.append(
            {
                "id": len(found) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "gridPos": place,
                "panels": [],
            }
        )
        left, top, height = 0, top + 1, 0
        for panel in panels:
            if left + panel.columns > COLUMNS:
                left, top, height = 0, top + height, 0
            place = {"x": left, "y": top, "w": panel.columns, "h": panel.rows}
            found.append({"id": len(found) + 1, "gridPos": place, **_panel(panel)})
            left, height = left + panel.columns, max(height, panel.rows)
        top += height
    return found


def _panel(panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0, "custom": {}}
    if panel.most is not None:
        defaults["max"] = panel.most
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 30 if panel.stacked else 0,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        }
    asks = panel.asks.items()
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.says,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _OPTIONS[panel.kind],
        "targets": [
            _target(chr(ord("A") + place), legend, expr, panel.kind)
            for place, (legend, expr) in enumerate(asks)
        ],
    }


def _target(name: str, legend: str, expr: str, kind: Kind) -> dict[str, Any]:
    """A bar gauge asks once, for the end of the time shown."""
    once = kind == "bargauge"
    return {
        "refId": name,
        "datasource": SOURCE,
        "editorMode": "code",
        "expr": expr,
        "legendFormat": legend or "__auto",
        "instant": once,
        "range": not once,
    }


_LAST = {"calcs": ["lastNotNull"], "fields": "", "values": False}
_OPTIONS: dict[Kind, dict[str, Any]] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {"reduceOptions": _LAST, "colorMode": "none", "graphMode": "area", "textMode": "auto"},
    "bargauge": {"reduceOptions": _LAST, "displayMode": "basic", "orientation": "horizontal"},
}
