"""A vision tower and a published decoder joined by an adapter: SigLIP or Qwen-VL's tower with LLaDA or Dream.

Nobody published such a checkpoint (RIV did not), so the layout is this project's: config.json holds the tower's and the
decoder's own, and what a Qwen-VL's preprocessor_config.json says of the size and normalisation of images; tensors are
`vision_tower.*`, `adapter.*`, and `language_model.` before the decoder's published names.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

from core.errors import InputError
from core.models.checkpoint import Checkpoint, compute_buffers, fill, open_checkpoint
from core.models.decoders import decoder_family
from core.models.devices import Placement
from core.models.pretrained import PretrainedDenoiser
from core.models.prompt_attention import KEY
from core.models.published import assemble, filled, projector, tiled_vision
from core.models.special_tokens import LLAVA_PLACEHOLDER
from core.models.vision import Projector, QwenVision, Vision, image_preparation

MODEL_TYPE = "redraft_composition"
_QWEN: dict[str, tuple[Any, Any, str]] = {
    "qwen2_vl": (Qwen2VisionTransformerPretrainedModel, Qwen2VLVisionConfig, "hidden_size"),
    "qwen2_5_vl": (Qwen2_5_VisionTransformerPretrainedModel, Qwen2_5_VLVisionConfig, "out_hidden_size"),
}
"""Tower, its config, and what that calls the width of its merged features."""

_SIGLIP = ("siglip", "siglip_vision_model")
_PREPARED = ("size", "min_pixels", "max_pixels", "image_mean", "image_std")
"""What is taken from a Qwen-VL's preprocessor_config.json; the rest is in its config.json too."""
_STORED_UNDER = ("model.visual.", "visual.", "vision_model.", "")
"""Where published checkpoints have their tower: Qwen-VL's, new and old, SigLIP's, and a tower alone."""


def compose(
    vision: Path, decoder: Path, *, seed: int, placement: Placement, max_pixels: int | None = None
) -> PretrainedDenoiser:
    """A new model of a published tower and a published decoder; the adapter between them is drawn from `seed`.

    Args:
        vision: folder of a SigLIP or SigLIP2 (of fixed resolution), Qwen2-VL or Qwen2.5-VL checkpoint.
        decoder: folder of LLaDA or Dream, whose tokenizer the model takes over.
        seed: of the adapter.
        placement: where it goes; without a dtype all of it gets the decoder's.
        max_pixels: of an image, larger ones are scaled down; of a Qwen-VL's tower alone. None: as published.

    Raises:
        InputError: one of them is damaged, or of a type that cannot be composed; a limit for SigLIP.
    """
    eyes, mouth = open_checkpoint(vision), open_checkpoint(decoder)
    kind = eyes.config["model_type"]
    if kind not in (*_SIGLIP, *_QWEN):
        raise InputError(f"{vision}: no vision tower is known for model_type {kind!r}: {', '.join((*_SIGLIP, *_QWEN))}")
    if max_pixels is not None and kind not in _QWEN:
        raise InputError(f"max_pixels is for a Qwen-VL's tower: {kind} sees tiles of one size")
    prepared = _preparation(vision) if kind in _QWEN else {}
    config: dict[str, Any] = {
        "model_type": MODEL_TYPE,
        "vision_type": kind,
        "vision_config": eyes.config.get("vision_config") or eyes.config,
        "vision_preparation": prepared if max_pixels is None else prepared | {"max_pixels": max_pixels},
        "decoder_config": mouth.config,
        "mm_projector_type": "mlp2x_gelu",
        "image_aspect_ratio": "anyres_max_4",
        "mm_patch_merge_type": "spatial_unpad",
        "image_grid_pinpoints": "(1x1),...,(6x6)",
        "image_token_id": LLAVA_PLACEHOLDER,
        **{key: mouth.config[key] for key in ("mask_token_id", "eos_token_id", KEY) if key in mouth.config},
    }
    model = _assemble(replace(mouth, config=config))
    family = decoder_family(mouth.config)
    speech = nn.ModuleDict({"language": model.language, "head": model.head})
    fill(speech, mouth, name_of=family.name_of, device_of=placement.device_of, dtype=placement.dtype)
    _fill_tower(model, eyes, placement)
    _draw_adapter(model, seed, placement)
    placement.connect(model)
    model.train(False)
    return model


def load(folder: Path, placement: Placement) -> PretrainedDenoiser:
    """Load what was composed, trained and saved.

    Raises:
        InputError: see `core.models.published`.
    """
    checkpoint = open_checkpoint(folder)
    return filled(_assemble(checkpoint), checkpoint, placement)


def _assemble(checkpoint: Checkpoint) -> PretrainedDenoiser:
    config = checkpoint.config
    try:
        family = decoder_family(config["decoder_config"])
        vision = _vision(config["vision_type"], config, family.config.hidden_size)
    except (KeyError, TypeError) as error:
        raise InputError(f"{checkpoint.folder}: config.json of a composition lacks {error}") from error

    def name_of(name: str) -> str:
        if name.startswith("vision."):
            return name.replace("vision.tower.", "vision_tower.", 1).replace("vision.adapter.", "adapter.", 1)
        return f"language_model.{family.name_of(name)}"

    return assemble(checkpoint, family, vision=vision, name_of=name_of)


def _vision(kind: str, config: Mapping[str, Any], outer: int) -> Vision:
    """On the meta device."""
    sizes = config["vision_config"]
    if kind not in _QWEN:
        return tiled_vision(config, sizes, outer)
    tower_class, config_class, width = _QWEN[kind]
    known = {key: value for key, value in sizes.items() if key not in ("torch_dtype", "dtype", "model_type")}
    tower_config = config_class.from_dict(known)
    with torch.device("meta"):
        tower = tower_class(tower_config)
        adapter = projector(config, getattr(tower_config, width), outer, newline=False)
    return QwenVision(tower, adapter, config.get("vision_preparation") or {})


def _preparation(folder: Path) -> dict[str, Any]:
    """How large the tower's images may be, and how they are normalised."""
    said = image_preparation(folder)
    return {key: said[key] for key in _PREPARED if said.get(key) is not None}


def _fill_tower(model: PretrainedDenoiser, eyes: Checkpoint, placement: Placement) -> None:
    """Read the tower alone: not the text model beside it, nor SigLIP's pooling head and last layer."""
    tower = model.get_submodule("vision.tower")
    prefix = next(prefix for prefix in _STORED_UNDER if any(name.startswith(prefix) for name in eyes.files))

    def name_of(name: str) -> str:
        return prefix + name.removeprefix("model.")

    wanted = {name_of(name) for name, _ in tower.named_parameters()}
    own = replace(eyes, files={name: path for name, path in eyes.files.items() if name in wanted})
    fill(
        tower,
        own,
        name_of=name_of,
        device_of=lambda name: placement.device_of(f"vision.tower.{name}"),
        dtype=placement.dtype or model.dtype,
    )


def _draw_adapter(model: PretrainedDenoiser, seed: int, placement: Placement) -> None:
    adapter = model.get_submodule("vision.adapter")
    assert isinstance(adapter, Projector)  # noqa: S101 - the only kind there is
    generator = torch.Generator().manual_seed(seed)
    adapter.to_empty(device=placement.device_of("vision.adapter")).to(placement.dtype or model.dtype)
    with torch.no_grad():
        for name, p in adapter.named_parameters():
            bound = p.shape[-1] ** -0.5
            drawn = torch.empty(p.shape).uniform_(-bound, bound, generator=generator)
            p.copy_(torch.zeros(p.shape) if name.endswith("bias") else drawn)
    compute_buffers(model, placement.device_of)
