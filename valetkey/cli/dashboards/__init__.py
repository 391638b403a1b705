"""The Grafana dashboards in ``config/grafana/``: what they show, and how it is written."""

from __future__ import annotations

from typing import Final

from valetkey.cli.dashboards.broker import BROKER
from valetkey.cli.dashboards.collector import COLLECTOR
from valetkey.cli.dashboards.fleet import FLEET
from valetkey.cli.dashboards.grafana import Dashboard
from valetkey.cli.dashboards.injector import INJECTOR
from valetkey.cli.dashboards.workload import WORKLOAD

DASHBOARDS: Final[tuple[Dashboard, ...]] = (FLEET, WORKLOAD, BROKER, COLLECTOR, INJECTOR)
