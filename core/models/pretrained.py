"""A published language model, with or without eyes, as a Denoiser.

Its parts are named for the groups that a training tells apart: `vision.tower`, `vision.adapter`, `language`, `head`.

Shapes: B rows, L text tokens, T positions of the merged row, N positions that are scored, D hidden size, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from core.errors import InputError
from core.models.checkpoint import NameOf, write_checkpoint
from core.models.key_values import Remembering
from core.models.merging import Arrangement, ImageFeatures, Merged, arrange
from core.models.prompt_attention import prefix_seen, prompt_attention_of, prompt_needed, with_prompt_attention
from core.models.settings import PromptAttention
from core.models.special_tokens import with_special_tokens
from core.models.vision import Vision
from core.token_losses import LinearHead, TokenLosses, token_losses

_CACHED = 2**19
"""Numbers of a hidden state worked on at once on a CPU, 2 MB: what a layer makes of them then stays near its caches.
3,072 positions of 512 took 0.86 of the time in parts of 768."""

Encode = Callable[[nn.Module, Tensor, Tensor | None], Tensor]
"""(language, embeddings (B, T, D), seen) -> final hidden states (B, T, D).

seen: the keys that everyone sees, (B, T), or those that each query sees, (B, T, T); None: all.
"""


class TiedHead(nn.Module):
    """An lm_head that shares the token embedding, which alone owns the weights."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self._embedding = [embedding]  # in a list: not a part of this module

    def forward(self, hidden_ND: Tensor) -> Tensor:
        """(N, D) -> (N, V)."""
        return nn.functional.linear(hidden_ND, self._embedding[0].weight)

    def linear(self) -> LinearHead:
        """The layer that it is."""
        return LinearHead(weight_VD=self._embedding[0].weight)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What tells one published family from another.

    encode: runs the language model. name_of: parameter here -> name in the checkpoint. placeholder: the id that stands
    for an image in a prompt. shifted: logits at position i - 1 are those of token i (Dream). max_positions: longest
    merged row. config, beside: as published, written back when the model is saved.
    """

    encode: Encode
    name_of: NameOf
    config: Mapping[str, Any]
    beside: Mapping[str, bytes]
    max_positions: int
    placeholder: int | None = None
    shifted: bool = False


class PretrainedDenoiser(nn.Module):
    """See core.models.denoiser. `pixels` and `features_BND` are what `vision` makes of images; None without."""

    def __init__(
        self,
        *,
        language: PreTrainedModel,
        head: nn.Module,
        vision: Vision | None,
        layout: Layout,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        super().__init__()
        self.language, self.head = language, head
        self.vision = cast(nn.Module | None, vision)
        self.layout, self.tokenizer = layout, tokenizer
        self.prompt_attention: PromptAttention = "full"
        self.attend(prompt_attention_of(layout.config))

    def attend(self, prompt_attention: PromptAttention) -> None:
        """What prompt and images may see of the response."""
        self.prompt_attention = prompt_attention

    @property
    def device(self) -> torch.device:
        """Where token ids are expected."""
        return self.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the token embedding."""
        return self.get_input_embeddings().weight.dtype

    @property
    def max_positions(self) -> int:
        """Of text and images together."""
        return self.layout.max_positions

    def image_positions(self, width: int, height: int) -> int:
        """As many as the image has features."""
        return self._vision().positions(width, height)

    def pixels(self, images: Sequence[np.ndarray]) -> Any:
        """uint8 images of H x W x 3, preprocessed, on the model's device."""
        return self._vision().pixels([_checked(image) for image in images]).to(self.device)

    def image_features(self, pixels: Any) -> ImageFeatures:
        """Row i shows image i; `ImageFeatures.grouped` makes rows of several images or none."""
        return self._vision().features(pixels)

    def _vision(self) -> Vision:
        if self.vision is None:
            raise InputError("this model reads no images: use samples without, or a model with a vision tower")
        return cast(Vision, self.vision)

    def hidden(
        self,
        ids_BL: Tensor,
        *,
        valid_BL: Tensor,
        features_BND: ImageFeatures | Arrangement | None,
        prompt_BL: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states of the text, (B, L, D), each where the logits of its own token are read from.

        Waits for the device once, and not at all with what `arranged` made of the features.

        Raises:
            InputError: a row has more or fewer placeholders than images, or is too long; prefix attention without
                `prompt_BL`.
        """
        merged = self.merged(ids_BL, valid_BL, features_BND)
        hidden_BTD = self._encoded(merged.embeddings_BTD, self._seen(merged, valid_BL, prompt_BL))
        return merged.text_of(self.aligned(hidden_BTD, hidden_BTD[:, :1]))

    def _encoded(self, embeddings_BTD: Tensor, seen: Tensor | None) -> Tensor:
        """Final hidden states, (B, T, D); without gradients on a CPU, of a few rows at a time."""
        rows, width, size = embeddings_BTD.shape
        at_once = rows
        if embeddings_BTD.device.type == "cpu" and not torch.is_grad_enabled():
            at_once = max(1, _CACHED // (width * size))
        if at_once >= rows:
            return self.layout.encode(self.language, embeddings_BTD, seen)
        parts = torch.split(embeddings_BTD, at_once)
        seen_by = [None] * len(parts) if seen is None else torch.split(seen, at_once)
        encoded = [self.layout.encode(self.language, *part) for part in zip(parts, seen_by, strict=True)]
        return torch.cat(encoded)

    def _seen(self, merged: Merged, valid_BL: Tensor, prompt_BL: Tensor | None) -> Tensor | None:
        if self.prompt_attention == "full":
            return merged.valid_BT
        response_BT = merged.spread(valid_BL & ~prompt_needed(prompt_BL))
        valid_BT = torch.ones_like(response_BT) if merged.valid_BT is None else merged.valid_BT
        return prefix_seen(valid_BT, response_BT)

    def arranged(self, ids_BL: Tensor, *, valid_BL: Tensor, features_BND: ImageFeatures | None) -> Arrangement:
        """Where text and images go, for `hidden` in the place of the features. Raises InputError: see `hidden`."""
        layout = self.layout
        found = arrange(ids_BL, valid_BL=valid_BL, features=features_BND, placeholder=layout.placeholder)
        if found.width > layout.max_positions:
            raise InputError(
                f"{found.width} positions of text and image, but this model takes at most {layout.max_positions}"
            )
        return found

    def merged(self, ids_BL: Tensor, valid_BL: Tensor, features_BND: ImageFeatures | Arrangement | None) -> Merged:
        """Text and images as one sequence. Raises InputError: see `hidden`."""
        if not isinstance(features_BND, Arrangement):
            features_BND = self.arranged(ids_BL, valid_BL=valid_BL, features_BND=features_BND)
        known_BL = ids_BL.masked_fill(features_BND.is_image_BL, 0)  # a placeholder need not be a token of the model's
        return features_BND.merged(self.get_input_embeddings()(known_BL))

    def remembering(self) -> Remembering:
        """Itself, as what can run some of its positions."""
        from core.models.pretrained_memory import PretrainedMemory

        return PretrainedMemory(model=self)

    def aligned(self, hidden_BTD: Tensor, before_B1D: Tensor) -> Tensor:
        """Hidden states where the logits of their own tokens are read from."""
        return torch.cat([before_B1D, hidden_BTD[:, :-1]], dim=1) if self.layout.shifted else hidden_BTD

    def hidden_and_regions(
        self, ids_BL: Tensor, *, valid_BL: Tensor, features_BND: ImageFeatures | None, prompt_BL: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """`hidden`; there is no region head."""
        return self.hidden(ids_BL, valid_BL=valid_BL, features_BND=features_BND, prompt_BL=prompt_BL), None

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """(N, V) for the positions that were picked from `hidden`, and no others."""
        scores_NV: Tensor = self.head(hidden_ND)
        return scores_NV

    def token_losses(self, hidden_ND: Tensor, targets_N: Tensor, weights_N: Tensor) -> TokenLosses:
        """See core.token_losses. A head of several layers scores all tokens at once."""
        return token_losses(hidden_ND, targets_N, weights_N, logits=self.logits, head=self.linear_head())

    def linear_head(self) -> LinearHead | None:
        """What computes `logits`, if it is one linear layer."""
        return self.head.linear() if isinstance(self.head, TiedHead) else LinearHead.of(self.head)

    def matrix_names(self) -> frozenset[str]:
        """The weight matrices of all layers; embeddings, head and convolutions are none."""
        outside = [self.get_input_embeddings().weight, *self.head.parameters()]
        return frozenset(
            name
            for name, p in self.named_parameters()
            if p.ndim == 2 and "embedding" not in name and not any(p is one for one in outside)
        )

    def vision_parameters(self) -> list[nn.Parameter]:
        """Tower and adapter."""
        return [] if self.vision is None else list(self.vision.parameters())

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embedding."""
        return cast(nn.Embedding, self.language.get_input_embeddings())

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write the published layout: tensor names, config.json, tokenizer, and what else came with the checkpoint."""
        tensors = {self.layout.name_of(name): p for name, p in self.named_parameters()}
        config = with_prompt_attention(self.layout.config, self.prompt_attention)
        for key in ("torch_dtype", "dtype"):
            if key in config:
                config[key] = str(self.dtype).removeprefix("torch.")
        write_checkpoint(Path(save_directory), dict(sorted(tensors.items())), config, self.beside())

    def beside(self) -> dict[str, bytes]:
        """The files that came with the checkpoint, its tokenizer's saying what was found about it."""
        return with_special_tokens(self.layout.beside, self.tokenizer)


def _checked(image: np.ndarray) -> np.ndarray:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise InputError(f"an image of shape {image.shape} and {image.dtype}: H x W x 3 of uint8 is needed, none empty")
    return image


def encode_bidirectionally(language: nn.Module, embeddings_BTD: Tensor, seen: Tensor | None) -> Tensor:
    """A causal transformers decoder whose layers were told to attend both ways; see `Encode`."""
    output = language(inputs_embeds=embeddings_BTD, attention_mask=by_head(seen), use_cache=False)
    hidden_BTD: Tensor = output.last_hidden_state
    return hidden_BTD


def by_head(seen: Tensor | None) -> Tensor | None:
    """(B, T) -> (B, 1, 1, T), (B, T, T) -> (B, 1, T, T): as attention takes them."""
    if seen is None:
        return None
    return seen[:, None, None, :] if seen.ndim == 2 else seen[:, None]
