"""The published loop written out for one row, in plain Python over full softmaxes: the reference for the fast one."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from core.decoding.settings import DecodeSettings


@dataclass
class LiteralRun:
    states: list[list[int]] = field(default_factory=list)


def _probabilities(model, ids: list[int], features_1ND: Tensor | None, forbidden: set[int]) -> Tensor:
    ids_1L = torch.tensor([ids])
    hidden = model.hidden(ids_1L, valid_BL=torch.ones_like(ids_1L, dtype=torch.bool), features_BND=features_1ND)
    logits = model.logits(hidden[0]).clone()
    for token in forbidden:
        logits[:, token] = -torch.inf
    return logits.softmax(dim=-1)


def _by_confidence(positions: list[int], confidence: Tensor) -> list[int]:
    return sorted(positions, key=lambda i: (-round(float(confidence[i]) * 65536), i))


@torch.no_grad()
def decode_one(model, prompt: list[int], length: int, settings: DecodeSettings, features_1ND=None) -> LiteralRun:
    tokenizer = model.tokenizer
    mask, forbidden = tokenizer.mask_token_id, {tokenizer.mask_token_id, tokenizer.pad_token_id}
    ids, run = [*prompt, *[mask] * length], LiteralRun()
    block = settings.block_length or length
    for first in range(len(prompt), len(prompt) + length, block):
        inside = list(range(first, min(first + block, len(prompt) + length)))
        steps = math.ceil(len(inside) / settings.tokens_per_step)
        quotas = [len(inside) // steps + (1 if k < len(inside) % steps else 0) for k in range(steps)]
        for k, quota in enumerate(quotas):
            refining = settings.policy == "refine" and k >= steps - math.ceil(steps * settings.start)
            ids = _step(model, ids, inside, quota, refining, settings, features_1ND, mask, forbidden)
            run.states.append(ids[len(prompt) :])
    for _ in range(settings.extra_steps):
        everything = list(range(len(prompt), len(ids)))
        ids = _step(model, ids, everything, 0, True, settings, features_1ND, mask, forbidden)
        run.states.append(ids[len(prompt) :])
    return run


def _step(model, ids, inside, quota, refining, settings, features_1ND, mask, forbidden) -> list[int]:
    probability = _probabilities(model, ids, features_1ND, forbidden)
    confidence, argmax = probability.max(dim=-1)
    masked = [i for i in inside if ids[i] == mask]
    visible = [i for i in inside if ids[i] != mask]
    after = list(ids)
    for i in _by_confidence(masked, confidence)[:quota]:
        after[i] = int(argmax[i])
    if refining:
        for i in _by_confidence(visible, confidence)[: int(settings.topk * len(visible))]:
            if float(confidence[i]) - float(probability[i, ids[i]]) >= settings.margin:
                after[i] = int(argmax[i])
    return after
