"""The key of the expert is in nothing that a run leaves behind: files, databases, logs, and what is printed."""

import os
import pickle
import sqlite3
import subprocess
import sys
import traceback
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from prefect import flow
from prefect.client.schemas.objects import State

from core.expert.settings import ExpertSettings
from core.manifest import Ref
from core.settings import Settings
from core.stage import Output, Stage, run_stage
from data_contracts import Drafts
from tasks.revise import ReviseConfig, revise
from tasks.rounds import close_round, open_pipeline
from tasks.workplace import Workplace
from tests.core.expert.asking import settings
from tests.core.expert.echoing import echoing_endpoint, leaks
from tests.core.expert.recording import recording_expert
from tests.core.expert.revising import text_drafts, word_tokenizer

KEY, VARIABLE = "sk-proj-5fQx7-Wz81_kTq0Lm3", "REDRAFT_TEST_KEY"


@pytest.fixture
def place(running_servers, tmp_path) -> Workplace:
    return Workplace(
        home=tmp_path,
        store_uri=(tmp_path / "store").as_uri(),
        database_url=f"sqlite:///{tmp_path / 'state.db'}",
        mlflow_uri=running_servers.mlflow_uri,
    )


def test_a_revision_leaves_the_key_nowhere(place, servers_home, tmp_path, monkeypatch, caplog, capfd):
    caplog.set_level("DEBUG")
    monkeypatch.setenv(VARIABLE, f" {KEY}\n")
    inputs, states = made(place), list[State]()
    with recording_expert() as (url, record):
        states.append(revised(place, inputs, url, "well"))
        assert {one.worker for one in record.asked} == {KEY}, "the key was used"
    for status, where in ((401, "message"), (400, "message"), (429, "page"), (200, "content")):
        with echoing_endpoint(KEY, status, where) as url:
            states.append(revised(place, inputs, url, f"{where}-{status}", max_attempts=1))
    states.append(revised(place, inputs, "http://127.0.0.1:9/v1", "nobody-there"))
    assert [state.is_completed() for state in states] == [True] + [False] * 5
    for state in states[1:]:
        fault = state.result(raise_on_failure=False)
        said = "".join(traceback.format_exception(fault)) + repr(fault) + repr(state)
        assert leaks(KEY, said.encode() + pickle.dumps(fault)) == []
    assert leaks(KEY, "".join(capfd.readouterr()).encode() + caplog.text.encode()) == []
    found = {path: told(path) for root in (tmp_path, servers_home) for path in root.rglob("*") if path.is_file()}
    assert {path: leaks(KEY, data) for path, data in found.items() if leaks(KEY, data)} == {}
    assert_was_searched(found, b"segments", {"state.db", "revisions-00000.parquet"})
    assert_was_searched(found, b"redraft-key-test-well", {"mlflow.db", "prefect.db"})


@pytest.mark.slow
def test_a_whole_run_leaves_the_key_nowhere(tmp_path):
    home, out = tmp_path / "home", tmp_path / "out.txt"
    with recording_expert() as (url, record), out.open("w") as said:
        options = ["--expert.base_url", url, "--expert.api_key_env", VARIABLE, "--rounds.n", "1", "--json"]
        command = [sys.executable, "-m", "flows.cli", "run", "--config", "smoke", *options]
        env = os.environ | {"REDRAFT_HOME": str(home), VARIABLE: KEY}
        subprocess.run(command, env=env, stdout=said, stderr=subprocess.STDOUT, check=True)
        assert {one.worker for one in record.asked} == {KEY}, "the key was used"
    found = {path: told(path) for path in tmp_path.rglob("*") if path.is_file()}
    assert {path: leaks(KEY, data) for path, data in found.items() if leaks(KEY, data)} == {}
    assert_was_searched(found, VARIABLE.encode(), {"mlflow.db", "prefect.db"})
    assert_was_searched(found, b"ring", {"state.db", "report.html", "revisions-00000.parquet"})


def made(place: Workplace) -> tuple[Ref, Ref]:
    """A tokenizer and drafts in the store."""

    def tokenizer(output: Output) -> None:
        word_tokenizer().save_pretrained(output.work)
        output.write_folder(output.work)
        output.commit(rows_in=1, ok=1)

    def drafts(output: Output) -> None:
        output.write(Drafts, text_drafts(12))
        output.commit(rows_in=12)

    first = Stage(name="create_model", version=1, config=Settings(), kind="checkpoint")
    second = Stage(name="draft", version=1, config=Settings())
    work = place.work_root
    return (
        run_stage(place.store, place.claims, first, tokenizer, work_root=work).ref,
        run_stage(place.store, place.claims, second, drafts, work_root=work).ref,
    )


def revised(place: Workplace, inputs: tuple[Ref, Ref], url: str, name: str, **changes: int) -> State:
    """The end of a flow that revises the drafts; `name` makes its requests differ from those of other flows."""
    run = f"redraft-key-test-{name}"
    expert = settings(url, api_key_env=VARIABLE, concurrency=2, max_tokens=100 + len(name), **changes)

    @flow(name="revise-alone", flow_run_name=run)
    def revise_alone(expert: ExpertSettings, drafts: Ref, tokenizer: Ref) -> None:
        here = place.for_run(run)
        parent = open_pipeline(here, run, {"redraft.run": run}, {"expert": expert.model_dump(mode="json")})
        revise(here, ReviseConfig.of(expert), expert, tokenizer, drafts, parent=parent)
        close_round(here, parent)

    tokenizer, drafts = inputs
    return revise_alone(expert, drafts, tokenizer, return_state=True)


def told(path: Path) -> bytes:
    """All that a file says: its bytes, and what a table or database holds that may be packed or split there."""
    data = path.read_bytes()
    if data.startswith(b"PAR1"):
        data += str(pq.read_metadata(path).metadata).encode() + pl.read_parquet(path).write_json().encode()
    if data.startswith(b"SQLite format 3"):
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
            data += "\n".join(connection.iterdump()).encode()
    return data


def assert_was_searched(found: dict[Path, bytes], words: bytes, names: set[str]) -> None:
    """The search can find what is there: these files hold these words."""
    assert names <= {path.name for path, data in found.items() if words in data}
