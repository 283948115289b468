"""A published vision-language model through the stages: corrupt, train, resume, save, draft."""

from collections.abc import Sequence

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from core.corruption.mask import mask_rows
from core.corruption.responses import encode_prompts
from core.corruption.settings import MaskSettings, ObjectiveSettings
from core.decoding.loop import decode
from core.decoding.policies import Freeze
from core.decoding.reading import Whole
from core.decoding.schedule import Blocks, ConfidenceSchedule
from core.decoding.settings import DecodeSettings
from core.decoding.state import blank_canvas
from core.drafting import draft
from core.errors import InputError
from core.models.denoiser import load_denoiser, save_denoiser
from core.training.batches import TrainingBatches
from core.training.loop import train
from core.training.settings import TrainSettings
from data_contracts import Drafts, Samples, TrainingExamples
from tests.core.models.checkpoints import DATA, published

PICTURES = ("wide_200x110", "tall_50x90", "square_56x56")
SHAS = {f"{index:064x}": name for index, name in enumerate(PICTURES, start=1)}
LENGTH = 16


@pytest.fixture
def folder(tmp_path):
    torch.set_num_threads(1)
    return published(tmp_path, "llada_v_tiny")


def load_image(sha: str) -> np.ndarray:
    return np.asarray(Image.open(DATA / "llada_v_tiny" / f"image_{SHAS[sha]}.png").convert("RGB"))


def samples(shas: Sequence[str | None]) -> pl.DataFrame:
    rows = [
        {
            "sample_id": f"s{index}",
            "image_sha": sha,
            "prompt": ("Hi.", "What is this?")[index % 2],
            "reference": "a red ring",
            "split": "train",
            "source": "test",
            "grounding": None,
        }
        for index, sha in enumerate(shas)
    ]
    return Samples.validate(pl.DataFrame(rows, schema=Samples.create_empty().schema))


def test_drafts_do_not_depend_on_the_batch(folder):
    model = load_denoiser(folder)
    shas = [*SHAS, None, *SHAS, None]

    def drafted(batch_size: int) -> pl.DataFrame:
        settings = [DecodeSettings(tokens_per_step=4), DecodeSettings(tokens_per_step=8, policy="freeze")]
        found = draft(
            model, samples(shas), settings, load_image=load_image, response_length=LENGTH, batch_size=batch_size,
            round_index=0, model_digest="x", trace_samples=1,
        )  # fmt: skip
        assert found.rejects.height == 0
        return Drafts.validate(found.drafts)

    alone, together = drafted(1), drafted(8)
    assert alone.equals(together)
    with_image = alone["prompt_ids"].list.contains(-200)
    assert with_image.to_list() == alone["image_sha"].is_not_null().to_list()
    same_prompt = alone.filter(pl.col("sample_id").is_in(["s0", "s2"]), policy="freeze")
    assert same_prompt["token_ids"].n_unique() == 2, "the model sees its images"


def test_each_prompt_is_encoded_once_with_and_once_without_an_image(folder):
    tokenizer = load_denoiser(folder).tokenizer
    prompts = pl.Series(["Hi.", "Hi.", "Hi."])
    encoded = encode_prompts(tokenizer, prompts, LENGTH, with_image=pl.Series([True, False, True]))
    assert encoded.index_N.tolist() == [0, 1, 0]
    assert [(-200 in ids.tolist()) for ids in encoded.ids_P] == [True, False]


def test_training_goes_on_exactly_and_what_it_saves_can_be_loaded(folder, tmp_path):
    settings = TrainSettings(steps=4, batch_size=4, lr=1e-3, warmup=0, optimizer="adamw", checkpoint_every=2)
    objective = ObjectiveSettings()

    def trained(steps: int, checkpoints):
        model = load_denoiser(folder)
        rows = mask_rows(
            samples([*SHAS, *SHAS]), model.tokenizer, settings=MaskSettings(draws=2), response_length=LENGTH, seed=0
        ).examples
        TrainingExamples.validate(rows)
        batches = TrainingBatches(rows, model, load_image, batch_size=4, seed=0, objective=objective)

        class Some:
            def batch(self, step: int):
                if step >= steps:
                    raise InterruptedError
                return batches.batch(step)

        train(model, Some(), settings, checkpoint_dir=checkpoints)
        return model

    whole = trained(4, tmp_path / "whole")
    with pytest.raises(InterruptedError):
        trained(3, tmp_path / "cut")
    resumed = trained(4, tmp_path / "cut")
    first, second = dict(whole.named_parameters()), dict(resumed.named_parameters())
    assert all(torch.equal(p, second[name]) for name, p in first.items())
    untrained = dict(load_denoiser(folder).named_parameters())
    moved = {name for name, p in first.items() if not torch.equal(p, untrained[name])}
    assert {"vision.adapter.newline", "language.embed_tokens.weight", "head.weight"} <= moved
    assert not any("post_layernorm" in name for name in moved)
    save_denoiser(whole, tmp_path / "trained")
    again = dict(load_denoiser(tmp_path / "trained").named_parameters())
    assert all(torch.equal(p, again[name]) for name, p in first.items())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_stop_the_decoding(folder, value):
    model = load_denoiser(folder)
    with torch.no_grad():
        model.head.weight[7] = value
    canvas = blank_canvas([[5, 6]], response_length=4, mask_id=500, pad_id=491, device=model.device)
    with pytest.raises(InputError, match="not numbers"):
        decode(
            Whole(model=model), canvas, response_length=4,
            schedule=ConfidenceSchedule(blocks=Blocks(tokens_per_step=2)), policy=Freeze(),
        )  # fmt: skip
