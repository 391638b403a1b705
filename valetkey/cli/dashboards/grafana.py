"""Dashboards as Grafana reads them: the classic JSON model, version 42 (Grafana 12.2 and later).

A dashboard is written down as rows of panels and nothing else; places, ids and letters follow from
their order, so that a change of one line is a change of a few lines of JSON.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

SCHEMA_VERSION: Final = 42
TAG: Final = "valetkey"
_COLUMNS: Final = 24
_STAT_HEIGHT: Final = 4
_HEIGHT: Final = 8
_DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}

RATE: Final = "[$__rate_interval]"
"""What rates are taken over: four scrapes at least, and no less than a point of the graph."""

Kind = Literal["timeseries", "stat", "table"]


@dataclass(frozen=True, slots=True)
class Query:
    """``legend`` is Grafana's: ``{{label}}`` stands for the value of a label."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """``unit`` is an id of Grafana's (``s``, ``reqps``, ``percentunit``, …).

    ``bad`` is the value from which on a stat is red. ``on_failure``: there is nothing to show before
    something goes wrong, or is used at all. ``width`` is in columns, of 24.
    """

    title: str
    about: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: Kind = "timeseries"
    width: int = 8
    bad: float | None = None
    stacked: bool = False
    on_failure: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """A choice among the values of ``label`` of the series of ``selector``.

    ``several``: more than one may be chosen, and "All" stands for each, those without the label
    included.
    """

    name: str
    selector: str
    several: bool = True


@dataclass(frozen=True, slots=True)
class Dashboard:
    """``uid`` is the name of its file and the end of its address."""

    uid: str
    title: str
    about: str
    rows: tuple[Row, ...]
    variables: tuple[Variable, ...] = field(default=())


def stat(title: str, about: str, expr: str, **more: Any) -> Panel:
    """One number."""
    return Panel(title, about, (Query(expr),), kind="stat", **{"width": 4, **more})


def percentiles(histogram: str, matchers: str = "", by: str = "") -> tuple[Query, ...]:
    """What half of the observations, and all but a hundredth, are within; by a label, or of all."""
    of = f"rate({histogram}_bucket{_braced(matchers)}{RATE})"
    labels, legend = (f"le, {by}", f"{{{{{by}}}}} ") if by else ("le", "")
    return tuple(
        Query(f"histogram_quantile({share}, sum by ({labels}) ({of}))", legend + name)
        for share, name in ((0.5, "p50"), (0.99, "p99"))
    )


def per(
    counter: str, by: str, matchers: str = "", of: Literal["rate", "increase"] = "rate"
) -> Query:
    """What is added to a counter, by one label or by several (``a, b``)."""
    legend = "/".join(f"{{{{{label}}}}}" for label in by.split(", "))
    return Query(f"sum by ({by}) ({of}({counter}{_braced(matchers)}{RATE}))", legend)


def most(query: Query) -> Query:
    """The ten series with the most."""
    return Query(f"topk(10, {query.expr})", query.legend)


def _braced(matchers: str) -> str:
    return f"{{{matchers}}}" if matchers else ""


def render(dashboard: Dashboard) -> str:
    """The dashboard's file."""
    document = {
        "annotations": {"list": []},
        "description": dashboard.about,
        "editable": True,
        "fiscalYearStartMonth": 0,
        "graphTooltip": 1,  # one crosshair on all panels
        "id": None,
        "links": [
            {
                "asDropdown": False,
                "icon": "external link",
                "includeVars": True,
                "keepTime": True,
                "tags": [TAG],
                "targetBlank": False,
                "title": "Valetkey",
                "type": "dashboards",
            }
        ],
        "panels": _panels(dashboard.rows),
        "refresh": "30s",
        "schemaVersion": SCHEMA_VERSION,
        "tags": [TAG],
        "templating": {"list": [_datasource(), *map(_variable, dashboard.variables)]},
        "time": {"from": "now-3h", "to": "now"},
        "timepicker": {},
        "timezone": "browser",
        "title": dashboard.title,
        "uid": dashboard.uid,
        "version": 1,
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _panels(rows: Sequence[Row]) -> list[dict[str, Any]]:
    panels: list[dict[str, Any]] = []
    y = 0
    for row in rows:
        place = {"h": 1, "w": _COLUMNS, "x": 0, "y": y}
        panels.append(
            {
                "collapsed": False,
                "gridPos": place,
                "id": len(panels) + 1,
                "panels": [],
                "title": row.title,
                "type": "row",
            }
        )
        x, y, height = 0, y + 1, 0
        for panel in row.panels:
            if x + panel.width > _COLUMNS:
                x, y, height = 0, y + height, 0
            high = _STAT_HEIGHT if panel.kind == "stat" else _HEIGHT
            place = {"h": high, "w": panel.width, "x": x, "y": y}
            panels.append(_panel(panel, len(panels) + 1, place))
            x, height = x + panel.width, max(height, high)
        y += height
    return panels


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit}
    if panel.kind == "timeseries":
        defaults["min"] = 0
        defaults["custom"] = {
            "fillOpacity": 30 if panel.stacked else 5,
            "lineWidth": 1,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.stacked else "none"},
        }
    if panel.on_failure:
        defaults["noValue"] = "none"
    if panel.kind == "stat":
        steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
        if panel.bad is not None:
            steps.append({"color": "red", "value": panel.bad})
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    return {
        "datasource": _DATASOURCE,
        "description": panel.about,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "gridPos": place,
        "id": number,
        "options": _OPTIONS[panel.kind],
        "targets": [
            _target(query, letter, panel.kind)
            for query, letter in zip(panel.queries, "ABCDEFGH", strict=False)
        ],
        "title": panel.title,
        # All rows of a table are of one moment.
        "transformations": [_WITHOUT_TIME] if panel.kind == "table" else [],
        "type": panel.kind,
    }


_WITHOUT_TIME: Final = {"id": "organize", "options": {"excludeByName": {"Time": True}}}
_OPTIONS: Final[dict[Kind, dict[str, Any]]] = {
    "timeseries": {
        "legend": {"calcs": ["lastNotNull"], "displayMode": "list", "placement": "bottom"},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "colorMode": "value",
        "graphMode": "area",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    },
    "table": {"cellHeight": "sm", "showHeader": True},
}


def _target(query: Query, letter: str, kind: Kind) -> dict[str, Any]:
    at_once = {"format": "table", "instant": True, "range": False}
    return {
        "datasource": _DATASOURCE,
        "expr": query.expr,
        "legendFormat": query.legend or "__auto",
        **(at_once if kind == "table" else {"instant": False, "range": True}),
        "refId": letter,
    }


def _datasource() -> dict[str, Any]:
    return {
        "hide": 0,
        "label": "Data source",
        "name": "datasource",
        "query": "prometheus",
        "type": "datasource",
    }


def _variable(variable: Variable) -> dict[str, Any]:
    query = f"label_values({variable.selector}, {variable.name})"
    several = {"allValue": ".*", "current": {"text": "All", "value": "$__all"}}
    return {
        **(several if variable.several else {}),
        "datasource": _DATASOURCE,
        "hide": 0,
        "includeAll": variable.several,
        "label": variable.name.capitalize(),
        "multi": variable.several,
        "name": variable.name,
        "query": {"qryType": 1, "query": query, "refId": "values"},
        "refresh": 2,  # whenever the time range changes
        "sort": 1,
        "type": "query",
    }
