"""The one place that sets environment variables: where the servers are, no telemetry, quiet logs.

Prefect and MLflow read the environment when they are imported, and subprocesses (servers, scheduled runs) inherit it.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_LOCAL = "127.0.0.1,localhost"

# Values that a user may override by setting the variable beforehand.
_DEFAULTS: Mapping[str, str] = {
    # Nothing leaves the machine. "true" is the spelling of DO_NOT_TRACK that Prefect, MLflow and the hub all accept.
    "DO_NOT_TRACK": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # transformers' bars for the loading of weights would stand between our own lines.
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    # Logs of flows, with tracebacks of failed tasks, go to the Prefect API: redraft prints its own progress and errors.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
    # A lost server is an error, never silently replaced by a temporary one whose runs nobody sees.
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
    # A tracker that went away must not hold training up: MLflow's own defaults retry for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # Standard output belongs to the answer of the command (`--json`).
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def environment(home: Path, *, prefect_api_url: str | None = None, mlflow_uri: str | None = None) -> dict[str, str]:
    """The variables for this process and its children; what the user has set of the defaults stays as it is."""
    values = {name: os.environ.get(name, value) for name, value in _DEFAULTS.items()}
    # The user's own ~/.prefect (profiles, database) stays untouched.
    values["PREFECT_HOME"] = str(home.resolve() / "prefect")
    for name in ("NO_PROXY", "no_proxy"):  # a proxy must not swallow the calls to our own servers
        known = os.environ.get(name, "")
        values[name] = known if _LOCAL in known else ",".join(part for part in (known, _LOCAL) if part)
    if prefect_api_url is not None:
        values["PREFECT_API_URL"] = prefect_api_url
    if mlflow_uri is not None:
        values["MLFLOW_TRACKING_URI"] = mlflow_uri
    return values


@contextmanager
def applied(values: Mapping[str, str]) -> Iterator[None]:
    """Set `values` in os.environ, also for an already imported Prefect, and restore what was there at the end."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    _refresh_prefect()
    try:
        yield
    finally:
        _drain_prefect()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _refresh_prefect()


def _refresh_prefect() -> None:
    """Prefect keeps its settings from the moment of its import: let an imported one read the environment again."""
    if "prefect.context" not in sys.modules:
        return
    from prefect.context import refresh_global_settings_context
    from prefect.logging.configuration import setup_logging

    refresh_global_settings_context()
    setup_logging()


def _drain_prefect() -> None:
    """Send the logs and events that wait in Prefect's background threads, before their server goes away."""
    if "prefect.logging.handlers" in sys.modules:
        from prefect.logging.handlers import APILogWorker

        APILogWorker.drain_all(timeout=5, at_exit=False)
    if "prefect.events.worker" in sys.modules:
        from prefect.events.worker import EventsWorker

        EventsWorker.drain_all(timeout=5, at_exit=False)
