"""What a decoding is measured against: a plain one in the style of the published code, and the least that it can take.

Shapes: B rows, L tokens of prompt and response, V vocabulary.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.models.decoders import decoder_family
from core.models.pretrained import Layout, PretrainedDenoiser, encode_bidirectionally
from core.models.tokenizer import build_word_tokenizer

_SHARPNESS = 10.0
"""Random heads are nearly indifferent; of a trained one, confidences lie anywhere between 0 and 1."""
_HEAD_ROWS = 512


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a LLaDA."""

    hidden: int = 512
    layers: int = 8
    heads: int = 8
    intermediate: int = 1536
    vocabulary: int = 2048

    @property
    def backbone_parameters(self) -> int:
        """Weights that every position is multiplied by: neither the embedding nor the head."""
        return self.layers * (4 * self.hidden**2 + 3 * self.hidden * self.intermediate)


def random_model(shape: Shape, *, device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A LLaDA with random weights, built on its device."""
    torch.manual_seed(seed)
    family = decoder_family(
        {
            "model_type": "llada",
            "d_model": shape.hidden,
            "n_layers": shape.layers,
            "n_heads": shape.heads,
            "mlp_hidden_size": shape.intermediate,
            "vocab_size": shape.vocabulary,
            "max_sequence_length": 4096,
            "rope_theta": 500000.0,
            "rms_norm_eps": 1e-5,
        }
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            language, head = family.build()
    finally:
        torch.set_default_dtype(before)
    with torch.no_grad():
        head.weight.mul_(_SHARPNESS)
    tokenizer = build_word_tokenizer([f"w{index}" for index in range(500)])
    layout = Layout(
        encode=encode_bidirectionally,
        name_of=family.name_of,
        config={},
        beside={},
        max_positions=family.config.max_position_embeddings,
    )
    model = PretrainedDenoiser(language=language, head=head, vision=None, tokenizer=tokenizer, layout=layout)
    return model.train(False).requires_grad_(False)


def prompts_of(rows: int, length: int, seed: int = 0) -> list[list[int]]:
    """Random prompts of ordinary words."""
    drawn = torch.randint(0, 500, (rows, length), generator=torch.Generator().manual_seed(seed))
    return [[int(token) for token in row] for row in drawn.tolist()]


@torch.inference_mode()
def plain_decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    length: int,
    steps: int,
    refine: bool,
    forbidden: Sequence[int],
    pause: Callable[[], None] = lambda: None,
) -> list[list[int]]:
    """One row at a time, logits at every position, softmax in float64 over all of them; what is revealed and what is
    overwritten as METHODS of ReDiff and LLaDA-V have it: the most confident masks, and every token visible before.

    `pause` is called `steps` times in all.
    """
    mask = int(model.tokenizer.mask_token_id)
    looks = itertools.count(1)

    def looked() -> None:
        if next(looks) % len(prompts) == 0:
            pause()

    return [_plain_row(model, row, length, steps, refine, forbidden, mask, looked) for row in prompts]


def _plain_row(
    model: Any,
    prompt: Sequence[int],
    length: int,
    steps: int,
    refine: bool,
    forbidden: Sequence[int],
    mask: int,
    looked: Callable[[], None],
) -> list[int]:
    ids_1L = torch.tensor([[*prompt, *[mask] * length]], device=model.device)
    response_1L = torch.arange(ids_1L.shape[1], device=model.device)[None] >= len(prompt)
    share, rest = divmod(length, steps)
    for step in range(steps):
        hidden = model.hidden(ids_1L, valid_BL=torch.ones_like(response_1L), features_BND=None)
        logits_1LV = model.logits(hidden).float()
        logits_1LV[..., list(forbidden)] = -torch.inf
        predicted_1L = logits_1LV.argmax(dim=-1)
        probability_1LV = torch.softmax(logits_1LV.double(), dim=-1)
        confidence_1L = probability_1LV.gather(-1, predicted_1L[..., None])[..., 0]
        masked_1L = ids_1L == mask
        ranked_1L = torch.where(masked_1L, confidence_1L, -torch.inf)
        best_1K = ranked_1L.topk(share + (step < rest), dim=1).indices
        visible_1L = response_1L & ~masked_1L
        ids_1L = ids_1L.scatter(1, best_1K, predicted_1L.gather(1, best_1K))
        if refine:
            ids_1L = torch.where(visible_1L, predicted_1L, ids_1L)
        looked()
    return [int(token) for token in ids_1L[0, len(prompt) :].tolist()]


@torch.inference_mode()
def least_work(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    length: int,
    steps: int,
    refine: bool,
    pause: Callable[[], None] = lambda: None,
) -> Tensor:
    """The forwards of a whole decoding, and the head on the positions that may change; of logits nothing is made.

    On a CPU they go into memory that is there: new memory costs a page fault for every 4 KiB.
    """
    mask = int(model.tokenizer.mask_token_id)
    rows = [[*prompt, *[mask] * length] for prompt in prompts]
    ids_BL = torch.tensor(rows, device=model.device)
    valid_BL = torch.ones_like(ids_BL, dtype=torch.bool)
    share, rest = divmod(length, steps)
    first, revealed = len(prompts[0]), 0
    last, head = torch.zeros(()), model.linear_head()
    spare_NV = torch.empty(_HEAD_ROWS, len(head.weight_VD), dtype=model.dtype, device=model.device)
    for step in range(steps):
        hidden_BLD = model.hidden(ids_BL, valid_BL=valid_BL, features_BND=None)
        asked_ND = hidden_BLD[:, first + (0 if refine else revealed) :].flatten(0, 1)
        for part_ND in torch.split(asked_ND, _HEAD_ROWS):
            last = head.scores_into(spare_NV[: len(part_ND)], part_ND)
        revealed += share + (step < rest)
        pause()
    return last


def head_positions(length: int, steps: int, refine: bool) -> int:
    """Positions of a row that the head scores in a whole decoding."""
    if refine:
        return length * steps
    share, rest = divmod(length, steps)
    left, total = length, 0
    for step in range(steps):
        total += left
        left -= share + (step < rest)
    return total
