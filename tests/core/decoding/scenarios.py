"""Models, prompts and readers that the tests of kept keys and values, of leaving rows and of the GPU share."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from core.decoding.loop import Decoded
from core.decoding.reading import Reader
from core.decoding.settings import DecodeSettings
from core.decoding.state import Canvas
from core.decoding.strategies import strategies
from core.models.scene_denoiser import SceneDenoiser, SceneDenoiserConfig
from core.models.tokenizer import build_word_tokenizer
from tests.core.models.checkpoints import DATA

LENGTH = 24
PICTURES = ("wide_200x110", "tall_50x90", "square_56x56")
IMAGE = -200
LEAVING = "6+9 refine margin=0.8"
"""Rows come to rest in different extra steps, and leave the batch."""
SITTING_OUT = "1 refine schedule=origin block_length=8"
"""Rows are done with a block at different times, and are back when the next one begins."""
EXACT = (
    "4 freeze",
    "3 refine",
    "5+4 refine block_length=10",
    "2 freeze block_length=7",
    LEAVING,
    SITTING_OUT,
    "2 refine block_length=8 threshold=0.9",
    "4+1 refine beginning=7,9 suffix=11 cfg_scale=0.5",
)


def scene_model(seed: int = 0) -> SceneDenoiser:
    """With random weights, sharp enough to say different things at different places."""
    config = SceneDenoiserConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, region_layer=1, max_length=40,
        image_height=96, image_width=96,
    )  # fmt: skip
    model = SceneDenoiser.create(config, build_word_tokenizer([f"w{i}" for i in range(60)]), seed=seed)
    with torch.no_grad():
        for table, scale in ((model.lm_head.weight, 12), (model.token_embedding.weight, 40), (model.text_position, 40)):
            table.mul_(scale)
    return model


def prompts_for(model: Any, lengths: Sequence[int] = (3, 9, 5)) -> list[list[int]]:
    """Each with its image's placeholder where the model wants one."""
    drawn = np.random.default_rng(5)
    rows = [drawn.integers(5, 60, length).tolist() for length in lengths]
    return [[*row[:2], IMAGE, *row[2:]] for row in rows] if getattr(model, "vision", None) is not None else rows


def features_for(model: Any) -> Any:
    """Of three images, of different sizes where the model reads such."""
    if isinstance(model, SceneDenoiser):
        images = np.random.default_rng(0).integers(0, 256, (3, 96, 96, 3), dtype=np.uint8)
        return model.image_features(model.pixels(list(images)))
    if model.vision is None:
        return None
    pictures = [np.asarray(Image.open(DATA / "llada_v_tiny" / f"image_{name}.png").convert("RGB")) for name in PICTURES]
    return model.image_features(model.pixels(pictures))


def canvas_for(model: Any, prompts: Sequence[Sequence[int]], settings: DecodeSettings) -> Canvas:
    streams = range(len(prompts))
    return strategies(settings, model).canvas(model, prompts, response_length=LENGTH, streams=streams)


def reader_for(model: Any, settings: DecodeSettings, features: Any = None) -> Any:
    return strategies(settings, model).reader(model, features, response_length=LENGTH)


def run(model: Any, reader: Reader, canvas: Canvas, settings: DecodeSettings) -> Decoded:
    return strategies(settings, model).decode(reader, canvas, response_length=LENGTH)
