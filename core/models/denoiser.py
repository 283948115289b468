"""What decoding, training and evaluation need of a model, whoever made it.

Shapes: B rows, L text tokens, N image positions, D hidden size, R image regions, V vocabulary.
A checkpoint is a folder: config.json, model.safetensors and the tokenizer's files, as transformers writes them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, Self, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from core.errors import InputError
from core.models.checkpoint import read_config
from core.models.devices import Placement
from core.models.settings import PromptAttention
from core.token_losses import TokenLosses

LOADERS: dict[str, str] = {
    "scene_denoiser": "core.models.scene_denoiser:load",
    "llada": "core.models.published:load_decoder",
    "Dream": "core.models.published:load_decoder",
    "llava_llada": "core.models.published:load_llava",
    "redraft_composition": "core.models.compose:load",
}
"""`model_type` of config.json -> `module:function` that loads such a folder; imported only when it is asked for.

A type that transformers knows as a masked language model is tried too: see core.models.masked_lm.
"""

_MASKED_LM = "core.models.masked_lm:load"

Pixels = Any
"""What a model's `pixels` makes of images and its `image_features` takes: a tensor, or tiles with their sizes."""

Features = Any
"""What a model's `image_features` makes and its `hidden` takes: indexed by rows as a tensor's first axis is."""


class Denoiser(Protocol):
    """A bidirectional model that predicts every token of a partly masked text, given an image."""

    tokenizer: PreTrainedTokenizerBase
    """With mask_token_id, eos_token_id and pad_token_id set."""

    @property
    def prompt_attention(self) -> PromptAttention:
        """What prompt and images may see of the response: everything, or nothing."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the weights are, and token ids are expected."""
        ...

    @property
    def max_positions(self) -> int:
        """The longest row that it reads: text, and the features of images that stand inside the text."""
        ...

    def image_positions(self, width: int, height: int) -> int:
        """Positions of a row that an image of this size in pixels takes; 0 if images stand outside of the text.

        Raises:
            InputError: if the model reads no images.
            ValueError: if it cannot read one of this size.
        """
        ...

    def pixels(self, images: Sequence[np.ndarray]) -> Pixels:
        """Preprocess uint8 images of H x W x 3, each of any size, on the model's device."""
        ...

    def image_features(self, pixels: Pixels) -> Features:
        """What `hidden` needs of the images, row i of image i; computed once a sample."""
        ...

    def hidden(
        self, ids_BL: Tensor, *, valid_BL: Tensor, features_BND: Features | None, prompt_BL: Tensor | None = None
    ) -> Tensor:
        """Final hidden states of the text, (B, L, D), each where the logits of its own token are read from.

        Every valid position sees every other and the images; False is padding. With prefix attention, which needs
        `prompt_BL`, the positions that it marks and the images see one another alone. A model with
        `special_tokens.image_placeholder` has one of them in `ids_BL` for each image of a row, where the image goes.
        """
        ...

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Scores of the vocabulary, (N, V), for the hidden states that need them."""
        ...


@runtime_checkable
class ArrangingDenoiser(Denoiser, Protocol):
    """A denoiser whose `hidden` waits for the device to learn where text and images go, unless it is told."""

    def arranged(self, ids_BL: Tensor, *, valid_BL: Tensor, features_BND: Features | None) -> Features:
        """Features that know where all goes: for these rows, whatever tokens take the place of the texts' own."""
        ...


def arranged(model: Denoiser, ids_BL: Tensor, *, valid_BL: Tensor, features_BND: Features | None) -> Features | None:
    """`features_BND` such that `hidden` need not wait for the device to learn where text and images go."""
    if not isinstance(model, ArrangingDenoiser):
        return features_BND
    return model.arranged(ids_BL, valid_BL=valid_BL, features_BND=features_BND)


class TrainableDenoiser(Denoiser, Protocol):
    """A denoiser that the training loop can train (an nn.Module that knows its hidden matrices)."""

    def hidden_and_regions(
        self, ids_BL: Tensor, *, valid_BL: Tensor, features_BND: Features | None, prompt_BL: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """`hidden`, and scores (B, L, R) of the image region each token speaks of; None without such a head."""
        ...

    def token_losses(self, hidden_ND: Tensor, targets_N: Tensor, weights_N: Tensor) -> TokenLosses:
        """The weighted cross-entropy of `logits`, without ever holding all of them (see core.token_losses)."""
        ...

    def attend(self, prompt_attention: PromptAttention) -> None:
        """What the prompt may see from now on; a saved model says it. Raises ConfigError if this model cannot."""
        ...

    def matrix_names(self) -> frozenset[str]:
        """Names of the parameters that are weight matrices between hidden layers (what Muon is made for)."""
        ...

    def vision_parameters(self) -> list[nn.Parameter]:
        """What `image_features` is made of."""
        ...

    def get_input_embeddings(self) -> Any:
        """As transformers': the token embedding."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """As nn.Module's."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """As nn.Module's."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """As nn.Module's."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> object:
        """As nn.Module's."""
        ...

    def train(self, mode: bool = True) -> Self:
        """As nn.Module's."""
        ...

    def to(self, device: str) -> Self:
        """As nn.Module's."""
        ...

    def save_pretrained(self, save_directory: str | Path) -> object:
        """As transformers': config.json and model.safetensors."""
        ...


def load_denoiser(
    path: str | Path,
    *,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    devices: Mapping[str, str] | None = None,
) -> TrainableDenoiser:
    """Load the checkpoint folder `path` by its `model_type`, in evaluation mode.

    Args:
        path: a folder as published, or as `save_denoiser` wrote it.
        device: where the weights go.
        dtype: converts them; None keeps what the checkpoint has.
        devices: prefixes of the names of a model's parts -> devices, for a model that one device cannot hold.

    Raises:
        InputError: if the folder is no checkpoint, of a type that no loader is known for, or damaged; or if the
            device has no room for it.
        ConfigError: if `devices` names an unknown part.
    """
    folder = Path(path)
    placement = Placement(device=device, dtype=dtype, devices=devices or {})
    model_type = read_config(folder)["model_type"]
    target = LOADERS.get(model_type)
    if target is None and _is_masked_lm(model_type):
        target = _MASKED_LM
    if target is None:
        raise InputError(
            f"{folder}: no loader for model_type {model_type!r}; known: {', '.join(sorted(LOADERS))}, and every type "
            "that transformers knows as a masked language model"
        )
    module, function = target.split(":")
    loader = cast(Callable[[Path, Placement], TrainableDenoiser], getattr(import_module(module), function))
    try:
        with _no_progress_bars():
            return loader(folder, placement)
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"{device} has no room for the model of {folder}: free its memory, name others with compute.devices, or "
            f"load it in bf16. {error}"
        ) from error


def _is_masked_lm(model_type: str) -> bool:
    """Whether transformers has such a masked language model; asked late, for its list takes a second to import."""
    known: Mapping[str, object] = import_module(
        "transformers.models.auto.modeling_auto"
    ).MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return model_type in known


def save_denoiser(model: TrainableDenoiser, path: str | Path) -> None:
    """Write `model` and its tokenizer to the folder `path`, so that `load_denoiser` gives it back."""
    from core.models.pretrained import PretrainedDenoiser

    with _no_progress_bars():
        model.save_pretrained(Path(path))
    if not isinstance(model, PretrainedDenoiser):  # which keeps its tokenizer's files as they were published
        model.tokenizer.save_pretrained(Path(path))


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """transformers draws one for every file, however small."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers'
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]  # transformers'
