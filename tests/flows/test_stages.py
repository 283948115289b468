"""The verbs about data, on real parts: Prefect and MLflow servers, a store on disk, Hugging Face's datasets."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree

import httpx
import pytest
from mlflow import MlflowClient

from core.config import DataSettings, IngestSettings, PairSettings, RunConfig
from core.errors import ConfigError, InputError
from core.expert.server import make_server
from core.expert.settings import ReferenceSettings
from core.manifest import Ref, read_manifest, read_table
from core.models.tokenizer import train_bpe_tokenizer
from data_contracts import Corrections, Drafts, HallucinationPairs, Rejects, Revisions, Samples
from flows.estimating import run_estimate
from flows.exporting import run_export
from flows.running import PARTIAL
from flows.session import workplace
from flows.stages import run_ingest, run_pair, run_revise
from flows.token_shares import show_token_shares

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def config(own_place) -> RunConfig:
    return RunConfig(place=own_place)


def with_data(config: RunConfig, file: Path, images: Path | str = "", **ingest) -> RunConfig:
    data = DataSettings(source="auto", path=str(file), images=str(images))
    return config.model_copy(update={"data": data, "ingest": IngestSettings(**ingest)})


def printed(capsys) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def output(line: dict) -> Ref:
    return Ref.model_validate(line["outputs"][0])


def test_images_and_captions_go_in_become_pairs_and_come_out(config, tmp_path, capsys, running_servers):
    images = copytree(DATA / "ingest" / "images", tmp_path / "images")
    (images / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    animals = ("dogs", "cats", "cows", "sheep", "horses", "birds", "goats", "elephants", "zebras")
    captions = [
        (image.name, f"A man in a red shirt stands next to two {animal} on the left side of a table.")
        for image, animal in zip(sorted(images.iterdir()), animals, strict=True)
    ]
    file = tmp_path / "metadata.jsonl"
    file.write_text("".join(json.dumps({"file_name": name, "text": text}) + "\n" for name, text in captions))

    known = with_data(config, file, images, train=0.5, dev=0.25)
    assert run_ingest(known, json=True) == 0
    line = printed(capsys)
    samples, place = output(line), workplace(config.place)
    assert line["counts"] == {"ok": len(captions) - 1, "rejected": {"broken_image": 1}, "failed": {}}
    assert read_table(place.store, samples, Rejects)["row_id"].to_list() == ["metadata.jsonl:2"]
    again = run_ingest(known, json=True)
    assert (again, output(printed(capsys))) == (0, samples)
    mlflow = MlflowClient(running_servers.mlflow_uri)
    experiment = mlflow.get_experiment_by_name("redraft").experiment_id
    (run,) = mlflow.search_runs([experiment], f"tags.`redraft.run` = '{line['run']}'")
    assert run.info.status == "FINISHED"

    pairing = PairSettings(per_sample=3)
    assert run_pair(config.model_copy(update={"pair": pairing}), samples.digest[:12], json=True) == 0
    pairs = output(printed(capsys))
    table = read_table(place.store, pairs, HallucinationPairs)
    assert set(table["sample_id"]) == set(read_table(place.store, samples, Samples)["sample_id"])
    assert table["kind"].n_unique() >= 3

    for name in ("vicrit", "hf"):
        assert run_export(config, [pairs.uri], name, tmp_path / name, json=True) == 0
    assert printed(capsys)["counts"]["ok"] == samples_of(tmp_path / "hf")
    assert len(json.loads((tmp_path / "vicrit" / "vicrit.json").read_text())) == table.height
    back = with_data(config, tmp_path / "vicrit" / "vicrit.json", tmp_path / "vicrit")
    assert run_ingest(back, json=True) == 0
    returned = read_table(place.store, output(printed(capsys)), HallucinationPairs)
    columns = ("original_caption", "changed_caption", "start", "end", "solution_target")
    assert returned.select(columns).sort(columns).equals(table.select(columns).sort(columns))

    train_bpe_tokenizer(table["changed_caption"].to_list() * 9, 1000).save_pretrained(tmp_path / "tokenizer")
    assert show_token_shares(config, pairs.uri, [tmp_path / "tokenizer"], json=True) == 0
    shares = printed(capsys)["tokenizers"][str(tmp_path / "tokenizer")]
    assert table.height == shares["pairs"] >= shares["re_diff"] >= shares["in_context"] >= shares["published"] > 0


def samples_of(folder: Path) -> int:
    """Rows of all splits, as `datasets` sees them, in a process of its own: it is offline from its first line on."""
    code = (
        "import datasets, sys; d = datasets.load_dataset(sys.argv[1]); [r['image'].size for s in d.values() for r in s]"
    )
    code += "; print(sum(s.num_rows for s in d.values()))"
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder.parent / "hub"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], env=env, capture_output=True, text=True, check=True
    )
    return int(done.stdout.splitlines()[-1])


def test_published_corrections_go_in_and_come_out_the_same(config, tmp_path, capsys):
    turns = [{"from": "human", "value": "<image>\nDescribe."}, {"from": "gpt", "value": "a white shirt shirt"}]
    rows = [
        {"image": "none/1.jpg", "conversations": turns, "revise": [{"org": "shirt shirt", "target": "blue shirt"}]},
        {"image": "none/2.jpg", "conversations": turns, "revise": [{"org": "shirt", "target": "coat"}], "more": [1]},
        {"img": "none/3.jpg", "ques": "What?", "ans": "A cat.", "pred": "A dog.", "revise": "right"},
    ]
    file = tmp_path / "rediff.json"
    file.write_text(json.dumps(rows))
    assert run_ingest(with_data(config, file, text_only=True), json=True) == 0
    ref, place = output(printed(capsys)), workplace(config.place)
    assert read_table(place.store, ref, Corrections).height == 3
    assert read_table(place.store, ref, Samples)["reference"].to_list() == ["a white blue shirt", "A cat."]
    assert run_export(config, [ref.uri], "rediff", tmp_path / "out.json", json=False) == 0
    assert json.loads((tmp_path / "out.json").read_text()) == rows


@pytest.fixture
def expert() -> Iterator[str]:
    """The address of a reference expert."""
    server = make_server(ReferenceSettings())
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    server.should_exit = True
    thread.join(10)


def requests_served(expert: str) -> int:
    return httpx.get(expert.replace("/v1", "/stats"), trust_env=False).json()["requests"]


def with_expert(config: RunConfig, url: str, **changes) -> RunConfig:
    asked = {"base_url": url, "price_in": 1.0, "price_out": 2.0} | changes
    shards = {"draft": config.draft.model_copy(update={"shard_size": 8})}
    return config.model_copy(update={"expert": config.expert.model_copy(update=asked), **shards})


def test_texts_of_a_model_are_revised_and_what_it_takes_is_known_before(config, expert, tmp_path, capsys):
    texts = [
        f"Mary buys {n} eggs and {n + 3} pears, that makes \\boxed{{{2 * n + 2 + n % 2}}} things." for n in range(20)
    ]
    rows = [
        {"question": f"Question {n}?", "generations": f"{text}<|endoftext|>", "ground_truth": 2 * n + 3}
        for n, text in enumerate(texts)
    ]
    file = tmp_path / "drafts.json"
    file.write_text(json.dumps({"generations": [*rows, {"question": "?", "generations": "", "ground_truth": 1}]}))
    train_bpe_tokenizer(texts, 300).save_pretrained(tmp_path / "tokenizer")
    known, place = with_expert(config, expert), workplace(config.place)
    with pytest.raises(ConfigError, match="--tokenizer"):
        run_revise(known, [str(file)], None, json=False)

    assert run_estimate(known, [str(file)], tmp_path / "tokenizer", json=True) == 0
    told = printed(capsys)
    assert (told["drafts"], told["requests"], requests_served(expert)) == (20, 20, 0)

    limited = with_expert(config, expert, max_requests=7, concurrency=2)
    assert run_revise(limited, [str(file)], tmp_path / "tokenizer", json=True) == PARTIAL
    assert "expert.max_requests: 7 of 7 requests" in printed(capsys)["error"]
    assert run_revise(known, [str(file)], tmp_path / "tokenizer", json=True) == 0
    line = printed(capsys)
    assert requests_served(expert) == 20
    refs = [Ref.model_validate(ref) for ref in line["outputs"]]
    revisions = read_table(place.store, refs, Revisions)
    assert (len(refs), revisions.height) == (3, 20)
    assert (revisions["verdict"] == "right").sum() == 10
    assert all(f"boxed{{{2 * n + 3}}}" in text for n, text in _refined(place, refs))
    cost = revisions["cost_usd"].sum()
    assert told["cost_usd"] == pytest.approx(cost, rel=0.1)
    assert line["cost_usd"] < cost  # the first seven were paid before

    drafts = [ref["uri"] for ref in told["outputs"]]
    assert run_revise(known, drafts, None, json=True) == 0
    assert [ref["digest"] for ref in printed(capsys)["outputs"]] == [ref.digest for ref in refs]
    with pytest.raises(InputError, match="several datasets"):
        run_revise(known, [str(file), drafts[0]], None, json=False)
    assert run_revise(known, [line["outputs"][0]["uri"]], None, json=True) == 1
    assert "holds no drafts" in printed(capsys)["error"]


def _refined(place, refs) -> list[tuple[int, str]]:
    drafts = [parent for ref in refs for parent in read_manifest(place.store, ref.uri).parents["drafts"]]
    prompts = dict(read_table(place.store, drafts, Drafts).select("draft_id", "prompt").rows())
    revisions = read_table(place.store, refs, Revisions).select("draft_id", "refined_text").rows()
    return [(int(prompts[draft].split()[1].rstrip("?")), text) for draft, text in revisions]


def test_what_cannot_be_done_is_said(config, tmp_path):
    with pytest.raises(ConfigError, match="name the file"):
        run_ingest(config, json=False)
    with pytest.raises(InputError, match="outputs"):
        run_pair(config, "datasets/none", json=False)
    with pytest.raises(ConfigError, match="name the datasets"):
        run_export(config, [], "llava", tmp_path / "x", json=False)


def test_a_file_without_a_usable_row_fails_with_the_reasons(config, tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"conversations": []}\n{"conversations": 3}\n')
    assert run_ingest(with_data(config, file), json=True) == 1
    assert "'no_conversation': 2" in printed(capsys)["error"]
