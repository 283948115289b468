"""What MLflow remembers: nested runs, metrics, datasets with digests, artifacts, models. The only importer of mlflow.

Every call names its run, so that threads never share an "active" one. After a first successful contact a failing
tracker never stops the work: calls that fail are counted, and each kind is reported once.
"""

import json
import logging
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

import polars as pl
import requests
from typing_extensions import override

from core.errors import ServerError
from tasks.tracked_values import fitting, flat, is_unreachable
from tasks.trackers import DatasetInfo, ExpertCall, ModelVersion, NullTracker, Status, Tracking

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow.entities import DatasetInput

__all__ = ["DatasetInfo", "ExpertCall", "ModelVersion", "NullTracker", "Tracker", "Tracking", "connect"]

T = TypeVar("T")
_log = logging.getLogger(__name__)
_PARAM_LIMIT = 500  # characters that a reader can use; MLflow refuses more than 6000
_PARAMS_A_CALL, _METRICS_A_CALL = 100, 1000
_QUIET_SECONDS = 30.0
_PARENT_TAG = "mlflow.parentRunId"
_DIGEST_TAG, _URI_TAG = "redraft.digest", "redraft.uri"


def connect(uri: str | None, experiment: str) -> "Tracker | NullTracker":
    """The tracker at `uri`, or the one that does nothing without a URI. Raises ServerError if it does not answer."""
    return Tracker(uri, experiment) if uri else NullTracker()


class Tracker(Tracking):
    """MLflow at `uri`; all runs go to one experiment. Safe to share between threads."""

    def __init__(self, uri: str, experiment: str) -> None:
        # a queue would outlive a server that is gone, and hold up the end of the process for minutes
        os.environ["MLFLOW_ENABLE_ASYNC_TRACE_LOGGING"] = "false"
        import mlflow  # takes seconds, and a run without a tracker does not need it
        from mlflow.exceptions import MlflowException

        mlflow.set_tracking_uri(uri)  # create_external_model takes its address from there
        self._client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
        self._uri = uri
        self.failures: Counter[str] = Counter()
        self._parents: dict[str, str] = {}
        self._quiet_until = 0.0
        self._lock = threading.Lock()
        try:
            self._experiment_id = self._experiment(experiment)
        except (MlflowException, requests.RequestException, OSError) as error:
            msg = (
                f"The MLflow server {uri} cannot be used: {error}. Start it, correct its address, or turn tracking off."
            )
            raise ServerError(msg) from error

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            _create_once(lambda: self._client.create_experiment(name))
            return self._experiment(name)
        return str(found.experiment_id)

    @override
    def start_run(self, name: str, *, parent: str | None, tags: Mapping[str, str], params: Mapping[str, object]) -> str:
        def begin() -> str:
            nesting = {_PARENT_TAG: parent} if parent else {}
            run = self._client.create_run(
                self._experiment_id,
                run_name=name,
                tags={"mlflow.source.name": "redraft", **nesting, **fitting(tags)},
            )
            return str(run.info.run_id)

        run_id = self._guarded("start_run", begin, "")
        if run_id and parent:
            self._parents[run_id] = parent
        if run_id and params:
            self._guarded("log_params", lambda: self._log_params(run_id, params), None)
        return run_id

    def _log_params(self, run_id: str, params: Mapping[str, object]) -> None:
        from mlflow.entities import Param

        values = flat(params)
        short = {
            key: value if len(value) <= _PARAM_LIMIT else value[:_PARAM_LIMIT] + "…" for key, value in values.items()
        }
        entries = [Param(key, value) for key, value in short.items()]
        for start in range(0, len(entries), _PARAMS_A_CALL):
            self._client.log_batch(run_id, params=entries[start : start + _PARAMS_A_CALL])
        if short != values:
            self._client.log_text(run_id, json.dumps(params, indent=1, default=str), "config.json")

    @override
    def find_run(self, tags: Mapping[str, str]) -> str | None:
        wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())

        def find() -> str | None:
            runs = self._client.search_runs([self._experiment_id], wanted, max_results=1)
            return str(runs[0].info.run_id) if runs else None

        return self._guarded("find_run", find, None)

    @override
    def resume_run(self, run_id: str) -> None:
        self._do("resume_run", run_id, lambda: self._client.update_run(run_id, status="RUNNING"))

    @override
    def finish(self, run_id: str, status: Status) -> None:
        self._do("finish", run_id, lambda: self._client.set_terminated(run_id, status=status))

    @override
    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        entries = [RunTag(key, value) for key, value in fitting(tags).items()]
        self._do("set_tags", run_id, lambda: self._client.log_batch(run_id, tags=entries))

    @override
    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int) -> None:
        self.log_curves(run_id, [(step, metrics)])

    @override
    def log_curves(self, run_id: str, points: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entries = [
            Metric(re.sub(r"[^\w\-. /]", "_", key), float(value), now, step)
            for step, metrics in points
            for key, value in metrics.items()
        ]
        for start in range(0, len(entries), _METRICS_A_CALL):
            batch = entries[start : start + _METRICS_A_CALL]
            self._do("log_metrics", run_id, partial(self._client.log_batch, run_id, metrics=batch))

    @override
    def log_inputs(self, run_id: str, datasets: Sequence[DatasetInfo]) -> None:
        if not datasets:
            return
        current: str | None = run_id
        while current:
            # log_inputs of a dataset that the run has already is ignored by the server
            self._do("log_inputs", current, partial(self._client.log_inputs, current, _inputs(datasets)))
            current = self._parent(current)

    def _parent(self, run_id: str) -> str | None:
        """The run above; asked of the server for a run that another process started."""
        if run_id not in self._parents:
            found = self._guarded("get_run", lambda: self._client.get_run(run_id).data.tags.get(_PARENT_TAG, ""), None)
            if found is None:
                return None
            self._parents[run_id] = found
        return self._parents[run_id] or None

    @override
    def log_table(self, run_id: str, table: pl.DataFrame, file: str) -> None:
        def log() -> None:
            # The client's log_table appends to what is there, so that a resumed run would show rows twice.
            self._client.log_text(
                run_id, json.dumps({"columns": table.columns, "data": table.rows()}, default=str), file
            )
            self._client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps(self._tables(run_id, file)))

        self._do("log_table", run_id, log)

    def _tables(self, run_id: str, file: str) -> list[dict[str, str]]:
        """The value of the tag by which MLflow's UI finds the tables of a run."""
        known = json.loads(self._client.get_run(run_id).data.tags.get("mlflow.loggedArtifacts", "[]"))
        entry = {"path": file, "type": "table"}
        return known if entry in known else [*known, entry]

    @override
    def log_figure(self, run_id: str, figure: "Figure", file: str) -> None:
        self._do("log_figure", run_id, lambda: self._client.log_figure(run_id, figure, file))

    @override
    def log_text(self, run_id: str, text: str, file: str) -> None:
        self._do("log_text", run_id, lambda: self._client.log_text(run_id, text, file))

    @override
    def log_file(self, run_id: str, path: Path, folder: str | None = None) -> None:
        self._do("log_file", run_id, lambda: self._client.log_artifact(run_id, str(path), folder))

    @override
    def log_calls(self, run_id: str, calls: Sequence[ExpertCall]) -> None:
        for call in calls:
            self._do("log_calls", run_id, partial(self._trace, run_id, call))

    def _trace(self, run_id: str, call: ExpertCall) -> None:
        span = self._client.start_trace(
            call.name,
            span_type="CHAT_MODEL",
            inputs=dict(call.asked),
            attributes=dict(call.facts),
            experiment_id=self._experiment_id,
            start_time_ns=int(call.began * 1e9),
            run_id=run_id,
        )
        status, ended = "ERROR" if call.failed else "OK", int(call.ended * 1e9)
        self._client.end_trace(span.trace_id, outputs=dict(call.answered), status=status, end_time_ns=ended)

    @override
    def register_model(
        self, name: str, *, checkpoint_uri: str, run_id: str, digest: str, tags: Mapping[str, str]
    ) -> str:
        facts = {_DIGEST_TAG: digest, _URI_TAG: checkpoint_uri, **fitting(tags)}
        return self._guarded("register_model", lambda: self._register(name, run_id, facts), "") if run_id else ""

    def _register(self, name: str, run_id: str, facts: dict[str, str]) -> str:
        import mlflow
        from mlflow.entities import LoggedModelOutput

        _create_once(lambda: self._client.create_registered_model(name))
        for known in self._client.search_model_versions(f"name = '{name}'"):
            if known.tags.get(_DIGEST_TAG) == facts[_DIGEST_TAG]:
                return str(known.version)
        # The weights stay in the store: MLflow holds the address and the digest alone.
        model = mlflow.create_external_model(
            name=name, source_run_id=run_id, tags=facts, model_type="checkpoint", experiment_id=self._experiment_id
        )
        self._client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
        source = f"models:/{model.model_id}"
        version = self._client.create_model_version(
            name, source, run_id=run_id, tags=facts, model_id=model.model_id, await_creation_for=0
        )
        return str(version.version)

    @override
    def set_alias(self, name: str, alias: str, version: str) -> None:
        self._do("set_alias", version, lambda: self._client.set_registered_model_alias(name, alias, version))

    @override
    def champion(self, name: str) -> ModelVersion | None:
        from mlflow.exceptions import MlflowException

        try:
            found = self._client.get_model_version_by_alias(name, "champion")
        except (MlflowException, requests.RequestException) as error:
            if getattr(error, "error_code", "") in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None  # no such model, or a model without that alias
            msg = f"The MLflow server {self._uri} does not say which model is the champion: {error}. Is it running?"
            raise ServerError(msg) from error
        return ModelVersion(version=str(found.version), uri=found.tags[_URI_TAG], digest=found.tags[_DIGEST_TAG])

    def _do(self, kind: str, target: str, call: Callable[[], object]) -> None:
        """A guarded call without a result; nothing happens for a run that could not be started."""
        if target:
            self._guarded(kind, call, None)

    def _guarded(self, kind: str, call: Callable[[], T], otherwise: T) -> T:
        """What `call` returns, or `otherwise` if it fails in whatever way: tracking never stops the work."""
        if time.monotonic() < self._quiet_until:
            self._count(kind, "the server did not answer before")
            return otherwise
        try:
            return call()
        except Exception as error:
            if is_unreachable(error):  # do not wait for timeouts again and again
                self._quiet_until = time.monotonic() + _QUIET_SECONDS
            self._count(kind, error)
            return otherwise

    def _count(self, kind: str, reason: object) -> None:
        with self._lock:
            self.failures[kind] += 1
            first = self.failures[kind] == 1
        if first:
            _log.warning("MLflow: %s failed (%s); the work goes on, further failures are only counted", kind, reason)


def _create_once(create: Callable[[], object]) -> None:
    """Create something that another process may have created meanwhile."""
    from mlflow.exceptions import MlflowException

    try:
        create()
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _inputs(datasets: Sequence[DatasetInfo]) -> "list[DatasetInput]":
    """MLflow's form: its digest has at most 36 characters, so the full sha256 is a tag."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    return [
        DatasetInput(
            Dataset(
                name=info.name[-500:],
                digest=info.digest[:36],
                source_type=urlsplit(info.uri).scheme or "local",
                source=json.dumps({"uri": info.uri}),
                profile=None if info.rows is None else json.dumps({"num_rows": info.rows}),
            ),
            [InputTag("mlflow.data.context", info.context), InputTag("redraft.sha256", info.digest)],
        )
        for info in datasets
    ]
