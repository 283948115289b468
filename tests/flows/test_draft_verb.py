"""`redraft draft` on real parts: a published layout, photos, Prefect and MLflow servers, a store on disk."""

import json
from pathlib import Path
from shutil import copytree

import pytest

from core.config import DataSettings, DraftSettings, RunConfig
from core.decoding.settings import DecodeSettings
from core.errors import ConfigError, InputError
from core.manifest import Ref, read_manifest, read_table
from core.models.denoiser import load_denoiser
from data_contracts import Drafts, Rejects, Samples, Traces
from flows import cli
from flows.cli_options import in_blocks
from flows.cli_words import expanded, preset
from flows.exporting import run_export
from flows.running import PARTIAL
from flows.session import workplace
from flows.stages import run_draft, run_revise
from tests.core.models.checkpoints import published

IMAGES = Path(__file__).parents[1] / "data" / "ingest" / "images"
SETTINGS = ("4 refine", "8 freeze")


@pytest.fixture
def config(own_place, tmp_path) -> RunConfig:
    draft = DraftSettings(settings=SETTINGS, batch_size=4, shard_size=3)
    known = RunConfig(place=own_place, draft=draft)
    model = known.model.model_copy(update={"response_length": 8})
    return with_model(known.model_copy(update={"model": model}), published(tmp_path, "llada_v_tiny"))


def with_data(config: RunConfig, file: Path | str, images: Path | str = "") -> RunConfig:
    return config.model_copy(update={"data": DataSettings(source="auto", path=str(file), images=str(images))})


def with_model(config: RunConfig, checkpoint: Path | str) -> RunConfig:
    return config.model_copy(update={"model": config.model.model_copy(update={"checkpoint": str(checkpoint)})})


def printed(capsys) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def photos(folder: Path) -> tuple[Path, Path]:
    """A file of captions and its images, one of them broken."""
    images = copytree(IMAGES, folder / "images")
    (images / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    rows = [json.dumps({"file_name": image.name, "text": "a red ring"}) for image in sorted(images.iterdir())]
    file = folder / "metadata.jsonl"
    file.write_text("\n".join(rows))
    return file, images


def test_a_published_checkpoint_drafts_for_photos_and_what_is_done_is_not_done_again(config, tmp_path, capsys):
    file, images = photos(tmp_path)
    known, place = with_data(config, file, images), workplace(config.place)
    count = len(list(IMAGES.iterdir()))
    assert run_draft(known, json=True) == 0
    line = printed(capsys)
    refs = [Ref.model_validate(ref) for ref in line["outputs"]]
    assert (line["verb"], line["counts"]) == ("draft", {"ok": count * 2, "rejected": {}, "failed": {}})
    assert len(refs) == -(-count // 3)
    drafts = read_table(place.store, refs, Drafts)
    assert drafts.select("sample_id", "setting").is_unique().all()
    assert set(drafts["setting"]) == set(SETTINGS)
    assert read_table(place.store, refs, Traces).height > 0
    (samples,) = read_manifest(place.store, refs[0].uri).parents["samples"]
    (model,) = read_manifest(place.store, refs[0].uri).parents["model"]
    assert read_table(place.store, samples, Rejects)["reason"].to_list() == ["broken_image"]
    assert drafts["model_digest"].unique().to_list() == [model.digest]
    kept = load_denoiser(place.local_folder(model)).state_dict()
    given = load_denoiser(config.model.checkpoint).state_dict()
    assert all(given[name].equal(tensor) for name, tensor in kept.items())

    before = {ref.uri: read_manifest(place.store, ref.uri).created for ref in refs}
    place.store.delete(refs[1].uri)
    by_names = with_model(
        with_data(config, Path(samples.digest[:12]).resolve()), Path(model.uri).resolve()
    )  # as the CLI
    assert run_draft(by_names, json=True) == 0
    assert [Ref.model_validate(ref) for ref in printed(capsys)["outputs"]] == refs
    after = {ref.uri: read_manifest(place.store, ref.uri).created for ref in refs}
    assert [uri for uri in before if before[uri] != after[uri]] == [refs[1].uri]

    assert run_export(config, [ref.uri for ref in refs], "parquet", tmp_path / "out", json=True) == 0
    assert printed(capsys)["counts"]["ok"] >= count * 2
    asking = config.expert.model_copy(update={"max_requests": 1, "concurrency": 1})
    limited = config.model_copy(update={"expert": asking})
    assert run_revise(limited, [ref.uri for ref in refs], None, json=True) == PARTIAL
    assert "expert.max_requests: 1 of 1" in printed(capsys)["error"]


def test_a_shard_without_a_good_row_is_no_failure(config, tmp_path, capsys):
    """Its one row has a prompt that is too long for the model. Of the others' noise the expert can make nothing."""
    file, images = photos(tmp_path)
    names = [json.loads(line)["file_name"] for line in file.read_text().splitlines()][:4]
    names = [name for name in names if name != "broken.png"][:3]
    turns = [{"id": str(number), "image": name, "conversations": [
        {"from": "human", "value": "<image>\n" + ("What is it? " * 400 if number == 2 else "What is it?")},
        {"from": "gpt", "value": "a red ring"},
    ]} for number, name in enumerate(names)]  # fmt: skip
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(turns))
    drafting = config.draft.model_copy(update={"shard_size": 1})
    known = with_data(config, file, images).model_copy(update={"draft": drafting})
    assert run_draft(known, json=True) == 0
    line = printed(capsys)
    assert line["counts"] == {"ok": 2 * 2, "rejected": {"prompt_too_long": 2}, "failed": {}}
    uris = [ref["uri"] for ref in line["outputs"]]
    assert len(uris) == 3
    assert run_revise(config, uris, None, json=True) == 1
    assert "none of the revision shards has a good row: rejected {'no_segment_aligned': 4}" in printed(capsys)["error"]


def test_the_precision_is_part_of_the_work_and_the_device_is_not(config, tmp_path, capsys):
    file, images = photos(tmp_path)
    known = with_data(config, file, images)
    found = []
    for draft, devices in (({}, ("auto",)), ({"dtype": "bf16"}, ("auto",)), ({"dtype": "bf16"}, ("cpu",))):
        chosen = known.draft.model_copy(update={"settings": ("8 freeze",), "shard_size": 99, **draft})
        compute = known.compute.model_copy(update={"devices": devices})
        assert run_draft(known.model_copy(update={"draft": chosen, "compute": compute}), json=True) == 0
        found.append(Ref.model_validate(printed(capsys)["outputs"][0]))
    assert found[0].uri != found[1].uri == found[2].uri
    texts = [read_table(workplace(config.place).store, ref, Drafts)["text"].to_list() for ref in found[:2]]
    assert texts[0] != texts[1]


def test_the_prompt_attention_that_is_asked_for_is_that_of_the_model_that_drafts(config, tmp_path, capsys):
    place, drafting = workplace(config.place), config.draft.model_copy(update={"settings": ("8 freeze",)})
    known = with_data(config, *photos(tmp_path)).model_copy(update={"draft": drafting})
    found = []
    for asked in (None, "prefix"):
        model = known.model.model_copy(update={"prompt_attention": asked})
        assert run_draft(known.model_copy(update={"model": model}), json=True) == 0
        drafts = Ref.model_validate(printed(capsys)["outputs"][0])
        (kept,) = read_manifest(place.store, drafts.uri).parents["model"]
        found.append(load_denoiser(place.local_folder(kept)).prompt_attention)
    assert found == ["full", "prefix"]


def test_what_cannot_be_drafted_is_said(config, tmp_path, capsys):
    file, images = photos(tmp_path)
    with pytest.raises(ConfigError, match="name the model and the data"):
        run_draft(with_model(with_data(config, file, images), ""), json=False)
    with pytest.raises(ConfigError, match="name the model and the data"):
        run_draft(config, json=False)
    with pytest.raises(InputError, match="no folder 'nowhere', and 0 outputs"):
        run_draft(with_model(with_data(config, file, images), "nowhere"), json=False)
    with pytest.raises(InputError, match="no file 'nothing', and 0 outputs"):
        run_draft(with_data(config, "nothing"), json=False)
    for name, kind, message in (
        ("llada_tiny", ConfigError, "reads no images"), ("empty", InputError, "is no checkpoint")
    ):  # fmt: skip
        folder = published(tmp_path, name) if name != "empty" else tmp_path / "empty"
        folder.mkdir(exist_ok=True)
        with pytest.raises(kind, match=message):
            run_draft(with_model(with_data(config, file, images), folder), json=True)
    absent = config.compute.model_copy(update={"devices": ("cuda:99",)})
    with pytest.raises(ConfigError, match="cuda:99 is not there"):
        run_draft(with_data(config, file, images).model_copy(update={"compute": absent}), json=True)
    assert not _outputs(config), "all that is said before anything is taken in"
    assert run_draft(with_data(config, file, images), json=True) == 0
    (samples,) = (ref for ref in _outputs(config) if ref.startswith("datasets/ingest"))
    with pytest.raises(InputError, match="is a dataset, but a checkpoint is needed"):
        run_draft(with_model(with_data(config, samples), samples), json=False)


def _outputs(config: RunConfig) -> set[str]:
    return {"/".join(path.split("/")[:2]) for path in workplace(config.place).store.list("datasets")}


def test_short_names_stand_for_keys():
    written = expanded(("draft", "--model", "m", "--data=d", "--device", "cuda:1", "--dtype", "bf16"))
    assert written == [
        "draft", "--model.checkpoint", "m", "--data.source", "auto", "--data.path", "d",
        "--compute.devices", "cuda:1", "--draft.dtype", "bf16",
    ]  # fmt: skip
    assert expanded(("draft", "--gen_length", "9"))[1:] == expanded(("draft", "--max-new-tokens", "9"))[1:]


def test_a_published_model_drafts_by_its_own_preset_and_one_of_the_store_by_that_of_its_world(tmp_path):
    folder, made_here = published(tmp_path, "llada_tiny"), tmp_path / "scenes"
    made_here.mkdir()
    (made_here / "config.json").write_text('{"model_type": "scene_denoiser"}')
    assert preset(["draft", "--model", str(folder), "--data", "d"]) == "checkpoint"
    assert preset(["draft", f"--model.checkpoint={folder}"]) == "checkpoint"
    for model in (str(made_here), "checkpoints/finetune-1f2e3d4c", "1f2e3d4c"):
        assert preset(["draft", "--model", model, "--data", "d"]) == "scenes"
    assert preset(["run", "--model", str(folder)]) == preset(["draft"]) == "scenes"


def test_what_is_said_of_prompts_is_for_a_checkpoint_that_comes_in(config, tmp_path, capsys):
    known = with_data(config, *photos(tmp_path))
    assert run_draft(known, json=True) == 0
    (name,) = {"/".join(path.split("/")[:2]) for path in workplace(config.place).store.list("checkpoints")}
    stored = with_model(known, name)
    model = stored.model.model_copy(update={"system": "Be brief."})
    with pytest.raises(ConfigError, match="this one is there as it is"):
        run_draft(stored.model_copy(update={"model": model}), json=True)
    assert run_draft(stored, json=True) == 0
    assert f"{name} is a llava_llada; the configuration scenes has it answer in 8 tokens" in capsys.readouterr().err
    assert run_draft(stored.model_copy(update={"name": "photos"}), json=True) == 0
    assert "has it answer in" not in capsys.readouterr().err


def test_a_limit_drafts_the_first_samples_alone(config, tmp_path, capsys):
    known, place = with_data(config, *photos(tmp_path)), workplace(config.place)
    assert run_draft(known, limit=4, json=True) == 0
    line = printed(capsys)
    refs = [Ref.model_validate(ref) for ref in line["outputs"]]
    assert (line["counts"]["ok"], len(refs)) == (4 * 2, 2), "a whole shard, and one of the rest"
    (samples,) = read_manifest(place.store, refs[0].uri).parents["samples"]
    first = read_table(place.store, samples, Samples)["sample_id"].to_list()[:4]
    assert set(read_table(place.store, refs, Drafts)["sample_id"]) == set(first)

    assert run_draft(known, limit=99, json=True) == 0
    line = printed(capsys)
    assert line["counts"]["ok"] == len(list(IMAGES.iterdir())) * 2
    assert line["outputs"][0]["uri"] == refs[0].uri


def test_the_command_takes_a_limit(monkeypatch):
    seen: list[int | None] = []
    monkeypatch.setattr("flows.stages.run_draft", lambda config, *, limit, json: seen.append(limit) or 0)
    for given in (["--limit", "4"], []):
        cli.app.meta(["draft", *given], exit_on_error=False, result_action="return_value")
    assert seen == [4, None]


def test_a_block_length_is_that_of_all_settings():
    config = RunConfig(draft=DraftSettings(settings=("4 refine", "8 freeze block_length=4")))
    assert in_blocks(config, None) == config
    named = in_blocks(config, 16).draft.settings
    assert named == ("4 refine block_length=16", "8 freeze block_length=16")
    assert all(DecodeSettings.parse(name).block_length == 16 for name in named)


def test_a_dataset_without_samples_is_refused(config, tmp_path, capsys):
    file, images = photos(tmp_path)
    assert run_draft(with_data(config, file, images), json=True) == 0
    drafts = printed(capsys)["outputs"][0]["uri"]
    assert run_draft(with_data(config, drafts), json=True) == 1
    assert "holds no samples" in printed(capsys)["error"]
    assert read_table(workplace(config.place).store, [], Samples).is_empty()
