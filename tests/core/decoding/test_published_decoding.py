"""Token ids that the published decoders gave, from our loop by its settings alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from core.decoding.settings import DecodeSettings
from core.decoding.strategies import strategies
from core.models.denoiser import load_denoiser
from tests.core.decoding.published_cases import NAMES, all_cases, decode_case, outputs_of, prompts_of, settings_of
from tests.core.models.checkpoints import DATA, golden, published


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("checkpoints")
    return {name: load_denoiser(published(folder, name)) for name in NAMES}


@pytest.mark.parametrize(("name", "case"), [pytest.param(*each, id=each[1]["name"]) for each in all_cases()])
def test_our_loop_writes_the_published_tokens(models, name, case):
    settings = settings_of(name, case)
    assert DecodeSettings.parse(settings.name) == settings
    ours = decode_case(models[name], name, case, settings)
    published_ids = outputs_of(name, case, prompts_of(golden(name), case["prompt"]))
    if settings.stop:  # the published code cuts the response off there; ours is filled with the end of text
        end = models[name].tokenizer.eos_token_id
        published_ids = [ids + [end] * (len(ours[0]) - len(ids)) for ids in published_ids]
    assert ours == published_ids


def test_the_committed_parity_table_has_every_case() -> None:
    found = json.loads((Path(__file__).parents[2] / "results" / "parity.json").read_text())
    assert [(row["fixture"], row["case"]) for row in found["decodings"]] == [
        (n, case["name"]) for n, case in all_cases()
    ]
    assert [row["settings"] for row in found["decodings"]] == [settings_of(*each).name for each in all_cases()]
    assert all(row["equal"] for row in found["decodings"])
    assert max(row["max_error"] for row in found["errors"]) < 5e-5


@pytest.mark.parametrize(
    "name", ["4 freeze", "4+3 refine", "4 refine cfg_scale=1.5", "2 freeze threshold=0.4", "8 freeze temperature=0.5"]
)
def test_rows_of_no_image_one_and_two_share_a_batch(models, name):
    model = models["llada_v_tiny"]
    pictures = ["wide_200x110", "tall_50x90", "square_56x56", "square_56x56"]
    images = [np.asarray(Image.open(DATA / "llada_v_tiny" / f"image_{one}.png").convert("RGB")) for one in pictures]
    counts = [1, 0, 2, 1]
    prompts = [[7, -200, 30, 12], [9, 8, 40], [-200, 11, 5, -200, 77, 3, 60], [-200, 21]]
    chosen, length, streams = strategies(DecodeSettings.parse(name), model), 16, [5, 6, 7, 8]

    def decoded(rows: slice):
        shown = images[sum(counts[: rows.start]) : sum(counts[: rows.stop])]
        with torch.inference_mode():
            features = model.image_features(model.pixels(shown)).grouped(counts[rows]) if shown else None
        canvas = chosen.canvas(model, prompts[rows], response_length=length, streams=streams[rows])
        return chosen.decode(chosen.reader(model, features, response_length=length), canvas, response_length=length)

    together = decoded(slice(0, 4))
    for row in range(4):
        alone = decoded(slice(row, row + 1))
        assert alone.token_ids_BR[0].tolist() == together.token_ids_BR[row].tolist()
        assert alone.nfe_B[0] == together.nfe_B[row]
    assert len({tuple(ids) for ids in together.token_ids_BR.tolist()}) == len(prompts)


def test_the_blind_look_of_guidance_sees_masks_in_the_place_of_prompt_and_image(models):
    model = models["llada_v_tiny"]
    chosen = strategies(DecodeSettings.parse("8 freeze cfg_scale=1.0"), model)
    image = np.asarray(Image.open(DATA / "llada_v_tiny" / "image_square_56x56.png").convert("RGB"))
    with torch.inference_mode():
        features = model.image_features(model.pixels([image]))
        canvas = chosen.canvas(model, [[7, -200, 30]], response_length=8)
        asked_N, step = torch.arange(3, 11), chosen.schedule.plan(8)[0]
        reader = chosen.reader(model, features, response_length=8)
        reader.arrange(canvas)
        blind_ND = reader.hidden(canvas, step, asked_N).chunk(2, dim=1)[1]
        masks = torch.full((1, 2 + features.lengths[0] + 8), 500)
        expected = model.hidden(masks, valid_BL=torch.ones_like(masks, dtype=torch.bool), features_BND=None)[0, -8:]
    assert torch.allclose(blind_ND, expected, atol=1e-5)
