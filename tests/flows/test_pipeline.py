"""The whole loop on real parts: Prefect and MLflow servers, the reference expert over HTTP, a store on disk."""

import json
import re
from collections import Counter
from pathlib import Path

import httpx
import pytest
from mlflow import MlflowClient
from prefect import flow, get_client
from prefect.client.schemas.objects import State

from core.config import PlaceSettings, RunConfig, config_path, parse_config, read_toml
from core.errors import StoreError
from core.expert.ledger import Ledger
from core.manifest import MANIFEST, Manifest, Ref, read_manifest, read_table
from core.store import LocalStore, image_path
from core.worlds.scenes import synthesize
from data_contracts import Reasks, Revisions, Samples
from flows.experiments.catalogue import CATALOGUE
from flows.experiments.seed import measure_seed
from flows.finished import finished_run
from flows.foundation import samples_of
from flows.pipeline import champion_of, redraft_run, redraft_scheduled
from flows.remembered import Beginning, recall
from flows.running import PARTIAL, rerun_loop, run_loop
from flows.servers import Servers
from flows.session import workplace
from flows.summary import read_summary
from tasks.versions import VERSIONS
from tasks.workplace import Workplace


@pytest.fixture(scope="module")
def config() -> RunConfig:
    path = config_path("smoke")
    return parse_config(read_toml(path), str(path))


@pytest.fixture(scope="module")
def place(running_servers: Servers, expert_url: str, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    home = tmp_path_factory.mktemp("home")
    return Workplace(
        home=home,
        store_uri=(home / "store").as_uri(),
        database_url=f"sqlite:///{home}/state.db",
        mlflow_uri=running_servers.mlflow_uri,
        expert_url=expert_url,
    )


def start(config: RunConfig, place: Workplace, run: str) -> State:
    values = {"config": config.model_dump(mode="json"), "place": place.model_dump(mode="json")}
    return redraft_run(**values, run=run, return_state=True)


def manifests(place: Workplace) -> dict[str, Manifest]:
    store = LocalStore(place.home / "store")
    folders = [path.removesuffix(f"/{MANIFEST}") for path in store.list(".") if path.endswith(MANIFEST)]
    return {folder: read_manifest(store, folder) for folder in folders if not folder.startswith("damaged")}


def requests_served(place: Workplace) -> int:
    stats = httpx.get(place.expert_url.removesuffix("/v1") + "/stats").json()
    return int(stats["requests"])


@pytest.fixture(scope="module")
def finished(config: RunConfig, place: Workplace) -> State:
    state = start(config, place, "smoke-first")
    assert state.is_completed(), state.message
    return state


def test_the_loop_runs_end_to_end_and_accounts_for_every_row(finished, place):
    summary = read_summary(Path(finished.result()))
    stages = {stage.stage for stage in summary.stages}
    assert stages == {
        "synth", "create_model", "warm_up", "mask", "pair", "corrupt", "finetune", "draft", "revise", "assemble",
        "evaluate",
    }  # fmt: skip
    assert all(manifest.counts.balanced for manifest in manifests(place).values())
    assert {arm.arm for arm in summary.results} == {"base", "stage 1", "round 1", "round 2", "mask-predict"}
    assert (place.home / "reports" / "smoke-first" / "report.html").stat().st_size > 10_000
    trained = {arm.arm: arm.train_steps for arm in summary.results}
    assert trained["mask-predict"] == trained["round 2"] == 110


def test_outputs_change_only_with_a_bump_of_the_stages_version(finished, place):
    """Regenerate golden_smoke.json on purpose, and bump the version of the stage whose output has changed."""
    exact = {"synth", "pair", "mask", "corrupt"}  # what follows depends on the processor's floating point
    found = sorted(
        [manifest.producer.stage, manifest.producer.version, manifest.key[:16], manifest.digest[:16]]
        for manifest in manifests(place).values()
        if manifest.producer.stage in exact
    )
    golden = json.loads((Path(__file__).parent / "golden_smoke.json").read_text())
    assert [row for row in found if row[:3] in [known[:3] for known in golden]] == golden


def test_a_finished_run_does_no_work_again(finished, config, place):
    before, asked = manifests(place), requests_served(place)
    again = start(config, place, "smoke-again")
    assert again.is_completed()
    assert manifests(place) == before
    assert requests_served(place) == asked


def test_a_finished_run_is_known_without_a_server_as_long_as_its_outputs_verify(finished, config, place, monkeypatch):
    store, reports = LocalStore(place.home / "store"), place.home / "reports"
    known = finished_run(config, store, reports)
    assert known is not None
    assert known.run in {"smoke-first", "smoke-again"}
    assert finished_run(config.model_copy(update={"seed": 5}), store, reports) is None
    part = place.home / "store" / known.stages[-1].uri / "evaluations-00000.parquet"
    whole = part.read_bytes()
    part.write_bytes(whole[:-1])
    assert finished_run(config, store, reports) is None, "a truncated part is work to do"
    part.write_bytes(whole)
    monkeypatch.setitem(VERSIONS, "draft", VERSIONS["draft"] + 1)
    assert finished_run(config, store, reports) is None, "so is a stage that has changed"


def test_an_experiment_takes_what_a_run_has_made_and_gives_a_row_an_arm_and_setting(finished, config, place):
    before = manifests(place)
    values = {"config": config.model_dump(mode="json"), "place": place.model_dump(mode="json")}
    state = measure_seed(**values, run="smoke-experiment", experiments=["RD-2", "RD-7"], return_state=True)
    assert state.is_completed(), state.message
    seconds, found = state.result()
    assert seconds > 0
    added = {manifest.producer.stage for folder, manifest in manifests(place).items() if folder not in before}
    assert added == {"evaluate"}, "the models are those of the run"
    wanted = [(arm, setting) for arm, one in CATALOGUE["RD-2"].arms.items() for setting in one.settings]
    assert [(row["arm"], row["setting"]) for row in found["RD-2"]] == wanted
    one = next(row for row in found["RD-2"] if row["setting"] == "5 freeze")
    assert one["nfe"] == 10
    assert one["train_steps"] == 110
    assert len(one["scores"]) == config.data.test
    assert sum(one["scores"]) / len(one["scores"]) == pytest.approx(one["score"], abs=1e-2)
    both = {row["setting"]: row["scores"] for row in found["RD-7"]}
    assert both["8 refine"] == next(
        r["scores"] for r in found["RD-2"] if (r["arm"], r["setting"]) == ("rediff", "8 refine")
    )


def test_stage_one_can_be_trained_with_a_prompt_that_is_blind_to_the_response(finished, config, place):
    before = manifests(place)
    values = {"config": config.model_dump(mode="json"), "place": place.model_dump(mode="json")}
    state = measure_seed(**values, run="smoke-prompt-attention", experiments=["prompt-attention"], return_state=True)
    assert state.is_completed(), state.message
    added = [manifest.producer.stage for folder, manifest in manifests(place).items() if folder not in before]
    assert Counter(added) == {"switch_attention": 2, "finetune": 1, "evaluate": 3}
    _, found = state.result()
    models = {row["arm"]: (row["train_steps"], row["model_digest"]) for row in found["prompt-attention"]}
    assert {steps for steps, _ in models.values()} == {90}
    assert len({digest for _, digest in models.values()}) == 3
    asked = {arm: one.settings for arm, one in CATALOGUE["prompt-attention"].arms.items()}
    assert [(row["arm"], row["setting"]) for row in found["prompt-attention"]] == [
        (arm, setting) for arm, settings in asked.items() for setting in settings
    ]


def test_tokens_are_those_of_the_ledger_and_drafts_that_share_a_request_count_once(finished, place):
    store, shared = LocalStore(place.home / "store"), 0
    for folder, manifest in manifests(place).items():
        if manifest.producer.stage == "revise":
            ref = Ref(uri=folder, digest=manifest.digest, kind="dataset")
            keys = [key for table in (Revisions, Reasks) for key in read_table(store, ref, table)["request_key"]]
            replies = Ledger(place.engine).find(list(set(keys)))
            shared += len(keys) - len(replies)
            assert manifest.facts["prompt_tokens"] == sum(reply.prompt_tokens or 0 for reply in replies.values())
            assert manifest.facts["cost_usd"] is None, "the reference expert has no price"
    assert shared > 0, "some drafts are alike, or this shows nothing"


def test_mlflow_shows_the_tree_of_runs_with_inputs_and_models(finished, place, running_servers):
    client = MlflowClient(running_servers.mlflow_uri)
    experiment = client.get_experiment_by_name("redraft").experiment_id
    pipeline = client.search_runs([experiment], "tags.`redraft.run` = 'smoke-first'")[0]
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{pipeline.info.run_id}'")
    assert {"foundation", "round 1", "round 2"} <= {run.info.run_name for run in children}
    one = next(run for run in children if run.info.run_name == "round 1")
    stages = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{one.info.run_id}'")
    by_stage = {run.data.tags["redraft.stage"]: run for run in stages}
    assert {"draft", "revise", "assemble", "finetune"} <= set(by_stage)
    revise = by_stage["revise"]
    assert revise.inputs.dataset_inputs
    assert revise.data.metrics["rows_in"] == 24
    assert client.get_model_version_by_alias("smoke", "champion")


def test_a_mended_shard_and_what_depends_on_it_is_all_that_a_rerun_computes(
    config, place, tmp_path, running_servers, monkeypatch, capsys
):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("REDRAFT_HOME", str(home))
    servers = {"prefect_url": running_servers.prefect_api_url, "mlflow_url": running_servers.mlflow_uri}
    changes = {
        "name": "mended",
        "rounds": config.rounds.model_copy(update={"n": 1}),
        "place": config.place.model_copy(update=servers),
        "expert": config.expert.model_copy(update={"base_url": place.expert_url, "max_requests": 5}),
    }
    settings = config.model_copy(update=changes)
    fresh = workplace(settings.place, mlflow_uri=running_servers.mlflow_uri)
    poison = poison_second_shard(settings, fresh)
    assert run_loop(settings, json=True) == PARTIAL
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "1 of 2 draft shards failed" in printed["error"]
    assert "a stored image is lost" in printed["error"]
    before, asked = manifests(fresh), requests_served(place)
    assert [folder for folder in before if "/draft-" in folder], "the healthy sibling finished and was kept"

    poison.rename(poison.with_name(poison.name.removesuffix(".away")))
    assert rerun_loop(printed["run"], {}, json=True) == PARTIAL
    assert "expert.max_requests: 5 of 5 requests" in capsys.readouterr().out.splitlines()[-1]
    assert rerun_loop(printed["run"], {"max_requests": 1000}, json=True) == 0
    after = manifests(fresh)
    assert {folder: after[folder] for folder in before} == before
    computed = [after[folder].producer.stage for folder in set(after) - set(before)]
    # the baseline learns from that sample too; dev, gallery and four test arms
    depends = {"draft": 1, "revise": 2, "assemble": 1, "finetune": 2, "evaluate": 6}
    assert Counter(computed) == depends
    revised = [after[folder] for folder in set(after) - set(before) if after[folder].producer.stage == "revise"]
    drafted = sum(manifest.counts.rows_in for manifest in revised)
    assert requests_served(place) - asked <= drafted
    assert rerun_loop(printed["run"], {}, json=True) == 0
    assert manifests(fresh) == after, "a second rerun has nothing to do"


def poison_second_shard(config: RunConfig, place: Workplace) -> Path:
    """Lose the image of a sample of the second draft shard of round 1, as a broken disk would."""
    frame, _ = synthesize(split="train", start=config.data.train, count=24, captions=1, seed=config.seed)
    lost = frame["image_sha"][config.draft.shard_size]

    @flow(name="only-samples")
    def only_samples() -> None:
        samples_of(config, place, "train", config.data.train, config.rounds.samples, 1, None, "")

    only_samples()
    image = place.home / "store" / image_path(lost)
    return image.rename(image.with_name(image.name + ".away"))


def test_scheduled_runs_take_the_next_unused_samples_until_nothing_is_new(finished, config, place):
    values = {"config": config.model_dump(mode="json"), "place": place.model_dump(mode="json"), "name": "smoke"}
    before = manifests(place)
    champion = champion_of(config, place)
    first = redraft_scheduled(**values, return_state=True)
    assert first.is_completed(), first.message
    added = [manifest for folder, manifest in manifests(place).items() if folder not in before]
    new_samples = [manifest for manifest in added if manifest.producer.stage == "synth"]
    assert [manifest.producer.config["start"] for manifest in new_samples] == [112]
    trained = [manifest for manifest in added if manifest.producer.stage == "finetune"]
    assert [manifest.parents["model"][0] for manifest in trained] == [champion]
    second = redraft_scheduled(**values, return_state=True)
    assert second.is_completed()
    assert second.name == "NothingNew"
    summary = read_summary(Path(first.result()))
    assert [note for note in summary.notes if note.startswith("Stopped")] == [
        "Stopped after 1 of 2 rounds: no unused samples are left for more."
    ]
    known = finished_run(config, LocalStore(place.home / "store"), place.home / "reports")
    assert known is not None
    assert known.kind == "run", "a scheduled run is not taken for a finished one of its configuration"


def test_a_scheduled_run_goes_by_one_name_everywhere_and_is_resumed_with_what_it_held(
    finished, config, place, running_servers, monkeypatch, capsys
):
    wider = config.model_copy(
        update={
            "data": config.data.model_copy(update={"pool": 152}),
            "place": PlaceSettings(prefect_url=running_servers.prefect_api_url, mlflow_url=running_servers.mlflow_uri),
            "expert": config.expert.model_copy(update={"base_url": place.expert_url}),
        }
    )
    monkeypatch.setenv("REDRAFT_HOME", str(place.home))
    held = champion_of(config, place)
    values = {"config": wider.model_dump(mode="json"), "place": place.model_dump(mode="json"), "name": "smoke"}
    with monkeypatch.context() as patched:
        patched.setattr("flows.pipeline.evaluation", fail)
        broken = redraft_scheduled(**values, return_state=True)
    assert broken.is_failed()
    with get_client(sync_client=True) as client:
        name = client.read_flow_run(broken.state_details.flow_run_id).name
    assert re.fullmatch(r"smoke-\d{8}-\d{6}-[0-9a-f]{6}", name)
    assert tracked(running_servers.mlflow_uri, name) == ("FAILED", "152")
    assert recall(place.home, name) == Beginning(kind="scheduled", config=wider, start=held)

    before = manifests(place)
    assert rerun_loop(name, {}, json=True) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["run"] == name
    added = {manifest.producer.stage for folder, manifest in manifests(place).items() if folder not in before}
    assert added == {"evaluate"}, "the same slice and the same start"
    assert read_summary(place.home / "reports" / name / "summary.json").kind == "scheduled"
    assert tracked(running_servers.mlflow_uri, name) == ("FINISHED", "152")
    assert rerun_loop(name, {}, json=True) == 0, "it finished before"


def fail(*_: object, **__: object) -> None:
    raise StoreError("the disk is full")


def tracked(uri: str, run: str) -> tuple[str, str]:
    """Status of a pipeline's MLflow run, and one of its parameters."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("redraft").experiment_id
    found = client.search_runs([experiment], f"tags.`redraft.run` = '{run}'")
    assert len(found) == 1
    return found[0].info.status, found[0].data.params["data.pool"]


def test_samples_of_train_dev_and_test_never_overlap(finished, place):
    store = LocalStore(place.home / "store")
    seen: dict[str, set[str]] = {}
    for folder, manifest in manifests(place).items():
        if manifest.producer.stage == "synth":
            frame = read_table(store, Ref(uri=folder, digest=manifest.digest, kind="dataset"), Samples)
            seen.setdefault(manifest.producer.config["split"], set()).update(frame["image_sha"])
    assert seen["train"].isdisjoint(seen["dev"] | seen["test"])
    assert seen["dev"].isdisjoint(seen["test"])


def test_a_users_own_photos_and_captions_go_through_the_whole_loop(place, tmp_path):
    """The preset `real`, cut short: a file of another format, BPE tokens, pairs by lexicon, overlap as the measure."""
    data = Path(__file__).parents[1] / "data" / "ingest"
    known = [json.loads(line) for line in (data / "metadata.jsonl").read_text().splitlines()]
    images = tmp_path / "images"
    images.mkdir()
    rows = []
    for copy in range(6):  # as many different photos: a byte behind the end of an image changes nothing but its name
        for row in known:
            name = f"{copy}-{row['image']}"
            (images / name).write_bytes((data / "images" / row["image"]).read_bytes() + bytes(copy))
            rows.append({"image": name, "captions": [f"{text} Number {copy}." for text in row["captions"]]})
    rows.append({"image": "../outside.jpg", "captions": ["A house."]})
    (tmp_path / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    path = config_path("real")
    steps = {"steps": 3, "batch_size": 4, "warmup": 1}
    values = read_toml(path) | {
        "data": {"source": "auto", "path": str(tmp_path / "metadata.jsonl"), "images": str(images), "train": 24,
                 "dev": 4, "test": 4},
        "ingest": {"train": 0.6, "dev": 0.2},
        "base": steps | {"steps": 100, "lr": 3e-3}, "stage1": steps, "stage2": steps,
        "control": {"batch_size": 4, "warmup": 1},
        "rounds": {"n": 1, "samples": 8, "promote_on": "8 refine"},
        "draft": {"settings": ["8 refine"], "shard_size": 8},
        "evaluate": {"settings": ["8 refine", "8 freeze"], "gallery": 2, "traces": 2},
    }  # fmt: skip
    values["model"] |= {"vocab_size": 400, "hidden_size": 32, "layers": 1, "heads": 2}
    settings = parse_config(values, str(path))
    state = start(settings, place, "real-first")
    assert state.is_completed(), state.message
    summary = read_summary(Path(state.result()))
    stages = {stage.stage: stage for stage in summary.stages}
    assert {"ingest", "take", "pair", "corrupt", "draft", "revise", "assemble", "finetune", "evaluate"} <= set(stages)
    assert stages["ingest"].rejected == {"outside_image_root": 1}
    assert stages["pair"].ok > 0
    assert {arm.arm for arm in summary.results} == {"base", "stage 1", "round 1", "mask-predict"}
