"""Decoding on a CUDA device: the tokens of the CPU in fp32, every way of decoding in bf16, and too little memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from core.decoding.loop import Decoded
from core.decoding.reading import Whole
from core.decoding.room import Room
from core.decoding.settings import DecodeSettings
from core.decoding.state import mask_token
from core.models.denoiser import load_denoiser
from tests.core import test_drafting_with_images as pictures
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
)
from tests.core.models.checkpoints import published

MIB = 2**20
CACHES = ("", " cache=prefix refresh=3", " cache=dual refresh=3")
EARLY = (
    LEAVING,
    SITTING_OUT,
    "1 freeze threshold=0.2",
    "3 refine stop=A",
    "3+4 refine stop=A cfg_scale=0.5",
    "2 refine block_length=8 threshold=0.2",
)


@pytest.fixture(scope="module", params=["llada_v_tiny", "dream_tiny"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published(tmp_path_factory.mktemp("checkpoints"), request.param)


@pytest.fixture
def cramped() -> Iterator[None]:
    """The process may have 400 MiB more than it has."""
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 400 * MIB) / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def decoded(model: Any, name: str, *, whole: bool = False) -> Decoded:
    settings = DecodeSettings.parse(name)
    with torch.inference_mode():
        features = features_for(model)
    reader = Whole(model=model, features_BND=features) if whole else reader_for(model, settings, features)
    return run(model, reader, canvas_for(model, prompts_for(model), settings), settings)


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["full", "prefix"])
@pytest.mark.parametrize("name", EXACT)
def test_in_fp32_the_tokens_are_those_of_a_cpu(folder: Path, name: str, attention: Any) -> None:
    found: list[Decoded] = []
    for device in ("cpu", "cuda"):
        model = load_denoiser(folder, device=device, dtype=torch.float32)
        model.attend(attention)
        found.append(decoded(model, name))
    assert found[0].token_ids_BR.tolist() == found[1].token_ids_BR.tolist()
    assert found[0].forwards_B.tolist() == found[1].forwards_B.tolist()


@pytest.mark.gpu
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("attention", ["full", "prefix"])
@pytest.mark.parametrize("name", EARLY)
def test_in_bf16_every_way_of_keeping_and_leaving_ends_without_a_mask(
    folder: Path, name: str, attention: Any, cache: str
) -> None:
    model = load_denoiser(folder, device="cuda", dtype=torch.bfloat16)
    model.attend(attention)
    found = decoded(model, name + cache)
    assert found.token_ids_BR.shape == (3, LENGTH)
    assert not (found.token_ids_BR == mask_token(model)).any()
    assert (found.forwards_B <= found.nfe_B).all()
    assert (found.forwards_B > 0).all()


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["4 freeze", LEAVING, SITTING_OUT])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_prompt_cache_gives_what_forwards_of_everything_give(folder: Path, name: str, dtype: torch.dtype) -> None:
    """In bf16 the two run other kernels, whose rounding moves a token here and there, and with it those after it."""
    model = load_denoiser(folder, device="cuda", dtype=dtype)
    model.attend("prefix")
    whole, cached = decoded(model, name, whole=True), decoded(model, name)
    same_BR = whole.token_ids_BR == cached.token_ids_BR
    assert same_BR.all() if dtype == torch.float32 else same_BR.float().mean() > 0.5


@pytest.mark.gpu
def test_the_device_running_out_of_memory_halves_the_batch(tmp_path: Path, cramped: None) -> None:
    """A forward takes 64 MiB a row besides what it takes: four rows fit, eight do not."""
    model = load_denoiser(published(tmp_path, "llada_v_tiny"), device="cuda", dtype=torch.float32)
    samples = pictures.rows([*pictures.SIZES, None] * 2)
    expected = pictures.drafted(model, samples, batch_size=2).drafts
    encode, told = model.layout.encode, []

    def greedy(language: Any, embeddings_BTD: Tensor, seen: Tensor | None) -> Tensor:
        torch.empty(len(embeddings_BTD) * 64 * MIB, dtype=torch.uint8, device="cuda")
        return encode(language, embeddings_BTD, seen)

    object.__setattr__(model.layout, "encode", greedy)
    room = Room(tell=told.append)
    assert pictures.drafted(model, samples, room=room).drafts.equals(expected)
    assert (room.halvings, room.rows) == (1, 4), told
