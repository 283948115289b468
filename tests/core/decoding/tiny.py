"""A real, small, bidirectional transformer with random weights, sharp enough that its argmax moves at every step."""

from collections.abc import Sequence

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

WORDS = [f"w{index:02d}" for index in range(27)]
WIDTH, HEADS = 32, 4


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate([*WORDS, "<unk>"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, mask_token="<mask>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )


class TinyDenoiser(nn.Module):
    """Counts its calls: `rows_seen` per forward, `scored` positions per call of the head, `images_seen`.

    `copy` draws visible tokens towards what they are, so that refining comes to rest.
    """

    prompt_attention = "full"

    def __init__(self, seed: int = 0, layers: int = 2, copy: float = 0.0) -> None:
        super().__init__()
        self.tokenizer = tiny_tokenizer()
        vocabulary = len(self.tokenizer)
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int, scale: float) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator) * scale)

        self.tokens = draw(vocabulary, WIDTH, scale=1.0)
        self.places = draw(64, WIDTH, scale=1.0)
        self.pixel = draw(3, WIDTH, scale=0.02)
        self.qkv = nn.ParameterList([draw(WIDTH, 3 * WIDTH, scale=0.4) for _ in range(layers)])
        self.mix = nn.ParameterList([draw(WIDTH, WIDTH, scale=0.4) for _ in range(layers)])
        self.head = nn.Parameter(draw(WIDTH, vocabulary, scale=0.6).data + copy * self.tokens.data.T)
        self.bias = torch.zeros(vocabulary)
        self.rows_seen: list[int] = []
        self.scored: list[int] = []
        self.images_seen = 0

    @property
    def device(self) -> torch.device:
        return self.tokens.device

    @property
    def max_positions(self) -> int:
        return len(self.places)

    def image_positions(self, width: int, height: int) -> int:
        del width, height
        return 0

    def pixels(self, images: Sequence[np.ndarray]) -> Tensor:
        self.images_seen += len(images)
        return torch.from_numpy(np.stack([image.reshape(-1, 3)[:4] for image in images])).float()

    def image_features(self, pixels: Tensor) -> Tensor:
        return pixels @ self.pixel

    def hidden(
        self, ids_BL: Tensor, *, valid_BL: Tensor, features_BND: Tensor | None, prompt_BL: Tensor | None = None
    ) -> Tensor:
        self.rows_seen.append(len(ids_BL))
        x = self.tokens[ids_BL] + self.places[: ids_BL.shape[1]]
        images = 0
        if features_BND is not None:
            images = features_BND.shape[1]
            x = torch.cat([features_BND, x], dim=1)
            valid_BL = nn.functional.pad(valid_BL, (images, 0), value=True)
        for qkv, mix in zip(self.qkv, self.mix, strict=True):
            q, k, v = (nn.functional.layer_norm(x, [WIDTH]) @ qkv).unflatten(-1, (3, HEADS, -1)).movedim(2, 0)
            scores = torch.einsum("bqhe,bkhe->bhqk", q, k) * (WIDTH // HEADS) ** -0.5
            weights = scores.masked_fill(~valid_BL[:, None, None], -1e9).softmax(-1)
            x = x + torch.einsum("bhqk,bkhe->bqhe", weights, v).flatten(-2) @ mix
        return nn.functional.layer_norm(x[:, images:], [WIDTH])

    def logits(self, hidden_ND: Tensor) -> Tensor:
        self.scored.append(len(hidden_ND))
        return hidden_ND @ self.head + self.bias


def random_prompts(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, len(WORDS), length).tolist() for length in lengths]
