import http.server
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import httpx
import matplotlib
import polars as pl
import pytest

from core.errors import ServerError
from flows.processes import free_port
from flows.servers import Servers
from tasks.tracking import DatasetInfo, ExpertCall, ModelVersion, NullTracker, Tracker, Tracking, connect

SHA = "0123456789abcdef" * 4


@pytest.fixture(scope="module")
def tracker(running_servers: Servers) -> Tracker:
    return connect(running_servers.mlflow_uri, "tracking")


@pytest.fixture(scope="module")
def client(running_servers: Servers):
    """MLflow's own client: an independent look at what the tracker wrote."""
    from mlflow import MlflowClient

    return MlflowClient(running_servers.mlflow_uri)


def begin(tracker: Tracking, name="run", parent=None, tags=None, params=None) -> str:
    return tracker.start_run(name, parent=parent, tags=tags or {}, params=params or {})


def nested(tracker: Tracking) -> list[str]:
    pipeline = begin(tracker, "pipeline")
    level = begin(tracker, "round 0", parent=pipeline)
    return [pipeline, level, begin(tracker, "draft", parent=level)]


def dataset(name="samples", digest=SHA) -> DatasetInfo:
    return DatasetInfo(name=name, digest=digest, uri="file:///store/samples", context="samples", rows=12)


def test_stage_is_below_its_round_and_the_round_below_the_pipeline(tracker, client):
    pipeline, level, stage = nested(tracker)
    tracker.finish(stage, "FAILED")
    found = client.get_run(stage)
    assert found.info.run_name == "draft"
    assert found.info.status == "FAILED"
    assert found.data.tags["mlflow.parentRunId"] == level
    assert client.get_run(level).data.tags["mlflow.parentRunId"] == pipeline
    assert "mlflow.parentRunId" not in client.get_run(pipeline).data.tags


def inputs(client, run_id):
    return [
        (entry.dataset.name, entry.dataset.digest, {tag.key: tag.value for tag in entry.tags})
        for entry in client.get_run(run_id).inputs.dataset_inputs
    ]


def test_inputs_are_on_the_stage_and_on_all_runs_above_it_once(tracker, client):
    runs = nested(tracker)
    tracker.log_inputs(runs[-1], [dataset()])
    tracker.log_inputs(runs[-1], [dataset()])  # as a resumed stage does
    expected = [("samples", SHA[:36], {"mlflow.data.context": "samples", "redraft.sha256": SHA})]
    assert [inputs(client, run) for run in runs] == [expected] * 3


def test_inputs_reach_the_runs_above_that_another_process_started(tracker, client, running_servers):
    runs = nested(tracker)
    connect(running_servers.mlflow_uri, "tracking").log_inputs(runs[-1], [dataset("pairs")])
    assert [len(inputs(client, run)) for run in runs] == [1, 1, 1]


def test_parameters_are_flat_and_long_ones_are_whole_in_config_json(tracker, client, tmp_path):
    params = {"train": {"steps": 3, "rates": [0.1, 0.2]}, "empty": {}, "prompt": "x" * 9000}
    run = begin(tracker, params=params | {f"p{i}": i for i in range(150)})
    found = client.get_run(run).data.params
    assert found["train.steps"] == "3"
    assert found["train.rates"] == "[0.1, 0.2]"
    assert found["empty"] == "{}"
    assert found["prompt"] == "x" * 500 + "…"
    assert len(found) == 154
    stored = json.loads(open(client.download_artifacts(run, "config.json", tmp_path)).read())  # noqa: PTH123, SIM115
    assert stored["prompt"] == params["prompt"]


def test_curves_keep_every_step_and_odd_names_and_values(tracker, client):
    run = begin(tracker)
    tracker.log_curves(run, [(step, {"loss": 1 / (step + 1), "rejected/no_op: ü": step}) for step in range(700)])
    tracker.log_metrics(run, {"broken": float("nan"), "seconds": 1.5}, step=0)
    history = client.get_metric_history(run, "loss")
    assert sorted((point.step, point.value) for point in history) == [(step, 1 / (step + 1)) for step in range(700)]
    assert len(client.get_metric_history(run, "rejected/no_op_ ü")) == 700
    assert client.get_run(run).data.metrics["seconds"] == 1.5
    assert tracker.failures == {}


def test_artifacts_can_be_read_back_and_a_table_logged_again_is_replaced(tracker, client, tmp_path):
    from matplotlib.figure import Figure

    matplotlib.use("Agg")
    run = begin(tracker)
    figure = Figure()
    figure.subplots().plot([1, 2])
    (tmp_path / "report.html").write_text("<p>report</p>")
    tracker.log_figure(run, figure, "figures/curve.png")
    tracker.log_text(run, "text", "notes.txt")
    tracker.log_file(run, tmp_path / "report.html", "reports")
    for rows in (2, 3):
        tracker.log_table(run, pl.DataFrame({"arm": ["a"] * rows, "score": [1.5] * rows}), "scores.json")
    names = {entry.path for folder in ("", "figures", "reports") for entry in client.list_artifacts(run, folder)}
    assert {"figures/curve.png", "notes.txt", "reports/report.html", "scores.json"} <= names
    table = client.load_table(client.get_run(run).info.experiment_id, "scores.json", run_ids=[run])
    assert table.to_dict("list") == {"arm": ["a"] * 3, "score": [1.5] * 3}


def test_model_is_registered_once_with_its_alias_and_the_checkpoint_stays_outside(tracker, client):
    run = begin(tracker)
    assert tracker.champion("scenes") is None, "no such model yet"
    facts = {"checkpoint_uri": "file:///store/ckpt", "run_id": run, "digest": SHA, "tags": {"redraft.round": "1"}}
    version = tracker.register_model("scenes", **facts)
    assert tracker.champion("scenes") is None, "no alias yet"
    assert tracker.register_model("scenes", **facts) == version
    tracker.set_alias("scenes", "champion", version)
    assert tracker.champion("scenes") == ModelVersion(version="1", uri="file:///store/ckpt", digest=SHA)
    found = client.get_model_version_by_alias("scenes", "champion")
    assert found.source.startswith("models:/m-")
    assert found.run_id == run
    assert found.tags["redraft.round"] == "1"
    logged = client.get_logged_model(found.source.removeprefix("models:/"))
    assert logged.status == "READY"
    assert [entry.model_id for entry in client.get_run(run).outputs.model_outputs] == [logged.model_id]
    second = tracker.register_model("scenes", **facts | {"digest": SHA[::-1]})
    tracker.set_alias("scenes", "champion", second)
    assert (second, tracker.champion("scenes").digest) == ("2", SHA[::-1])


def test_run_is_found_by_tag_and_resumed(tracker, client):
    run = begin(tracker, tags={"redraft.run": "run-7", "long": "y" * 9000})
    tracker.finish(run, "FAILED")
    assert tracker.find_run({"redraft.run": "run-7"}) == run
    assert tracker.find_run({"redraft.run": "run-8"}) is None
    tracker.resume_run(run)
    assert client.get_run(run).info.status == "RUNNING"


def test_threads_do_not_mix_their_runs_up(tracker, client):
    def stage(number: int) -> str:
        run = begin(tracker, f"stage {number}")
        for step in range(5):
            tracker.log_metrics(run, {"number": number}, step)
        return run

    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(stage, range(8)))
    assert len(set(runs)) == 8
    for number, run in enumerate(runs):
        assert {point.value for point in client.get_metric_history(run, "number")} == {number}


def test_tracker_that_refuses_at_the_start_is_an_error():
    with pytest.raises(ServerError, match=r"MLflow server http://127.0.0.1:\d+ cannot be used.*turn tracking off"):
        connect(f"http://127.0.0.1:{free_port()}", "tracking")


@contextmanager
def gateway(target: str):
    """The real server behind an address that can be made to disappear."""

    class Forward(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            length = int(self.headers.get("Content-Length") or 0)
            kind = {"Content-Type": self.headers.get("Content-Type") or ""}
            answer = httpx.request(self.command, target + self.path, content=self.rfile.read(length), headers=kind)
            self.send_response(answer.status_code)
            self.send_header("Content-Type", answer.headers["content-type"])
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        do_GET = do_PUT = do_PATCH = do_POST

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Forward)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def close():
        server.shutdown()
        server.server_close()

    yield f"http://127.0.0.1:{server.server_port}", close


def test_server_that_disappears_stops_neither_the_work_nor_the_clock(running_servers: Servers, caplog):
    with gateway(running_servers.mlflow_uri) as (uri, close):
        tracker = connect(uri, "gone")
        run = begin(tracker)
        tracker.log_metrics(run, {"loss": 1.0}, step=0)
        assert run
        assert tracker.failures == {}
        close()
        tracker.log_metrics(run, {"loss": 0.9}, step=1)
        began = time.monotonic()
        for step in range(2, 200):
            tracker.log_metrics(run, {"loss": 0.9}, step=step)
        tracker.log_inputs(run, [dataset()])
        child = begin(tracker, parent=run)
        assert child == ""
        tracker.log_text(child, "text", "notes.txt")
        tracker.finish(child, "FINISHED")
        assert time.monotonic() - began < 15.0, "a server that is gone is not asked again and again"
        assert tracker.failures["log_metrics"] == 199
        assert tracker.register_model("m", checkpoint_uri="u", run_id=run, digest=SHA, tags={}) == ""
        assert sum("log_metrics failed" in message for message in caplog.messages) == 1, "told once"
        with pytest.raises(ServerError, match="champion"):
            tracker.champion("m")  # a run must not silently start from scratch


def test_refused_call_is_counted_and_the_next_one_works(tracker, client):
    run = begin(tracker)
    failed_before = tracker.failures["set_tags"]
    tracker.set_tags("no-such-run", {"a": "b"})
    assert tracker.failures["set_tags"] == failed_before + 1
    tracker.set_tags(run, {"a": "b"})
    assert client.get_run(run).data.tags["a"] == "b"
    del tracker.failures["set_tags"]


def test_tracking_that_is_off_has_the_same_methods_and_does_nothing():
    off = connect(None, "tracking")
    assert isinstance(off, NullTracker)
    run = begin(off)
    assert run == ""
    off.log_inputs(run, [dataset()])
    assert off.champion("scenes") is None
    wanted = {name for name in vars(Tracking) if not name.startswith("_")}
    assert wanted <= set(vars(NullTracker))
    assert wanted <= set(vars(Tracker))


def test_requests_to_the_expert_are_traces_of_their_run(running_servers, client):
    tracker = connect(running_servers.mlflow_uri, "traces")  # MLflow sends traces to the server that was named last
    run = begin(tracker)
    call = ExpertCall(
        name="revise-v1",
        asked={"prediction": "a blue ring", "image": "sha256:" + SHA},
        answered={"reply": '{"segments": []}', "error": None},
        facts={"request_key": SHA, "verdict": "right"},
        began=1_700_000_000.0,
        ended=1_700_000_001.5,
        failed=False,
    )
    tracker.log_calls(run, [call, replace(call, name="reask-v1", failed=True)])
    tracker.log_calls("", [call])
    tracker.finish(run, "FINISHED")
    experiment = client.get_run(run).info.experiment_id
    found = client.search_traces(locations=[experiment], run_id=run)
    by_name = {trace.data.spans[0].name: trace for trace in found}
    assert set(by_name) == {"revise-v1", "reask-v1"}
    trace = by_name["revise-v1"]
    assert trace.data.spans[0].inputs == dict(call.asked)
    assert trace.data.spans[0].outputs == dict(call.answered)
    assert trace.data.spans[0].attributes["verdict"] == "right"
    assert trace.info.execution_duration == 1500
    assert [str(by_name[name].info.state.value) for name in ("revise-v1", "reask-v1")] == ["OK", "ERROR"]
