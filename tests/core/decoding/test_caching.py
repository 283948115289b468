"""Decoding with kept keys and values against decoding without: the same tokens where the cache is exact."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from core.decoding.caching import PromptCache
from core.decoding.guidance import Guided
from core.decoding.loop import Decoded
from core.decoding.reading import Whole
from core.decoding.settings import DecodeSettings
from core.errors import ConfigError
from core.models.denoiser import load_denoiser
from core.models.key_values import KeyValues
from tests.core.decoding.scenarios import (
    EXACT,
    LEAVING,
    LENGTH,
    SITTING_OUT,
    canvas_for,
    features_for,
    prompts_for,
    reader_for,
    run,
    scene_model,
)
from tests.core.decoding.tiny import TinyDenoiser
from tests.core.models.checkpoints import published


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Any]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("checkpoints")
    names = ("llada_v_tiny", "dream_tiny")
    return {name: load_denoiser(published(folder, name)) for name in names} | {"scene": scene_model()}


@pytest.fixture(params=["llada_v_tiny", "dream_tiny", "scene"])
def model(models, request) -> Any:
    found = models[request.param]
    yield found
    found.attend("full")


def whole_and_chosen(model: Any, name: str, rows: Sequence[int] = (0, 1, 2)) -> tuple[Decoded, Decoded]:
    """Every step a forward of everything, and the reader that the settings choose."""
    settings, chosen = DecodeSettings.parse(name), torch.tensor(rows)
    with torch.inference_mode():
        features = features_for(model)
    features = None if features is None else features[chosen]
    canvas = canvas_for(model, prompts_for(model), settings).select(chosen)
    reader = reader_for(model, settings, features)
    assert not isinstance(reader, Whole)
    plain = Whole(model=model, features_BND=features)
    if settings.cfg_scale:
        assert not isinstance(reader.seen, Whole)
        plain = replace(reader, seen=plain, blind=Whole(model=model))
    whole = run(model, plain, canvas, settings)
    return whole, run(model, reader, canvas, settings)


@pytest.mark.parametrize("name", EXACT)
def test_with_prefix_attention_the_prompt_is_read_once_and_the_tokens_are_the_same(model, name):
    model.attend("prefix")
    whole, cached = whole_and_chosen(model, name)
    assert whole.token_ids_BR.tolist() == cached.token_ids_BR.tolist()
    assert whole.forwards_B.tolist() == cached.forwards_B.tolist()
    assert whole.token_ids_BR.unique().numel() > 5, "the model says something"
    if name in (LEAVING, SITTING_OUT):
        assert cached.forwards_B.unique().numel() > 1, "what is kept follows the rows that stay"


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("attention", ["full", "prefix"])
@pytest.mark.parametrize("name", ["5+4 refine block_length=10", LEAVING])
def test_a_cache_that_is_refreshed_in_every_step_is_exact(model, name, cache, attention):
    model.attend(attention)
    whole, cached = whole_and_chosen(model, f"{name} cache={cache}")
    assert whole.token_ids_BR.tolist() == cached.token_ids_BR.tolist()
    assert whole.forwards_B.tolist() == cached.forwards_B.tolist()


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("attention", ["full", "prefix"])
def test_an_approximate_decoding_of_a_row_does_not_depend_on_the_batch(model, cache, attention):
    model.attend(attention)
    name = f"2 refine block_length=8 cache={cache} refresh=3"
    _, together = whole_and_chosen(model, name)
    for row in range(3):
        _, alone = whole_and_chosen(model, name, [row])
        assert alone.token_ids_BR.tolist() == together.token_ids_BR[row : row + 1].tolist()


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_what_is_stale_changes_tokens_and_a_stale_cache_is_therefore_off_by_default(models, cache):
    whole, stale = whole_and_chosen(models["llada_v_tiny"], f"1 refine block_length=12 cache={cache} refresh=12")
    assert (whole.token_ids_BR != stale.token_ids_BR).any()
    assert DecodeSettings().cache == "none"


@dataclass(frozen=True)
class Counting:
    """Notes how many positions of a row each forward runs."""

    inner: Any
    seen: list[int] = field(default_factory=list)

    def remember_prompt(self, ids_BL: Tensor, **known: Any) -> KeyValues:
        return self.inner.remember_prompt(ids_BL, **known)

    def remember(self, ids_BL: Tensor, **known: Any) -> tuple[Tensor, KeyValues]:
        hidden, found = self.inner.remember(ids_BL, **known)
        self.seen.append(found.width)
        return hidden, found

    def reread(self, ids_BL: Tensor, known: KeyValues, *, offset_B: Tensor, begin: int, end: int) -> Tensor:
        self.seen.append(end - begin)
        return self.inner.reread(ids_BL, known, offset_B=offset_B, begin=begin, end=end)


@pytest.mark.parametrize(
    ("attention", "options", "positions"),
    [
        ("prefix", "", [24, 24, 24, 24, 24, 24, 24]),
        ("prefix", " cache=dual refresh=2", [24, 12, 24, 24, 12, 24, 24]),
        ("full", " cache=dual refresh=2", [39, 12, 39, 39, 12, 39, 39]),
        ("full", " cache=dual refresh=3", [39, 12, 12, 39, 12, 12, 39]),
        ("full", " cache=prefix refresh=3", [39, 24, 24, 39, 12, 12, 39]),
    ],
)
def test_a_step_runs_the_positions_that_its_cache_promises_and_no_others(models, attention, options, positions):
    """Two blocks of 12, three steps each, and an extra step; 15 positions of prompt."""
    model = models["scene"]
    model.attend(attention)
    settings = DecodeSettings.parse(f"4+1 refine block_length=12{options}")
    canvas = canvas_for(model, prompts_for(model, (15,)), settings)
    reader = reader_for(model, settings)
    counting = Counting(reader.memory)
    run(model, replace(reader, memory=counting), canvas, settings)
    model.attend("full")
    assert counting.seen == positions
    assert isinstance(reader, PromptCache) == (attention == "prefix")


def test_with_guidance_a_step_runs_the_response_alone_in_both_looks(models):
    model = models["scene"]
    model.attend("prefix")
    settings = DecodeSettings.parse("4+1 refine block_length=12 cfg_scale=0.5")
    reader = reader_for(model, settings)
    counting = Counting(reader.seen.memory)
    looks = {"seen": replace(reader.seen, memory=counting), "blind": replace(reader.blind, memory=counting)}
    run(model, replace(reader, **looks), canvas_for(model, prompts_for(model, (15,)), settings), settings)
    model.attend("full")
    assert counting.seen == [LENGTH] * 14


@hypothesis_settings(max_examples=12, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    tokens=st.integers(1, 9),
    block=st.integers(3, LENGTH),
    extra=st.integers(0, 3),
    schedule=st.sampled_from(["even", "origin"]),
    cfg_scale=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 3),
)
def test_the_prompt_cache_is_exact_for_any_prompts_and_plans(lengths, tokens, block, extra, schedule, cfg_scale, seed):
    torch.set_num_threads(1)
    model = scene_model(seed)
    model.attend("prefix")
    settings = DecodeSettings(
        tokens_per_step=tokens, extra_steps=extra, block_length=block, schedule=schedule, cfg_scale=cfg_scale
    )
    canvas = canvas_for(model, prompts_for(model, lengths), settings)
    whole = Guided(seen=Whole(model=model), blind=Whole(model=model), scale=cfg_scale)
    expected = run(model, whole if cfg_scale else whole.seen, canvas, settings)
    found = run(model, reader_for(model, settings), canvas, settings)
    assert found.token_ids_BR.tolist() == expected.token_ids_BR.tolist()


@pytest.mark.parametrize("stop", [2, 10, 22])
def test_the_prompt_cache_is_exact_for_rows_that_miss_a_block_or_more(stop):
    """A response that has ended takes no part in the blocks that follow."""
    model, settings = scene_model(), DecodeSettings.parse(f"{SITTING_OUT} stop={stop}")
    model.attend("prefix")
    canvas = canvas_for(model, prompts_for(model, (3, 9, 5, 7, 2)), settings)
    expected = run(model, Whole(model=model), canvas, settings)
    found = run(model, reader_for(model, settings), canvas, settings)
    assert found.token_ids_BR.tolist() == expected.token_ids_BR.tolist()
    assert found.forwards_B.min() <= 8 < found.forwards_B.max()


@pytest.mark.parametrize("lengths", [(3, 0), (16, 0, 2), (0, 0)])
@pytest.mark.parametrize("name", ["dream_tiny", "scene"])
def test_the_prompt_cache_is_exact_without_a_prompt(models, name, lengths):
    model, settings = models[name], DecodeSettings.parse("3+2 refine block_length=7")
    model.attend("prefix")
    try:
        canvas = canvas_for(model, prompts_for(model, lengths), settings)
        expected = run(model, Whole(model=model), canvas, settings)
        found = run(model, reader_for(model, settings), canvas, settings)
    finally:
        model.attend("full")
    assert found.token_ids_BR.tolist() == expected.token_ids_BR.tolist()


def test_a_model_that_keeps_no_keys_says_so():
    model = TinyDenoiser()
    with pytest.raises(ConfigError, match="keeps no keys and values"):
        reader_for(model, DecodeSettings(cache="dual", refresh=4))
    assert isinstance(reader_for(model, DecodeSettings()), Whole)
