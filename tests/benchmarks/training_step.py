"""A model of random weights, a batch, and the ways of computing a training step that its benchmark compares.

Ways, all of which give the same loss and gradient:
redraft: `core.training.loop.batch_loss` and its backward pass: logits of supervised tokens alone, never all at once
    where they would be large, and the metrics by kind.
bare: the limit. Backbone, head on the supervised tokens, cross-entropy, backward, with nothing around them.
plain: as the published training code has it: the batch in one forward, logits of every position, in fp32, and their
    cross-entropy. Its rows' losses are averaged.
plain_rows: the same, one row at a time, and one backward pass for all of them.
torch: bare, with `torch.nn.functional.linear_cross_entropy` at the chunk size of redraft.

Shapes: B rows, L positions, N supervised positions, D hidden size, V vocabulary.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from core.models.decoders import DecoderFamily, decoder_family
from core.models.pretrained import Layout, PretrainedDenoiser, encode_bidirectionally
from core.token_losses import chunk_rows
from core.training.batches import Batch
from core.training.loop import batch_loss
from data_contracts import TokenKind


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a Llama-like decoder."""

    vocabulary: int
    hidden: int = 512
    layers: int = 8
    heads: int = 8
    intermediate: int = 1536

    @property
    def backbone(self) -> int:
        """Parameters of all matrix products but the head's."""
        return self.layers * (4 * self.hidden**2 + 3 * self.hidden * self.intermediate)

    @property
    def head(self) -> int:
        """Parameters of the head."""
        return self.hidden * self.vocabulary


SHAPE_8B = Shape(vocabulary=126_464, hidden=4096, layers=32, heads=32, intermediate=12_288)
"""LLaDA's and LLaDA-V's."""


def denoiser(shape: Shape, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> PretrainedDenoiser:
    """A model with the sizes of `shape`, all weights drawn at once on the device."""
    family = _family(shape)
    with torch.device("meta"):
        language, head = family.build()
    layout = Layout(encode=encode_bidirectionally, name_of=family.name_of, config={}, beside={}, max_positions=10**6)
    model = PretrainedDenoiser(language=language, head=head, vision=None, layout=layout, tokenizer=cast(Any, None))
    model.to_empty(device=device).to(dtype)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0) if p.ndim == 1 else p.normal_(std=0.02, generator=generator)
    rotary: Any = language.rotary_emb
    language.rotary_emb = type(rotary)(config=language.config).to(device)  # its buffers are computed, not drawn
    return model


def _family(shape: Shape) -> DecoderFamily:
    return decoder_family(
        {
            "model_type": "llava_llada",
            "vocab_size": shape.vocabulary,
            "hidden_size": shape.hidden,
            "intermediate_size": shape.intermediate,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500_000.0,
        }
    )


def batch(shape: Shape, *, rows: int, prompt: int, response: int, supervised: float, device: str = "cpu") -> Batch:
    """Rows of a prompt and a response, in which this share of all positions is supervised, the last ones."""
    length, generator = prompt + response, torch.Generator().manual_seed(1)
    ids_BL, targets_BL = (torch.randint(0, shape.vocabulary, (rows, length), generator=generator) for _ in range(2))
    kinds_BL = torch.full((rows, length), int(TokenKind.PROMPT), dtype=torch.int8)
    kinds_BL[:, length - round(supervised * length) :] = int(TokenKind.MASK)
    return Batch(
        input_ids_BL=ids_BL,
        target_ids_BL=targets_BL,
        kinds_BL=kinds_BL,
        weights_BL=(kinds_BL == TokenKind.MASK) / round(supervised * length),
        valid_BL=torch.ones_like(ids_BL, dtype=torch.bool),
        regions_BL=None,
        pixels=None,
        image_index_I=None,
    ).to(device)


def parts(whole: Batch, rows: int) -> Iterator[Batch]:
    """Batches of so many rows."""
    for first in range(0, whole.rows, rows):
        part = slice(first, first + rows)
        yield Batch(
            input_ids_BL=whole.input_ids_BL[part],
            target_ids_BL=whole.target_ids_BL[part],
            kinds_BL=whole.kinds_BL[part],
            weights_BL=whole.weights_BL[part],
            valid_BL=whole.valid_BL[part],
            regions_BL=None,
            pixels=None,
            image_index_I=None,
        )


def redraft(model: PretrainedDenoiser, given: Batch) -> Tensor:
    """See the module; returns the loss, as all ways do, and leaves the gradients in the parameters."""
    return _finished(batch_loss(model, given, 0.0)[0])


def bare(model: PretrainedDenoiser, given: Batch) -> Tensor:
    """See the module."""
    supervised_BL = given.weights_BL != 0
    logits_NV = model.head(_hidden(model, given)[supervised_BL])
    ce_N = F.cross_entropy(logits_NV.float(), given.target_ids_BL[supervised_BL], reduction="none")
    return _finished((given.weights_BL[supervised_BL] * ce_N).sum() / given.rows)


def plain(model: PretrainedDenoiser, given: Batch) -> Tensor:
    """See the module."""
    return _finished(_plain_loss(model, given) / given.rows)


def plain_rows(model: PretrainedDenoiser, given: Batch) -> Tensor:
    """See the module."""
    losses = [_plain_loss(model, row) for row in parts(given, 1)]
    return _finished(torch.stack(losses).sum() / given.rows)


def torch_chunks(model: PretrainedDenoiser, given: Batch) -> Tensor:
    """See the module."""
    supervised_BL = given.weights_BL != 0
    weight_VD = cast(nn.Linear, model.head).weight
    rows = chunk_rows(len(weight_VD), weight_VD.device.type)
    ce_N = F.linear_cross_entropy(
        _hidden(model, given)[supervised_BL],
        weight_VD,
        given.target_ids_BL[supervised_BL],
        reduction="none",
        options=nn.LinearCrossEntropyOptions(batch_chunk_size=rows),
    )
    return _finished((given.weights_BL[supervised_BL] * ce_N).sum() / given.rows)


def _plain_loss(model: PretrainedDenoiser, given: Batch) -> Tensor:
    logits_BLV = model.head(_hidden(model, given)).float()
    ce_BL = F.cross_entropy(logits_BLV.flatten(0, 1), given.target_ids_BL.flatten(), reduction="none")
    return (given.weights_BL.flatten() * ce_BL).sum()


def _hidden(model: PretrainedDenoiser, given: Batch) -> Tensor:
    return model.hidden(given.input_ids_BL, valid_BL=given.valid_BL, features_BND=None)


def _finished(loss: Tensor) -> Tensor:
    loss.backward()
    return loss.detach()


def gradient_norm(model: PretrainedDenoiser) -> float:
    """Of all parameters together; the gradients are dropped."""
    norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return float(torch.stack(norms).norm())


Way = Callable[[PretrainedDenoiser, Batch], Tensor]
WAYS: dict[str, Way] = {
    "redraft": redraft,
    "bare": bare,
    "plain": plain,
    "plain_rows": plain_rows,
    "torch": torch_chunks,
}
