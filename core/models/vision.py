"""What turns images into features that a language model takes in: vision towers and their adapters.

Shapes: T tiles, N features of a tile, F features of all images, D hidden size of the language model.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel, SiglipVisionConfig, SiglipVisionModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from core.errors import InputError
from core.models.merging import ImageFeatures
from core.models.tiling import AnyRes, TiledImages, normalised

_TILES = 64
"""Tiles that go through the tower at once."""


class Vision(Protocol):
    """A tower and its adapter, as a denoiser uses them."""

    def positions(self, width: int, height: int) -> int:
        """Features of an image of this size in pixels."""
        ...

    def pixels(self, images: Sequence[NDArray[np.uint8]]) -> Any:
        """Preprocessed images, on the CPU."""
        ...

    def features(self, pixels: Any) -> ImageFeatures:
        """Row i shows image i."""
        ...


class Projector(nn.Module):
    """LLaVA's mlpNx_gelu, and the learned newline that ends each row of a grid."""

    def __init__(self, depth: int, inner: int, outer: int, *, newline: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Linear(inner, outer)]
        for _ in range(depth - 1):
            layers += [nn.GELU(), nn.Linear(outer, outer)]
        self.layers = nn.Sequential(*layers)
        self.newline = nn.Parameter(torch.zeros(outer)) if newline else None

    def forward(self, features: Tensor) -> Tensor:
        """Any leading axes."""
        projected: Tensor = self.layers(features)
        return projected


class SiglipTower(nn.Module):
    """The features of SigLIP's last stored layer; its final norm is stored but never applied, as published."""

    def __init__(self, config: SiglipVisionConfig) -> None:
        super().__init__()
        self.model = SiglipVisionModel(config)
        self.model.post_layernorm.requires_grad_(False)

    @property
    def side(self) -> int:
        """Features of a tile's side."""
        return math.isqrt(self.model.embeddings.num_patches)

    def forward(self, tiles_TCSS: Tensor) -> Tensor:
        """(T, N, D)."""
        embedded = self.model.embeddings(tiles_TCSS)
        features_TND: Tensor = self.model.encoder(inputs_embeds=embedded).last_hidden_state
        return features_TND


class TiledVision(nn.Module):
    """SigLIP on LLaVA's anyres tiles."""

    def __init__(self, tower: SiglipTower, adapter: Projector, tiling: AnyRes) -> None:
        super().__init__()
        self.tower, self.adapter, self.tiling = tower, adapter, tiling

    def positions(self, width: int, height: int) -> int:
        """As many as its tiling makes."""
        return self.tiling.features_of((width, height), self.tower.side)

    def pixels(self, images: Sequence[NDArray[np.uint8]]) -> TiledImages:
        """uint8 images of H x W x 3, each of any size."""
        return self.tiling.tile(images)

    def features(self, pixels: TiledImages) -> ImageFeatures:
        """Each image's features, as long as its tiling makes them."""
        check_side(pixels.tiles_TCSS, self.tiling.side)
        parts = [self.adapter(self.tower(part)) for part in torch.split(pixels.tiles_TCSS, _TILES)]
        images = torch.split(torch.cat(parts), list(pixels.counts))
        newline_D = self.adapter.newline
        assert newline_D is not None  # noqa: S101 - LLaVA's adapter has one
        return ImageFeatures.of_images(
            [self.tiling.arrange(image, size, newline_D) for image, size in zip(images, pixels.sizes, strict=True)]
        )


class SquareVision(nn.Module):
    """A tower and an adapter on whole images, squashed to the tower's square (ModernVBert)."""

    def __init__(self, tower: PreTrainedModel, adapter: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.tower, self.adapter = tower, adapter
        self._side, self._mean, self._std = int(tower.config.image_size), mean, std

    @classmethod
    def of(cls, folder: Path, tower: PreTrainedModel, adapter: nn.Module) -> Self:
        """Normalisation as preprocessor_config.json says, or processor_config.json without it; else to [-1, 1]."""
        said, half = image_preparation(folder), [0.5, 0.5, 0.5]
        return cls(tower, adapter, said.get("image_mean", half), said.get("image_std", half))

    def positions(self, width: int, height: int) -> int:
        """The same for every image: its patches, shuffled into fewer by the adapter."""
        del width, height
        patches = int(self._side // self.tower.config.patch_size) ** 2
        return patches // int(getattr(self.adapter, "pixel_shuffle_factor", 1)) ** 2

    def pixels(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """(B, 3, S, S)."""
        shape = (self._side, self._side)
        squares = [np.asarray(Image.fromarray(image).resize(shape, Image.Resampling.BICUBIC)) for image in images]
        return normalised(squares, self._mean, self._std)

    def features(self, pixels: Tensor) -> ImageFeatures:
        """Equally many of each image."""
        check_side(pixels, self._side)
        dtype = next(self.tower.parameters()).dtype
        return ImageFeatures.of_images(list(self.adapter(self.tower(pixels.to(dtype)).last_hidden_state)))


@dataclass(frozen=True, kw_only=True)
class PatchedImages:
    """Patches of several images of any size, one image after another; `grid_I3` counts them in time, height, width."""

    patches_PC: Tensor
    grid_I3: Tensor

    @property
    def device(self) -> torch.device:
        """Where the patches are."""
        return self.patches_PC.device

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """The patches on another device; their counts stay on the host."""
        return type(self)(patches_PC=self.patches_PC.to(device, non_blocking=non_blocking), grid_I3=self.grid_I3)


class QwenVision(nn.Module):
    """Qwen-VL's tower at an image's own resolution, and an adapter behind its merger.

    Args:
        tower: Qwen2-VL's or Qwen2.5-VL's.
        adapter: takes its merged features.
        prepared: what a preprocessor_config.json says of images: `size` (fewest and most pixels, by the names
            shortest_edge and longest_edge), or `min_pixels` and `max_pixels`, and `image_mean` and `image_std`. What is
            not said is as transformers has it.

    Raises:
        InputError: images cannot be prepared so.
    """

    def __init__(self, tower: PreTrainedModel, adapter: Projector, prepared: Mapping[str, Any]) -> None:
        super().__init__()
        self.tower, self.adapter = tower, adapter
        config = tower.config
        try:
            self._processor = Qwen2VLImageProcessorPil(
                patch_size=config.patch_size,
                temporal_patch_size=config.temporal_patch_size,
                merge_size=config.spatial_merge_size,
                **prepared,
            )
            self.positions(640, 480)
            mean, std = (np.asarray(by, dtype=float) for by in (self._processor.image_mean, self._processor.image_std))
            if mean.shape != (3,) or std.shape != (3,) or not std.all():
                raise ValueError("image_mean and image_std are to have three numbers each, the latter none of 0")
        except (TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise InputError(f"images cannot be prepared as preprocessor_config.json has it: {error}") from error

    @property
    def most_positions(self) -> int:
        """Of an image of as many pixels as an image may have."""
        side = int(self.tower.config.patch_size) * int(self.tower.config.spatial_merge_size)
        return int(self._processor.size["longest_edge"]) // side**2

    def positions(self, width: int, height: int) -> int:
        """Its patches at the nearest size that they make up, merged. ValueError: longer than 200 times its width."""
        patches = int(self._processor.get_number_of_image_patches(height, width))
        return patches // int(self.tower.config.spatial_merge_size) ** 2

    def pixels(self, images: Sequence[NDArray[np.uint8]]) -> PatchedImages:
        """Each image at the nearest size that whole patches make up."""
        made = self._processor.preprocess([Image.fromarray(image) for image in images], return_tensors="pt")
        return PatchedImages(patches_PC=made["pixel_values"], grid_I3=made["image_grid_thw"])

    def features(self, pixels: PatchedImages) -> ImageFeatures:
        """Each image's features, one for every square of merged patches."""
        dtype = next(self.tower.parameters()).dtype
        merged_FD = self.tower(pixels.patches_PC.to(dtype), grid_thw=pixels.grid_I3.to(pixels.device)).pooler_output
        counts = (pixels.grid_I3.prod(dim=1) // self.tower.config.spatial_merge_size**2).tolist()
        return ImageFeatures.of_images(list(torch.split(self.adapter(merged_FD), counts)))


def image_preparation(folder: Path) -> dict[str, Any]:
    """What preprocessor_config.json says, or processor_config.json without it; empty without either.

    Raises:
        InputError: it is damaged.
    """
    for name, part in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
        file = folder / name
        if not file.is_file():
            continue
        try:
            said = json.loads(file.read_text())
            found: dict[str, Any] = dict((said if part is None else said.get(part)) or {})
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{file} is damaged ({error}): download it again") from error
        return found
    return {}


def check_side(pixels: Tensor, side: int) -> None:
    """Raise InputError if images have another size than the tower's."""
    if tuple(pixels.shape[-2:]) != (side, side):
        raise InputError(f"pixels of {tuple(pixels.shape[-2:])}, but this tower takes {side} x {side}: use `pixels`")
