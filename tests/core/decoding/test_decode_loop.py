import numpy as np
import polars as pl
import pytest
import torch

from core.decoding.loop import Decoded
from core.decoding.settings import DecodeSettings
from core.decoding.strategies import strategies
from core.decoding.trace import Recorder, replay
from core.errors import Interrupted
from core.interruption import interrupt, resume
from core.models.scene_denoiser import SceneDenoiser, SceneDenoiserConfig
from core.models.tokenizer import build_word_tokenizer
from core.seeds import stream_key
from tests.core.decoding.literal import decode_one
from tests.core.decoding.tiny import TinyDenoiser, random_prompts

LENGTH = 20
SETTINGS = (
    "1 freeze",
    "3 freeze",
    "8 freeze block_length=12",
    "1 refine",
    "3 refine",
    "7+4 refine",
    "20+9 refine",
    "3+2 refine block_length=7",
    "2+1 refine start=0.5",
    "3+1 refine topk=0.3",
    "3+3 refine margin=0.2",
    "4+2 refine block_length=10 start=0.4 topk=0.5 margin=0.05",
)
OPTIONS = (
    "steps=7 freeze block_length=8",
    "steps=9+2 refine schedule=linear",
    "steps=24 freeze schedule=dream",
    "steps=24 refine schedule=dream start=0.5",
    "steps=6+2 refine schedule=dream block_length=10 eps=0.1",
    "steps=8 freeze schedule=origin",
    "4+1 refine schedule=origin block_length=10 seed=5",
    "3 freeze confidence=margin",
    "3+1 refine confidence=entropy topk=0.5",
    "3 freeze softmax=all grid_bits=24",
    "4 refine suppress=w00,w01,5,6,7,8,9,10,11,12",
    "4 freeze late=w03,w11,20",
    "4+2 refine cfg_scale=1.5",
    "5 freeze cfg_scale=0.5 beginning=w01,w02 suffix=w03",
    "2 freeze threshold=0.3",
    "steps=24 freeze schedule=dream threshold=0.3",
    "2 refine threshold=0.5 block_length=8",
    "1+3 refine threshold=0.6 block_length=5",
    "4 freeze temperature=0.7",
    "4+3 refine temperature=1.5 seed=3",
    "3 freeze beginning=w01,w02,w03 block_length=4",
    "3+2 refine beginning=w05,w06 suffix=w09",
    "4 freeze stop=w01,w02,w04,w08",
    '3 refine stop="w01 w01",w14,w15,w20 block_length=5',
    "4+2 refine stop=w04,w07,w19",
    "3 refine predict_mask=true softmax=all",
    "5 freeze predict_mask=true block_length=10",
)
MIXED = [5, 2, 9, 5, 1, 7, 12, 5]


def run(model, prompts, name: str, *, features=None, recorder: Recorder | None = None, streams=None) -> Decoded:
    chosen = strategies(DecodeSettings.parse(name), model)
    canvas = chosen.canvas(model, prompts, response_length=LENGTH, streams=streams)
    return chosen.decode(
        chosen.reader(model, features, response_length=LENGTH), canvas, response_length=LENGTH, recorder=recorder
    )


def test_an_interruption_ends_a_decoding_before_its_next_step(monkeypatch):
    model = TinyDenoiser()
    hidden = model.hidden

    def interrupting(*args, **how):
        if len(model.rows_seen) == 2:
            interrupt()
        return hidden(*args, **how)

    monkeypatch.setattr(model, "hidden", interrupting)
    try:
        with pytest.raises(Interrupted):
            run(model, random_prompts([5, 2]), "4 freeze")
    finally:
        resume()
    assert model.rows_seen == [2, 2, 2]


def some_features(model: TinyDenoiser, rows: int) -> torch.Tensor:
    images = [np.random.default_rng(row).integers(0, 256, (2, 2, 3), dtype=np.uint8) for row in range(rows)]
    with torch.no_grad():
        return model.image_features(model.pixels(images))


@pytest.mark.parametrize("name", [*SETTINGS, *OPTIONS])
def test_batched_loop_equals_the_literal_one_step_by_step(name: str) -> None:
    model, prompts = TinyDenoiser(), random_prompts(MIXED)
    features, recorder = some_features(model, len(prompts)), Recorder()
    settings, mask = DecodeSettings.parse(name), model.tokenizer.mask_token_id
    if settings.predict_mask:
        model.bias[mask] = 3.0
    streams = [stream_key(settings.seed, row) for row in range(len(prompts))]
    fast = run(model, prompts, name, features=features, recorder=recorder, streams=streams)
    writes = recorder.frame().rename({"new": "token"})
    for row, prompt in enumerate(prompts):
        literal = decode_one(model, prompt, LENGTH, settings, features[row : row + 1], streams[row])
        assert fast.nfe_B[row] * settings.forwards_per_step == literal.forwards
        of_row = writes.filter(pl.col("row") == row).to_dicts()
        for index, state in zip(literal.indices, literal.states, strict=True):
            assert replay(of_row, response_length=LENGTH, mask_id=mask, steps=index + 1).tolist() == state
        assert fast.token_ids_BR[row].tolist() == literal.states[-1]


@pytest.mark.parametrize("name", ["1 freeze", "4 freeze", "2 refine", "5+6 refine", "3+3 refine margin=0.2", *OPTIONS])
@pytest.mark.parametrize("vision", [True, False])
def test_batch_composition_does_not_change_tokens(name: str, vision: bool) -> None:
    model = TinyDenoiser(seed=3)
    prompts = random_prompts(MIXED * 2, seed=1)
    features = some_features(model, len(prompts)) if vision else None
    streams = [stream_key("sample", row) for row in range(len(prompts))]
    decoded = run(model, prompts, name, features=features, streams=streams)
    alone = [
        run(
            model, [prompt], name, features=None if features is None else features[row : row + 1],
            streams=streams[row : row + 1],
        )
        for row, prompt in enumerate(prompts)
    ]  # fmt: skip
    together = decoded.token_ids_BR
    assert torch.equal(together, torch.cat([one.token_ids_BR for one in alone]))
    assert torch.equal(decoded.nfe_B, torch.cat([one.nfe_B for one in alone]))
    assert torch.equal(decoded.forwards_B, torch.cat([one.forwards_B for one in alone]))
    assert len({tuple(row) for row in together.tolist()}) >= len(prompts) // 2  # the rows do differ


def test_frozen_tokens_are_revealed_once_and_stay() -> None:
    recorder = Recorder()
    model = TinyDenoiser()
    decoded = run(model, random_prompts(MIXED), "3 freeze", recorder=recorder)
    writes = recorder.frame()
    assert (writes["old"] == model.tokenizer.mask_token_id).all()
    assert writes.group_by("row", "position").len()["len"].to_list() == [1] * (LENGTH * len(MIXED))
    assert (
        writes["new"].to_list()
        == decoded.token_ids_BR.flatten()[(writes["row"] * LENGTH + writes["position"]).to_numpy()].tolist()
    )


def test_refining_overwrites_visible_tokens() -> None:
    recorder, model = Recorder(), TinyDenoiser()
    run(model, random_prompts(MIXED), "3 refine", recorder=recorder)
    assert (recorder.frame()["old"] != model.tokenizer.mask_token_id).sum() > 20


def test_mask_and_padding_are_never_written_however_probable() -> None:
    model, recorder = TinyDenoiser(), Recorder()
    forbidden = [model.tokenizer.mask_token_id, model.tokenizer.pad_token_id]
    model.bias[forbidden] = 100.0
    decoded = run(model, random_prompts(MIXED), "3+2 refine", recorder=recorder)
    assert not torch.isin(decoded.token_ids_BR, torch.tensor(forbidden)).any()
    assert not recorder.frame()["new"].is_in(forbidden).any()


def test_padding_that_is_also_end_of_text_may_be_written() -> None:
    model = TinyDenoiser()
    model.tokenizer.pad_token = model.tokenizer.eos_token
    model.bias[model.tokenizer.eos_token_id] = 100.0
    assert (run(model, random_prompts(MIXED), "3 freeze").token_ids_BR == model.tokenizer.eos_token_id).all()


def test_rows_at_a_fixed_point_leave_the_batch_without_changing_anything() -> None:
    model = TinyDenoiser(seed=1, copy=1.0)
    prompts = random_prompts([4] * 12, seed=5)
    decoded = run(model, prompts, "4+12 refine")
    assert decoded.nfe_B.tolist() == [5 + 12] * 12
    assert sum(model.rows_seen) == int(decoded.forwards_B.sum())
    early = decoded.forwards_B < decoded.nfe_B
    assert early.any(), "no row came to rest: choose another seed"
    assert not early.all(), "every row came to rest: choose another seed"
    assert model.rows_seen == sorted(model.rows_seen, reverse=True)
    for row in range(len(prompts)):
        literal = decode_one(model, prompts[row], LENGTH, DecodeSettings.parse("4+12 refine"))
        assert decoded.token_ids_BR[row].tolist() == literal.states[-1]


def test_the_head_reads_only_positions_that_may_change() -> None:
    rows = len(MIXED)
    frozen, refined = TinyDenoiser(), TinyDenoiser()
    run(frozen, random_prompts(MIXED), "5 freeze")
    assert frozen.scored == [rows * masks for masks in (20, 15, 10, 5)]
    run(refined, random_prompts(MIXED), "5 refine start=0.5")
    assert refined.scored == [rows * asked for asked in (20, 15, 20, 20)]
    blocks = TinyDenoiser()
    run(blocks, random_prompts(MIXED), "5 refine block_length=10")
    assert blocks.scored == [rows * 10] * 4


def test_head_in_chunks_gives_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = random_prompts(MIXED)
    whole = run(TinyDenoiser(), prompts, "3+1 refine").token_ids_BR
    monkeypatch.setattr("core.decoding.loop._HEAD_ROWS", 7)
    model = TinyDenoiser()
    assert torch.equal(run(model, prompts, "3+1 refine").token_ids_BR, whole)
    assert max(model.scored) == 7


def test_recorded_confidence_is_the_softmax_probability_of_the_new_token() -> None:
    model, recorder = TinyDenoiser(), Recorder()
    prompt = random_prompts([6])
    run(model, prompt, "20 freeze", recorder=recorder)
    ids = torch.tensor([prompt[0] + [model.tokenizer.mask_token_id] * LENGTH])
    with torch.no_grad():
        logits = model.logits(model.hidden(ids, valid_BL=ids >= 0, features_BND=None)[0, 6:])
        logits[:, [model.tokenizer.mask_token_id, model.tokenizer.pad_token_id]] = -torch.inf
        expected = logits.softmax(-1).max(-1).values
    np.testing.assert_allclose(recorder.frame()["confidence"].to_numpy(), expected.numpy(), rtol=1e-5)


@pytest.mark.parametrize("name", ["6 freeze", "4+3 refine"])
def test_the_scene_model_decodes_the_same_alone_in_a_batch_and_literally(name: str) -> None:
    tokenizer = build_word_tokenizer([f"w{index}" for index in range(40)])
    config = SceneDenoiserConfig(hidden_size=32, num_hidden_layers=2, region_layer=1, patch_hidden_size=16)
    model = SceneDenoiser.create(config, tokenizer, seed=0)
    with torch.no_grad():  # sharper than at birth, so that rows and steps differ
        model.token_embedding.weight.normal_(generator=torch.Generator().manual_seed(0))
        model.lm_head.weight.mul_(8)
    prompts = random_prompts([3, 6, 3, 9, 1])
    images = [np.random.default_rng(row).integers(0, 256, (48, 48, 3), dtype=np.uint8) for row in range(len(prompts))]
    with torch.no_grad():
        features = model.image_features(model.pixels(images))
    together = run(model, prompts, name, features=features).token_ids_BR
    assert len({tuple(row) for row in together.tolist()}) == len(prompts)
    for row, prompt in enumerate(prompts):
        one = features[row : row + 1]
        assert torch.equal(run(model, [prompt], name, features=one).token_ids_BR[0], together[row])
        literal = decode_one(model, prompt, LENGTH, DecodeSettings.parse(name), one)
        assert literal.states[-1] == together[row].tolist()
