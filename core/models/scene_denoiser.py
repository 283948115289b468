"""SceneDenoiser: a tiny bidirectional masked-LM VLM that learns on a CPU where things are in an image.

Its ingredients are those without which small models stayed at chance about places: row and column embeddings on the
patches, rotary positions on the text, query-key norm with a learned scale, and an auxiliary head after an early
block that says which image region a visible word speaks of (used in training only).

Shapes: B rows, L text tokens, N patches, T = N + L, D hidden size, R = N regions, V vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers import initialization as init
from transformers.modeling_outputs import MaskedLMOutput

from core.errors import ConfigError, InputError
from core.models.devices import Placement
from core.models.key_values import Remembering
from core.models.prompt_attention import KEY, prefix_seen, prompt_attention_of, prompt_needed
from core.models.scene_blocks import Block, rotation
from core.models.settings import PromptAttention
from core.token_losses import LinearHead, TokenLosses, token_losses

_CACHED_ROWS = 16
"""Rows whose activations fit into a core's cache: 128 at once took 1.2 times as long a row."""


class SceneDenoiserConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]  # transformers'
    """Sizes of a SceneDenoiser. Images are `image_height` x `image_width` pixels, multiples of `patch_size`."""

    model_type = "scene_denoiser"

    vocab_size: int = 128
    max_length: int = 64  # text tokens, prompt included
    hidden_size: int = 128
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    mlp_ratio: int = 2
    image_height: int = 48
    image_width: int = 48
    patch_size: int = 16
    patch_hidden_size: int = 192
    region_layer: int = 2  # the region head reads the text after this many blocks, or after the last
    rope_base: float = 50.0
    initializer_range: float = 0.02
    grid_initializer_range: float = 0.5  # row and column embeddings: large, or place is not learned

    @property
    def rows(self) -> int:
        """Patches from top to bottom."""
        return self.image_height // self.patch_size

    @property
    def columns(self) -> int:
        """Patches from left to right."""
        return self.image_width // self.patch_size

    @property
    def regions(self) -> int:
        """Patches; region = row * columns + column."""
        return self.rows * self.columns

    def check(self) -> None:
        """Raise ConfigError if the sizes do not fit together."""
        if self.image_height % self.patch_size or self.image_width % self.patch_size or self.regions == 0:
            raise ConfigError(
                f"image {self.image_height} x {self.image_width} is no multiple of patch_size {self.patch_size}"
            )
        if self.hidden_size % (4 * self.num_attention_heads):
            raise ConfigError(
                f"hidden_size {self.hidden_size} is no multiple of 4 x {self.num_attention_heads} attention heads"
            )


class SceneDenoiser(PreTrainedModel):  # type: ignore[no-untyped-call]  # transformers'
    """See the module. `tokenizer` is set by `create` and `load`."""

    config_class = SceneDenoiserConfig
    config: SceneDenoiserConfig
    main_input_name = "input_ids"
    tokenizer: PreTrainedTokenizerBase

    def __init__(self, config: SceneDenoiserConfig) -> None:
        super().__init__(config)
        config.check()
        d, patch = config.hidden_size, 3 * config.patch_size**2
        self.patch_embedding = nn.Sequential(
            nn.Linear(patch, config.patch_hidden_size),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.patch_hidden_size, d),
            nn.LayerNorm(d),
        )
        self.row_embedding = nn.Parameter(torch.zeros(config.rows, d))
        self.column_embedding = nn.Parameter(torch.zeros(config.columns, d))
        self.image_position = nn.Parameter(torch.zeros(config.regions, d))
        self.image_type = nn.Parameter(torch.zeros(d))
        self.token_embedding = nn.Embedding(config.vocab_size, d)
        self.text_position = nn.Parameter(torch.zeros(config.max_length, d))
        self.text_type = nn.Parameter(torch.zeros(d))
        self.blocks = nn.ModuleList(
            Block(d, config.num_attention_heads, config.mlp_ratio) for _ in range(config.num_hidden_layers)
        )
        self.region_head = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, config.regions))
        self.final_norm = nn.LayerNorm(d)
        self.lm_head = nn.Linear(d, config.vocab_size)
        self.post_init()  # type: ignore[no-untyped-call]  # transformers'

    @classmethod
    def create(cls, config: SceneDenoiserConfig, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> "SceneDenoiser":
        """A new model with weights drawn from `seed`; its vocabulary becomes the tokenizer's."""
        config.vocab_size = len(tokenizer)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = cls(config)
        model.tokenizer = tokenizer
        model.train(False)
        return model

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        config = self.config
        if isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=config.initializer_range)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, Block):
            init.constant_(module.query_scale, 1.5)
        elif isinstance(module, SceneDenoiser):
            for grid in (module.row_embedding, module.column_embedding):
                init.normal_(grid, std=config.grid_initializer_range)
            for table in (module.image_position, module.image_type, module.text_position, module.text_type):
                init.normal_(table, std=config.initializer_range)

    @property
    def prompt_attention(self) -> PromptAttention:
        """What prompt and image may see of the response."""
        return prompt_attention_of(vars(self.config))

    def attend(self, prompt_attention: PromptAttention) -> None:
        """Change it. The configuration says prefix alone: that of a model with full attention stays what it was."""
        if prompt_attention == "prefix":
            setattr(self.config, KEY, prompt_attention)
        elif self.prompt_attention == "prefix":
            delattr(self.config, KEY)

    def matrix_names(self) -> frozenset[str]:
        """The blocks' weight matrices."""
        return frozenset(name for name, p in self.named_parameters() if name.startswith("blocks.") and p.ndim == 2)

    def vision_parameters(self) -> list[nn.Parameter]:
        """Patch embedding, and what tells the regions apart."""
        grid = [self.row_embedding, self.column_embedding, self.image_position, self.image_type]
        return [*self.patch_embedding.parameters(), *grid]

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embedding."""
        return self.token_embedding

    @property
    def max_positions(self) -> int:
        """Of text alone: the image has positions of its own."""
        return self.config.max_length

    def image_positions(self, width: int, height: int) -> int:
        """None: regions stand before the text, and are equally many for each image."""
        del width, height
        return 0

    def pixels(self, images: Sequence[np.ndarray]) -> Tensor:
        """uint8 images of H x W x 3 -> (B, 3, image_height, image_width) in [-1, 1]; resized if they need to be."""
        height, width = self.config.image_height, self.config.image_width
        fitted = [
            image
            if image.shape[:2] == (height, width)
            else np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
            for image in images
        ]
        batch_BHWC = torch.from_numpy(np.stack(fitted)).to(self.device)
        return batch_BHWC.permute(0, 3, 1, 2).to(self.dtype).div_(127.5).sub_(1.0).contiguous()

    def image_features(self, pixels: Tensor) -> Tensor:
        """One vector a patch, (B, N, D), positions included."""
        config = self.config
        b, patch = pixels.shape[0], config.patch_size
        grid = pixels.view(b, 3, config.rows, patch, config.columns, patch)
        patches_BNC = grid.permute(0, 2, 4, 1, 3, 5).reshape(b, config.regions, 3 * patch * patch)
        place_ND = (self.row_embedding[:, None] + self.column_embedding[None]).flatten(0, 1) + self.image_position
        features_BND: Tensor = self.patch_embedding(patches_BNC) + (place_ND + self.image_type)
        return features_BND

    def hidden(
        self, ids_BL: Tensor, *, valid_BL: Tensor, features_BND: Tensor | None, prompt_BL: Tensor | None = None
    ) -> Tensor:
        """Final hidden states of the text, (B, L, D). On a CPU without gradients, a few rows at a time.

        Raises:
            InputError: more text than the model takes; prefix attention without `prompt_BL`.
        """
        rows = self.rows_together(len(ids_BL))
        ids, valid = torch.split(ids_BL, rows), torch.split(valid_BL, rows)
        features = [None] * len(ids) if features_BND is None else torch.split(features_BND, rows)
        prompts = [None] * len(ids) if prompt_BL is None else torch.split(prompt_BL, rows)
        return torch.cat([self._encode(*part)[0] for part in zip(ids, valid, features, prompts, strict=True)])

    def rows_together(self, rows: int) -> int:
        """How many of a batch's rows are run at a time."""
        return rows if torch.is_grad_enabled() or self.device.type != "cpu" else _CACHED_ROWS

    def hidden_and_regions(
        self, ids_BL: Tensor, *, valid_BL: Tensor, features_BND: Tensor | None, prompt_BL: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Final hidden states (B, L, D) and region scores (B, L, R); no scores without an image."""
        hidden_BLD, early_BLD = self._encode(ids_BL, valid_BL, features_BND, prompt_BL)
        return hidden_BLD, None if features_BND is None else self.region_head(early_BLD)

    def _encode(
        self, ids_BL: Tensor, valid_BL: Tensor, features_BND: Tensor | None, prompt_BL: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        x_BTD, images = self.embedded(ids_BL, features_BND)
        barred_BQT = self._barred(valid_BL, prompt_BL, images)
        rotation_TP = self.rotation(images, ids_BL.shape[1])
        early_BTD = x_BTD
        for depth, block in enumerate(self.blocks, start=1):
            x_BTD = block(x_BTD, rotation_TP, barred_BQT)
            if depth <= self.config.region_layer:
                early_BTD = x_BTD
        return self.final_norm(x_BTD[:, images:]), early_BTD[:, images:]

    def embedded(self, ids_BL: Tensor, features_BND: Tensor | None) -> tuple[Tensor, int]:
        """What the first block reads, (B, T, D), and how many of its positions are the image's, which come first."""
        length = ids_BL.shape[1]
        if length > self.config.max_length:
            raise InputError(f"{length} text tokens, but this model takes at most {self.config.max_length}")
        x_BTD = self.token_embedding(ids_BL) + (self.text_position[:length] + self.text_type)
        if features_BND is None:
            return x_BTD, 0
        return torch.cat([features_BND, x_BTD], 1), features_BND.shape[1]

    def rotation(self, images: int, length: int) -> Tensor:
        """See scene_blocks."""
        pairs = self.config.hidden_size // self.config.num_attention_heads // 2
        return rotation(images, length, pairs, self.config.rope_base, device=self.device)

    def remembering(self) -> Remembering:
        """Itself, as what can run some of its positions."""
        from core.models.scene_memory import SceneMemory

        return SceneMemory(model=self)

    def _barred(self, valid_BL: Tensor, prompt_BL: Tensor | None, images: int) -> Tensor | None:
        """See Block: the padding, for all queries alike; with prefix attention also the response, for the prompt."""
        if self.prompt_attention == "prefix":
            response_BL = valid_BL & ~prompt_needed(prompt_BL)
            valid_BT = nn.functional.pad(valid_BL, (images, 0), value=True)
            return ~prefix_seen(valid_BT, nn.functional.pad(response_BL, (images, 0), value=False))
        if no_padding(valid_BL):
            return None
        return nn.functional.pad(~valid_BL, (images, 0), value=False)[:, None]

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """(N, D) -> (N, V)."""
        scores_NV: Tensor = self.lm_head(hidden_ND)
        return scores_NV

    def token_losses(self, hidden_ND: Tensor, targets_N: Tensor, weights_N: Tensor) -> TokenLosses:
        """See core.token_losses."""
        return token_losses(hidden_ND, targets_N, weights_N, logits=self.logits, head=LinearHead.of(self.lm_head))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, pixel_values: Tensor | None = None, **_: Any
    ) -> MaskedLMOutput:
        """The usual transformers interface: logits (B, L, V) of every position."""
        valid_BL = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        features_BND = None if pixel_values is None else self.image_features(pixel_values)
        hidden_BLD = self.hidden(input_ids, valid_BL=valid_BL, features_BND=features_BND)
        return MaskedLMOutput(logits=self.lm_head(hidden_BLD))


def no_padding(valid_BL: Tensor) -> bool:
    """Whether the padding needs no mask. Only a CPU is asked: on any other device the answer is a wait."""
    return valid_BL.device.type == "cpu" and bool(valid_BL.all())


def load(path: Path, placement: Placement) -> SceneDenoiser:
    """Load a folder written by `core.models.denoiser.save_denoiser`, in evaluation mode, onto one device.

    Raises:
        InputError: if weights, sizes or tokenizer are missing or do not fit together.
    """
    try:
        model: SceneDenoiser = SceneDenoiser.from_pretrained(path, local_files_only=True, use_safetensors=True)
        model.tokenizer = PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} is no usable scene_denoiser checkpoint: {error}") from error
    prompt_attention_of(vars(model.config))
    if len(model.tokenizer) != model.config.vocab_size:
        raise InputError(f"{path}: tokenizer of {len(model.tokenizer)} tokens, model of {model.config.vocab_size}")
    model.train(False)
    nn.Module.to(model, placement.device, placement.dtype)
    return model
