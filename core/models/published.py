"""Loads LLaDA, Dream and LLaDA-V/ReDiff checkpoints as they were published; a model knows how to write itself back."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import SiglipVisionConfig

from core.errors import InputError
from core.models.checkpoint import CONFIG, Checkpoint, NameOf, fill, open_checkpoint, read_config
from core.models.decoders import DecoderFamily, decoder_family
from core.models.devices import Placement
from core.models.pretrained import Layout, PretrainedDenoiser, encode_bidirectionally
from core.models.special_tokens import image_token, set_special_tokens
from core.models.tiling import AnyRes
from core.models.tokenizer import load_tokenizer
from core.models.vision import Projector, SiglipTower, TiledVision, Vision

_VISION_NAMES = {
    "vision.tower.model.": "model.vision_tower.vision_tower.vision_model.",
    "vision.adapter.layers.": "model.mm_projector.",
    "vision.adapter.newline": "model.image_newline",
}
_SO400M = {
    "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
    "image_size": 384, "patch_size": 14,
}  # fmt: skip
"""The tower of the published LLaDA-V and ReDiff, which their config.json only names."""

_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
"""The system turn of the published LLaDA-V and ReDiff, in training and inference: their code has it, no file does."""


def load_decoder(folder: Path, placement: Placement) -> PretrainedDenoiser:
    """LLaDA or Dream: text alone.

    Raises:
        InputError: see `core.models.checkpoint` and `core.models.special_tokens`.
    """
    checkpoint = open_checkpoint(folder)
    family = decoder_family(checkpoint.config)
    model = assemble(checkpoint, family, vision=None, name_of=family.name_of)
    return filled(model, checkpoint, placement)


def load_llava(folder: Path, placement: Placement) -> PretrainedDenoiser:
    """LLaDA-V or ReDiff: SigLIP on anyres tiles, a projector, and LLaDA with the names of Llama.

    Raises:
        InputError: as `load_decoder`; the sizes of the tower are unknown; a variant that was never published.
    """
    checkpoint = open_checkpoint(folder)
    family = decoder_family(checkpoint.config)

    def name_of(name: str) -> str:
        for ours, published in _VISION_NAMES.items():
            if name.startswith(ours):
                return published + name.removeprefix(ours)
        return family.name_of(name)

    tower = _tower_folder(checkpoint)
    if tower is not None:  # a saved model loads wherever it is: the tower's sizes go with it
        beside = {f"{tower.name}/{CONFIG}": (tower / CONFIG).read_bytes()}
        checkpoint = replace(checkpoint, beside=checkpoint.beside | beside)
    vision = tiled_vision(checkpoint.config, _tower_sizes(checkpoint, tower), family.config.hidden_size)
    model = assemble(checkpoint, family, vision=vision, name_of=name_of, system=_SYSTEM)
    return filled(model, checkpoint, placement)


def assemble(
    checkpoint: Checkpoint, family: DecoderFamily, *, vision: Vision | None, name_of: NameOf, system: str = ""
) -> PretrainedDenoiser:
    """The model of a checkpoint, on the meta device, with its tokenizer; `system`: see `set_special_tokens`.

    Raises:
        InputError: config.json has a size that no model can have, or see `set_special_tokens`.
    """
    try:
        with torch.device("meta"):
            language, head = family.build()
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{checkpoint.folder}: no model can be built as its config.json says: {error!r}") from error
    tokenizer = load_tokenizer(checkpoint.folder)
    placeholder = None if vision is None else image_token(checkpoint.config)
    vocabulary = family.config.vocab_size
    set_special_tokens(tokenizer, checkpoint.config, vocabulary=vocabulary, placeholder=placeholder, system=system)
    layout = Layout(
        encode=encode_bidirectionally,
        name_of=name_of,
        config=checkpoint.config,
        beside=checkpoint.beside,
        max_positions=family.config.max_position_embeddings,
        placeholder=placeholder,
        shifted=family.shifted,
    )
    return PretrainedDenoiser(language=language, head=head, vision=vision, tokenizer=tokenizer, layout=layout)


def filled(model: PretrainedDenoiser, checkpoint: Checkpoint, placement: Placement) -> PretrainedDenoiser:
    """The model with the checkpoint's weights, in evaluation mode."""
    name_of = model.layout.name_of
    fill(model, checkpoint, name_of=name_of, device_of=placement.device_of, dtype=placement.dtype)
    placement.connect(model)
    model.train(False)
    return model


def tiled_vision(config: Mapping[str, Any], sizes: Mapping[str, Any], outer: int) -> TiledVision:
    """SigLIP on tiles and its projector, on the meta device, as LLaVA's keys of `config` say.

    Args:
        config: config.json with image_aspect_ratio, image_grid_pinpoints, mm_projector_type and their kin.
        sizes: config.json of the tower. Its last layer and its pooling head are left out, as LLaVA's code does.
        outer: hidden size of the language model.
    """
    known = {key: value for key, value in sizes.items() if key not in ("torch_dtype", "dtype", "architectures")}
    try:
        tower = SiglipVisionConfig.from_dict({**known, "vision_use_head": False})
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise InputError(f"config.json of the vision tower: {error}") from error
    tower.num_hidden_layers -= 1
    side = tower.image_size
    if not isinstance(side, int) or not isinstance(tower.patch_size, int) or side < tower.patch_size:
        raise InputError(f"config.json of the vision tower: image_size {side} with patch_size {tower.patch_size}")
    tiling = AnyRes.of(config, side)
    with torch.device("meta"):
        return TiledVision(SiglipTower(tower), projector(config, tower.hidden_size, outer, newline=True), tiling)


def projector(config: Mapping[str, Any], inner: int, outer: int, *, newline: bool) -> Projector:
    """As mm_projector_type says: mlpNx_gelu."""
    kind = str(config.get("mm_projector_type"))
    match = re.fullmatch(r"mlp(\d+)x_gelu", kind)
    if match is None or config.get("mm_resampler_type"):
        raise InputError(
            f"config.json: mm_projector_type {kind!r} with mm_resampler_type {config.get('mm_resampler_type')!r} is "
            "not supported: mlpNx_gelu without a resampler is"
        )
    return Projector(int(match[1]), inner, outer, newline=newline)


def _tower_folder(checkpoint: Checkpoint) -> Path | None:
    """Where the tower's config.json is, which LLaVA's only names: inside the checkpoint or beside it; None: nowhere.

    The name may be a path of the author's machine: it is looked up if it is absolute, never in the working directory.
    """
    name = str(checkpoint.config.get("mm_vision_tower") or "")
    if "siglip" not in name.lower():
        raise InputError(f"config.json: mm_vision_tower {name!r} is not supported: SigLIP and SigLIP2 are")
    path, folder = Path(name), checkpoint.folder.absolute()
    places = [folder / path.name, folder.parent / path.name, *([path] if path.is_absolute() else [])]
    return next((place for place in places if _has_config(place)), None)


def _has_config(folder: Path) -> bool:
    try:
        return (folder / CONFIG).is_file()
    except OSError:  # not ours to read
        return False


def _tower_sizes(checkpoint: Checkpoint, folder: Path | None) -> Mapping[str, Any]:
    """config.json of the tower, of its folder; those of the published models are known."""
    if folder is not None:
        found = read_config(folder)
        sizes: Mapping[str, Any] = found.get("vision_config") or found
        return sizes
    name = str(checkpoint.config["mm_vision_tower"])
    if "so400m-patch14-384" not in name:
        raise InputError(
            f"the sizes of the vision tower {name!r} are not in the checkpoint: put the tower's config.json into "
            f"{checkpoint.folder / Path(name).name}, or beside the checkpoint"
        )
    return _SO400M
