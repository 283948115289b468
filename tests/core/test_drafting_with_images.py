"""Drafts of a model that has images inside its text: the published LLaDA-V layout, with random weights."""

import json
from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
import torch

from core.corruption.responses import encode_prompts
from core.decoding.room import Room
from core.decoding.settings import DecodeSettings
from core.drafting import Drafted, draft
from core.errors import InputError, RowError
from core.models.denoiser import load_denoiser
from tests.core.models.checkpoints import published, write_config

SIZES = {f"{index:064x}": size for index, size in enumerate([(30, 30), (200, 60), (60, 200), (90, 90)])}
PROMPTS = ("Hi.", "What is this?", "And this one, then?")
LENGTH = 8
SETTINGS = (DecodeSettings(tokens_per_step=2), DecodeSettings(tokens_per_step=4, policy="freeze"))


@pytest.fixture
def folder(tmp_path):
    torch.set_num_threads(1)
    return published(tmp_path, "llada_v_tiny")


def load_image(sha: str) -> np.ndarray:
    width, height = SIZES[sha]
    return np.random.default_rng(int(sha, 16)).integers(0, 256, (height, width, 3), dtype=np.uint8)


def rows(shas: list[str | None], prompts: list[str] | None = None) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "sample_id": [f"s{index}" for index in range(len(shas))],
            "image_sha": pl.Series(shas, dtype=pl.String),
            "prompt": prompts
            or [("Hi.", "What is this?", "And this one, then?")[index % 3] for index in range(len(shas))],
            "reference": ["a red ring"] * len(shas),
        }
    )


def drafted(
    model, samples: pl.DataFrame, *, batch_size: int = 8, load: Callable = load_image, settings=SETTINGS, room=None
) -> Drafted:
    return draft(
        model, samples, settings, load_image=load, response_length=LENGTH, batch_size=batch_size, round_index=0,
        model_digest="x", trace_samples=0, room=room,
    )  # fmt: skip


class Spy:
    """Notes the rows and the width of every forward."""

    def __init__(self, model) -> None:
        self.seen: list[tuple[int, int]] = []
        encode = model.layout.encode

        def noting(language, embeddings_BTD, valid_BT):
            self.seen.append(tuple(embeddings_BTD.shape[:2]))
            return encode(language, embeddings_BTD, valid_BT)

        object.__setattr__(model.layout, "encode", noting)


def test_rows_with_and_without_images_share_batches_of_like_merged_length(folder):
    model = load_denoiser(folder)
    shas = [*SIZES, None, None, *SIZES, None, None]
    samples = rows(shas, ["x" * (100 if sha is None else 5) for sha in shas])
    alone = drafted(model, samples, batch_size=1)
    spy = Spy(model)
    together = drafted(model, samples, batch_size=4, settings=SETTINGS[:1])
    lengths = sorted(
        len(prompt) - (sha is not None) + (model.image_positions(*SIZES[sha]) if sha else 0)
        for prompt, sha in zip(alone.drafts["prompt_ids"].gather_every(2), shas, strict=True)
    )
    expected = [(4, max(lengths[start : start + 4]) + LENGTH) for start in range(0, 12, 4)]
    assert list(dict.fromkeys(spy.seen)) == expected
    assert together.drafts.equals(alone.drafts.filter(pl.col("policy") == "refine"))


def test_an_images_positions_are_told_from_its_size(folder):
    model = load_denoiser(folder)
    for size in [*SIZES.values(), (1, 1), (500, 3), (3, 500), (57, 56), (1024, 768)]:
        image = np.zeros((size[1], size[0], 3), dtype=np.uint8)
        features = model.image_features(model.pixels([image]))
        assert features.lengths == (model.image_positions(*size),)


def test_a_prompt_that_is_too_long_for_a_model_without_eyes_is_rejected_too(tmp_path):
    folder = published(tmp_path, "llada_tiny", max_sequence_length=100)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["model_max_length"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    model = load_denoiser(folder)
    assert model.tokenizer.model_max_length > 10**9
    found = drafted(model, rows([None] * 3, ["Hi.", "x" * 95, "x"]), settings=SETTINGS[:1])
    assert found.drafts["sample_id"].to_list() == ["s0", "s2"]
    assert found.rejects.select("row_id", "reason").rows() == [("s1/r0/2 refine", "prompt_too_long")]


def test_a_prompt_that_is_too_long_with_its_image_is_rejected_before_a_forward(folder):
    write_config(folder, max_position_embeddings=100)
    model = load_denoiser(folder)
    spy = Spy(model)
    small, wide = list(SIZES)[:2]
    assert model.image_positions(*SIZES[small]) < 40 < 80 < model.image_positions(*SIZES[wide])
    found = drafted(model, rows([small, wide, None], ["a", "a", "a" * 120]), settings=SETTINGS[:1])
    assert found.drafts["sample_id"].to_list() == ["s0"]
    assert found.rejects.select("row_id", "reason").rows() == [
        ("s1/r0/2 refine", "prompt_too_long"),
        ("s2/r0/2 refine", "prompt_too_long"),
    ]
    assert "the model reads 100" in found.rejects["detail"][0]
    assert {count for count, _ in spy.seen} == {1}


def test_rows_that_cannot_be_used_are_rejected_with_the_reason(folder):
    model = load_denoiser(folder)
    broken, flat, good = list(SIZES)[:3]

    def load(sha: str) -> np.ndarray:
        if sha == broken:
            raise RowError("truncated_image", "half of it")
        return np.zeros((8, 8), dtype=np.uint8) if sha == flat else load_image(sha)

    found = drafted(model, rows([broken, flat, good, None]), load=load, settings=SETTINGS[:1])
    assert found.drafts["sample_id"].to_list() == ["s2", "s3"]
    assert found.rejects.select("row_id", "reason").rows() == [
        ("s0/r0/2 refine", "truncated_image"),
        ("s1/r0/2 refine", "unusable_image"),
    ]
    assert "(8, 8)" in found.rejects["detail"][1]


def test_a_template_that_shows_an_image_twice_makes_rejects_and_no_crash(folder):
    model = load_denoiser(folder)
    model.tokenizer.init_kwargs["image_placeholder_id"] = 48  # of a tokenizer where "<image>" is an ordinary token
    model.layout.__dict__["placeholder"] = 48
    spelled = model.tokenizer.decode([48])
    samples = rows([next(iter(SIZES)), next(iter(SIZES)), None], ["Hi.", f"Hi {spelled}.", f"Hi {spelled}."])
    found = drafted(model, samples, settings=SETTINGS[:1])
    assert found.drafts["sample_id"].to_list() == ["s0"]
    assert found.rejects.select("reason", "detail").rows() == [
        ("image_placeholders", "2 places in the prompt for 1 images"),
        ("image_placeholders", "1 places in the prompt for 0 images"),
    ]


def test_a_model_without_eyes_says_so_once(tmp_path):
    model = load_denoiser(published(tmp_path, "llada_tiny"))
    with pytest.raises(InputError, match="reads no images"):
        drafted(model, rows([next(iter(SIZES)), None]))
    assert drafted(model, rows([None, None])).drafts.height == 4


def test_in_bf16_drafts_come_out_and_a_smaller_batch_may_change_few(folder):
    model = load_denoiser(folder, dtype=torch.bfloat16)
    samples = rows([*SIZES, None] * 2)
    alone, together = drafted(model, samples, batch_size=1).drafts, drafted(model, samples).drafts
    assert alone.height == together.height == samples.height * 2
    assert alone["token_ids"].list.len().unique().to_list() == [LENGTH]
    pairs = zip(alone["token_ids"].to_list(), together["token_ids"].to_list(), strict=True)
    assert sum(one != other for one, other in pairs) <= alone.height // 5


def test_a_prompt_is_encoded_as_the_chat_template_has_it(folder):
    tokenizer = load_denoiser(folder).tokenizer
    ids = encode_prompts(tokenizer, pl.Series(["Hi."]), LENGTH, with_image=pl.Series([True])).ids_P[0].tolist()
    before, after = (tokenizer.decode(part) for part in (ids[: ids.index(-200)], ids[ids.index(-200) + 1 :]))
    assert before.endswith("<|start_header_id|>user<|end_header_id|>\n\n")
    assert after == "\nHi.<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"


def test_too_little_memory_halves_batches_of_rows_with_and_without_images(folder):
    model = load_denoiser(folder)
    samples = rows([*SIZES, None] * 2)
    expected = drafted(model, samples).drafts
    encode = model.layout.encode

    def cramped(language, embeddings_BTD, valid_BT):
        if len(embeddings_BTD) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return encode(language, embeddings_BTD, valid_BT)

    object.__setattr__(model.layout, "encode", cramped)
    room = Room()
    assert drafted(model, samples, room=room).drafts.equals(expected)
    assert room.halvings == 2
