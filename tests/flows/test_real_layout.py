"""The whole loop on a checkpoint as LLaDA-V is published, photographs and LoRA; real servers, the expert over HTTP."""

import json
from collections.abc import Mapping
from pathlib import Path

import httpx
import numpy as np
import polars as pl
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.config import RunConfig, parse_config
from core.manifest import MANIFEST, Manifest, Ref, read_manifest, read_table
from core.models.denoiser import TrainableDenoiser, load_denoiser, save_denoiser
from core.models.special_tokens import LLAVA_PLACEHOLDER
from core.store import LocalStore
from core.training.settings import LoraSettings
from data_contracts import Drafts
from flows.exporting import run_export
from flows.running import run_loop
from flows.servers import Servers
from flows.summary import RunSummary, read_summary
from tests.core.models.checkpoints import DATA, SPECIAL, published

COCO = Path(__file__).parents[1] / "data" / "coco"
LORA = {"rank": 4, "alpha": 8.0, "targets": ["q_proj", "v_proj", "down_proj"]}
ADAPTED = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
TRAIN = {"steps": 4, "batch_size": 8, "lr": 1e-3, "warmup": 1, "optimizer": "adamw", "weight_decay": 0.0,
         "lora": LORA}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    annotations = json.loads((COCO / "captions.json").read_text())["annotations"]
    captions = [annotation["caption"] for annotation in annotations]
    return published(tmp_path_factory.mktemp("checkpoint"), "llada_v_tiny", learned_from=captions)


@pytest.fixture(scope="module")
def config(checkpoint: Path, running_servers: Servers, expert_url: str) -> RunConfig:
    values = {
        "name": "tiny-llada-v",
        "data": {
            "source": "coco", "path": str(COCO / "captions.json"), "images": str(COCO / "images"),
            "train": 64, "dev": 8, "test": 8,
        },
        "ingest": {"train": 0.7, "dev": 0.15},
        "model": {"checkpoint": str(checkpoint), "response_length": 32},
        "mask": {"draws": 1},
        "revision": {"draws": 1},
        "base": {"steps": 0},
        "stage1": TRAIN,
        "draft": {"settings": ["8 refine"], "shard_size": 24},
        "stage2": TRAIN,
        "control": TRAIN,
        "rounds": {"n": 2, "samples": 24, "promote_on": "8 refine"},
        "evaluate": {"settings": ["8 refine", "8 freeze"], "traces": 2, "gallery": 6},
        "compute": {"threads": 1, "one_model": True},
        "expert": {"base_url": expert_url},
        "place": {"prefect_url": running_servers.prefect_api_url, "mlflow_url": running_servers.mlflow_uri},
    }  # fmt: skip
    return parse_config(values, "this test")


@pytest.fixture(scope="module")
def summary(config: RunConfig, home: Path) -> RunSummary:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("REDRAFT_HOME", str(home))
        assert run_loop(config, json=True) == 0
    (found,) = (home / "reports").glob("*/summary.json")
    return read_summary(found)


def manifests(home: Path) -> dict[str, Manifest]:
    store = LocalStore(home / "store")
    folders = [path.removesuffix(f"/{MANIFEST}") for path in store.list(".") if path.endswith(MANIFEST)]
    return {folder: read_manifest(store, folder) for folder in folders}


def trained(home: Path) -> dict[str, tuple[Path, str]]:
    """Training -> the folder of its checkpoint, and the training (or creation) that it began with."""
    names, found = {}, {}
    for folder, manifest in sorted(manifests(home).items(), key=lambda one: one[1].created):
        if manifest.kind == "checkpoint":
            name = manifest.producer.config.get("name", manifest.producer.stage)
            names[folder] = (
                f"round {sum(known.startswith('round') for known in found) + 1}" if name == "stage2" else name
            )
            parents = manifest.parents.get("model", [])
            found[names[folder]] = (home / "store" / folder, names[parents[0].uri] if parents else "")
    return found


def test_two_rounds_go_on_from_the_checkpoint_as_it_is(summary, home):
    assert {one.arm for one in summary.results} == {"base", "stage 1", "round 1", "round 2", "mask-predict"}
    steps = {one.arm: one.train_steps for one in summary.results}
    assert steps == {"base": 0, "stage 1": 4, "round 1": 8, "round 2": 12, "mask-predict": 12}
    came_from = {name: before for name, (_, before) in trained(home).items()}
    assert came_from == {
        "create_model": "", "control": "create_model", "stage1": "create_model", "round 1": "stage1",
        "round 2": "round 1",
    }  # fmt: skip
    began = load_file(trained(home)["create_model"][0] / "model.safetensors")
    assert same(began, load_file(DATA / "llada_v_tiny" / "model.safetensors")) == set(began)
    assert summary.metric == "overlap_f1"
    assert (home / "reports" / summary.run / "report.html").stat().st_size > 20_000


def test_every_row_is_accounted_for(summary, home):
    found = manifests(home)
    assert all(manifest.counts.balanced for manifest in found.values())
    rejected = {reason for manifest in found.values() for reason in manifest.counts.rejected}
    assert {"too_long", "pair_length_mismatch", "no_such_fact"} <= rejected
    drafted = [manifest.counts for manifest in found.values() if manifest.producer.stage == "draft"]
    revised = [manifest.counts for manifest in found.values() if manifest.producer.stage == "revise"]
    assert [counts.ok for counts in drafted] == [24, 24]
    assert [counts.rows_in for counts in revised] == [24, 24]
    for record in summary.experts:
        assert record.drafts == sum(record.verdicts.values()) == 24
        assert sum(record.accepted.values()) + sum(record.segment_reasons.values()) == record.segments > 0


def test_a_prompt_is_the_chat_template_around_one_image(summary, home):
    store = LocalStore(home / "store")
    refs = [
        Ref(uri=folder, digest=manifest.digest, kind="dataset")
        for folder, manifest in manifests(home).items()
        if manifest.producer.stage == "draft"
    ]
    drafts = read_table(store, refs, Drafts)
    ids = {name: index for index, name in SPECIAL.items()}
    assert drafts["image_sha"].null_count() == 0
    for prompt in drafts["prompt_ids"].to_list():
        assert prompt.count(LLAVA_PLACEHOLDER) == 1
        assert prompt[:2] == [ids["<|startoftext|>"], ids["<|start_header_id|>"]]
        assert prompt.count(ids["<|eot_id|>"]) == 1
    assert drafts.filter(pl.col("token_ids").list.contains(ids["<|mdm_mask|>"])).is_empty()
    assert drafts["model_digest"].n_unique() == 2, "each round has drafts of its own model"


def same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> set[str]:
    """Names of the tensors that are equal to the last bit."""
    return {name for name, tensor in left.items() if torch.equal(tensor, right[name])}


def test_lora_changes_the_adapted_layers_and_nothing_else(summary, home):
    runs = trained(home)
    for name in ("stage1", "round 1", "round 2", "control"):
        folder, before = runs[name]
        weights = load_file(folder / "model.safetensors")
        start = load_file(runs[before][0] / "model.safetensors")
        changed = set(weights) - same(weights, start)
        assert changed == {f"model.layers.{layer}.{part}.weight" for layer in (0, 1) for part in ADAPTED}
        adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
        for layer in changed:
            prefix = f"base_model.model.{layer.removesuffix('.weight')}"
            down, up = adapter[f"{prefix}.lora_A.weight"], adapter[f"{prefix}.lora_B.weight"]
            assert down.shape[0] == up.shape[1] == LoraSettings(**LORA).rank
            torch.testing.assert_close(weights[layer], start[layer] + LORA["alpha"] / LORA["rank"] * up @ down)


def test_what_was_trained_has_the_published_layout_and_is_loaded_again_with_equal_logits(summary, home, tmp_path):
    folder, original = trained(home)["round 2"][0], DATA / "llada_v_tiny"
    ours, theirs = load_file(folder / "model.safetensors"), load_file(original / "model.safetensors")
    assert {name: (t.shape, t.dtype) for name, t in ours.items()} == {n: (t.shape, t.dtype) for n, t in theirs.items()}
    assert json.loads((folder / "config.json").read_text()) == json.loads((original / "config.json").read_text())

    copy = published(tmp_path, "llada_v_tiny")
    base = logits(load_denoiser(copy))
    save_file(ours, copy / "model.safetensors")  # the published folder, and nothing of ours but the weights
    expected = logits(load_denoiser(folder))
    assert torch.equal(logits(load_denoiser(copy)), expected)
    assert not torch.equal(base, expected)
    save_denoiser(load_denoiser(folder), tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


@torch.inference_mode()
def logits(model: TrainableDenoiser) -> Tensor:
    """Of a prompt with an image, half of its text masked."""
    image = np.asarray(Image.open(DATA / "llada_v_tiny" / "image_wide_200x110.png").convert("RGB"))
    ids_BL = torch.tensor([[490, 492, LLAVA_PLACEHOLDER, 493, *range(60, 70), *[500] * 10]])
    features_BND = model.image_features(model.pixels([image]))
    hidden_BLD = model.hidden(ids_BL, valid_BL=torch.ones_like(ids_BL, dtype=torch.bool), features_BND=features_BND)
    return model.logits(hidden_BLD[0])


def test_the_same_command_again_computes_nothing_and_asks_nobody(summary, config, home, monkeypatch, capsys):
    monkeypatch.setenv("REDRAFT_HOME", str(home))
    before, asked = manifests(home), requests_served(config)
    assert run_loop(config, json=True) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["run"] == summary.run, "the run that finished before"
    (home / "reports" / summary.run / "summary.json").rename(home / "summary.json")
    assert run_loop(config, json=True) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["outputs"] == printed["outputs"]
    assert manifests(home) == before, "without the summary each stage finds its own output"
    assert requests_served(config) == asked


def requests_served(config: RunConfig) -> int:
    stats = httpx.get(config.expert.base_url.removesuffix("/v1") + "/stats").json()
    return int(stats["requests"])


def test_revisions_are_written_as_the_published_code_reads_them(summary, config, home, tmp_path, monkeypatch):
    monkeypatch.setenv("REDRAFT_HOME", str(home))
    revised = [folder for folder, manifest in manifests(home).items() if manifest.producer.stage == "revise"]
    assert run_export(config, revised, "rediff", tmp_path, json=False) == 0
    rows = json.loads((tmp_path / "rediff.json").read_text())
    assert len(rows) == sum(record.verdicts["revised"] for record in summary.experts)
    for row in rows:
        assert (tmp_path / row["image"]).is_file()
        assert row["conversations"][0]["value"].startswith("<image>\n")
        assert row["revise"]


def test_mlflow_has_a_run_for_each_round_and_every_model_of_the_loop(summary, config):
    client = MlflowClient(config.place.mlflow_url)
    experiment = client.get_experiment_by_name("redraft").experiment_id
    (pipeline,) = client.search_runs([experiment], f"tags.`redraft.run` = '{summary.run}'")
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{pipeline.info.run_id}'")
    assert {"foundation", "round 1", "round 2"} <= {run.info.run_name for run in children}
    versions = client.search_model_versions("name = 'tiny-llada-v'")
    assert {version.tags["redraft.arm"] for version in versions} == {"round 0", "round 1", "round 2"}
