"""Figures to an MLflow tracking server, by its client alone: no global state is touched.

A killed run that goes on with the same recipe goes on in the same MLflow run; its id lies in
``mlflow.json``. MLflow knows letters, digits and ``_ - . / space`` in names; anything else becomes
an underscore, so ``hr@10`` is ``hr_10`` there.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from itertools import islice
from typing import Any

from prerank.tracking.tracker import About, End

# Read by the client on each request. A dead server should cost a run seconds, not its default of
# minutes; and a library does not report on its user.
for _key, _value in {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}.items():
    os.environ.setdefault(_key, _value)

from mlflow.entities import Metric, Param  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.tracking import MlflowClient  # noqa: E402

MOST_METRICS, MOST_PARAMS, MOST_CHARACTERS = 1000, 100, 6000
"""What one request of MLflow's REST interface takes, and the longest value of a parameter."""


class MLflow:
    """One MLflow run: parameters are the recipe's keys, metrics our figures."""

    def __init__(self, about: About, uri: str, experiment: str) -> None:
        self._client = MlflowClient(tracking_uri=uri)
        file = about.folder / "mlflow.json"
        mark = {"uri": uri, "experiment": experiment, "settings": dict(about.settings)}
        self._run = self._earlier(json.loads(file.read_text()), mark) if file.exists() else ""
        self.goes_on = bool(self._run)
        if not self.goes_on:
            self._run = self._start(about, experiment)
            partial = file.with_suffix(".part")
            partial.write_text(json.dumps({"run": self._run, **mark}, indent=1))
            partial.replace(file)

    def _earlier(self, stored: Mapping[str, Any], mark: Mapping[str, Any]) -> str:
        """Return the run to go on with; empty if it was another recipe's or is gone."""
        if {key: stored.get(key) for key in mark} != mark:
            return ""
        try:
            self._client.update_run(stored["run"], status="RUNNING")
        except MlflowException:
            return ""
        return str(stored["run"])

    def _start(self, about: About, experiment: str) -> str:
        found = self._client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else self._client.create_experiment(experiment)
        run: str = self._client.create_run(number, run_name=about.name).info.run_id
        params = (Param(plain(k), v[:MOST_CHARACTERS]) for k, v in about.settings.items())
        while part := list(islice(params, MOST_PARAMS)):
            self._client.log_batch(run, params=part)
        return run

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Send figures, as many a request as the server takes."""
        now = int(time.time() * 1000)
        rows: Iterator[Metric] = (Metric(plain(k), v, now, step) for k, v in metrics.items())
        while part := list(islice(rows, MOST_METRICS)):
            self._client.log_batch(self._run, metrics=part)

    def close(self, end: End = "finished") -> None:
        """Mark the MLflow run as finished, failed or killed."""
        # The client prints the run's address, and stdout may be read as JSON.
        with redirect_stdout(sys.stderr):
            self._client.set_terminated(self._run, end.upper())


def plain(name: str) -> str:
    """Return ``name`` in the characters that MLflow takes."""
    return re.sub(r"[^\w\-./ ]", "_", name, flags=re.ASCII)
