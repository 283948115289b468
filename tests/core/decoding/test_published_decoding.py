"""Token ids that the published decoders gave, from our loop by its settings alone."""

import pytest
import torch

from core.decoding.settings import DecodeSettings
from core.models.denoiser import load_denoiser
from tests.core.decoding.published_cases import NAMES, all_cases, decode_case, outputs_of, prompts_of, settings_of
from tests.core.models.checkpoints import golden, published


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
