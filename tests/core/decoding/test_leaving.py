"""Rows that leave where keys and values are kept: when they may, and what is then kept of the others."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from core.decoding.caching import PromptCache, StaleCache
from core.decoding.loop import Decoded
from core.decoding.settings import DecodeSettings
from core.models.denoiser import load_denoiser
from tests.core.decoding.scenarios import (
    LEAVING,
    SITTING_OUT,
    canvas_for,
    features_for,
    prompts_for,
    reader_for,
    run,
    scene_model,
)
from tests.core.models.checkpoints import published


@pytest.fixture(scope="module")
def llada_v(tmp_path_factory) -> Any:
    torch.set_num_threads(1)
    return load_denoiser(published(tmp_path_factory.mktemp("checkpoints"), "llada_v_tiny"))


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_a_row_leaves_only_when_a_reading_of_everything_left_it_unchanged(llada_v, monkeypatch, cache):
    """Whatever a stale look finds, the next reading may change: the tokens are those of rows that never leave."""
    model, settings = llada_v, DecodeSettings.parse(f"6+16 refine margin=0.5 cache={cache} refresh=3")
    with torch.inference_mode():
        features = features_for(model)
    canvas = canvas_for(model, prompts_for(model), settings)

    def decoded(repeats: Any) -> Decoded:
        monkeypatch.setattr(StaleCache, "repeats", repeats)
        return run(model, reader_for(model, settings, features), canvas, settings)

    found = decoded(StaleCache.repeats)
    never, rashly = decoded(lambda _: False), decoded(lambda _: True)
    assert found.token_ids_BR.tolist() == never.token_ids_BR.tolist()
    assert (found.forwards_B < never.forwards_B).any(), "it still leaves"
    assert (rashly.token_ids_BR != never.token_ids_BR).any(), "and too early would be another answer"


@pytest.mark.parametrize(("seed", "name"), [(0, "12+16 refine"), (6, "6+16 refine"), (11, "6+16 refine")])
def test_a_row_whose_suffix_is_stale_does_not_leave(monkeypatch, seed, name):
    """Extra steps do not run the suffix: a look that did not see it anew says nothing about later ones."""
    suffix = ",".join(str(token) for token in range(11, 23))
    model, settings = scene_model(seed), DecodeSettings.parse(f"{name} margin=0.8 suffix={suffix} cache=dual refresh=4")
    model.attend("prefix")
    canvas = canvas_for(model, prompts_for(model, (3, 9, 5, 7, 2)), settings)
    found = run(model, reader_for(model, settings), canvas, settings)
    monkeypatch.setattr(PromptCache, "repeats", lambda _: False)
    never = run(model, reader_for(model, settings), canvas, settings)
    assert found.token_ids_BR.tolist() == never.token_ids_BR.tolist()
    assert (found.forwards_B < never.forwards_B).any(), "it still leaves"


@contextmanager
def bytes_kept(heads: int, size: int) -> Iterator[list[int]]:
    """How many bytes of keys and values are alive whenever some are allocated or copied."""
    found: list[int] = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **kwargs or {})
            if func.overloadpacket.__name__ in ("zeros", "index") and made.ndim == 4:
                kept = [
                    one.untyped_storage()
                    for one in gc.get_objects()
                    if type(one) is Tensor and one.ndim == 4 and (one.shape[1], one.shape[3]) == (heads, size)
                ]
                found.append(sum({storage.data_ptr(): storage.nbytes() for storage in kept}.values()))
            return made

    gc.freeze()  # what there is already is not among the objects that are looked at
    try:
        with Watching():
            yield found
    finally:
        gc.unfreeze()


@pytest.mark.parametrize(
    ("attention", "name"),
    [
        ("prefix", LEAVING),
        ("prefix", SITTING_OUT),
        ("full", f"{SITTING_OUT} cache=dual refresh=3"),
    ],
)
def test_when_rows_leave_no_more_than_one_tensor_of_a_layer_is_there_twice(llada_v, attention, name):
    model, settings = llada_v, DecodeSettings.parse(name)
    model.attend(attention)
    layers, config = model.language.layers, model.language.config
    try:
        with torch.inference_mode():
            features = features_for(model)
        canvas = canvas_for(model, prompts_for(model), settings)
        with bytes_kept(config.num_key_value_heads, layers[0].self_attn.head_dim) as found:
            decoded = run(model, reader_for(model, settings, features), canvas, settings)
    finally:
        model.attend("full")
    assert decoded.forwards_B.unique().numel() > 1, "rows leave"
    whole = found[2 * len(layers) - 1]
    assert found[: 2 * len(layers)] == [whole * (one + 1) // (2 * len(layers)) for one in range(2 * len(layers))]
    assert max(found) <= whole * (1 + 1 / (2 * len(layers)))
