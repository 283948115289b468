"""The published loops written out for one row, in plain Python over full softmaxes: the reference for the fast one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from core.decoding.settings import DecodeSettings
from core.seeds import uniforms

_64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


@dataclass
class LiteralRun:
    """The response after each step that was run, and its number; forwards of the model, guidance taking two a step."""

    states: list[list[int]] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    forwards: int = 0


def decode_one(
    model, prompt: list[int], length: int, settings: DecodeSettings, features_1ND=None, stream: int = 0
) -> LiteralRun:
    return _Literal(model, prompt, length, settings, features_1ND, stream).run()


def even(masks: int, steps: int) -> list[int]:
    return [masks // steps + (1 if k < masks % steps else 0) for k in range(steps)]


def linear(masks: int, steps: int) -> list[int]:
    one, quotas = np.float32(1), []
    for step in range(steps):
        now, later = np.float32((steps - step) / steps), np.float32((steps - step - 1) / steps)
        share = one - (one - (one - later)) / (one - (one - now))
        quotas.append(min(round(float(share) * masks), masks))
        masks -= quotas[-1]
    return [quota for quota in quotas if quota]


def dream_rates(steps: int, eps: float) -> list[float]:
    times = [float(t) for t in torch.linspace(1, eps, steps + 1)]
    return [1 - times[k + 1] / times[k] if k < steps - 1 else 1.0 for k in range(steps)]


def dream(masks: int, steps: int, eps: float) -> list[int]:
    quotas = []
    for rate in dream_rates(steps, eps):
        quotas.append(math.floor(masks * rate))
        masks -= quotas[-1]
    return quotas


def _mixed(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _64
    return x ^ (x >> 31)


def numbers(stream: int, step: int, position: int, n: int, salt: int) -> np.ndarray:
    key = _mixed((stream + (step + 1) * _GOLDEN) & _64)
    key = _mixed((key + (position + 1) * _GOLDEN) & _64)
    return uniforms(np.array([key], dtype=np.uint64), n, salt=salt)[0]


class _Literal:
    def __init__(self, model, prompt, length, settings, features_1ND, stream) -> None:
        self.model, self.settings, self.features, self.stream = model, settings, features_1ND, stream
        tokenizer = model.tokenizer
        self.mask, self.end = tokenizer.mask_token_id, tokenizer.eos_token_id
        self.unwritten = {self.mask, tokenizer.pad_token_id} - {self.end}
        if settings.predict_mask:
            self.unwritten -= {self.mask}
        given, suffix = self._ids(settings.beginning), self._ids(settings.suffix)
        self.ids = [*prompt, *given, *[self.mask] * (length - len(given) - len(suffix)), *suffix]
        self.first, self.last = len(prompt), len(prompt) + length - len(suffix)
        self.response = slice(len(prompt), len(prompt) + length)
        self.start = [token != self.mask for token in self.ids]
        self.stop: int | None = None
        self.index = 0
        self.result = LiteralRun()

    def _ids(self, items: Sequence[str | int]) -> list[int]:
        encode = self.model.tokenizer.encode
        return [i for item in items for i in ([item] if isinstance(item, int) else encode(item))]

    def run(self) -> LiteralRun:
        settings = self.settings
        block = settings.block_length or self.last - self.first
        firsts = range(self.first, self.last, block)
        for first in firsts:
            inside = list(range(first, min(first + block, self.last)))
            masks = sum(self.ids[i] == self.mask for i in inside)
            steps = math.ceil((settings.steps or 0) / len(firsts)) or math.ceil(masks / settings.tokens_per_step)
            if not masks:
                continue
            for local, quota in enumerate(self._quotas(masks, steps)):
                refining = settings.policy == "refine" and local >= steps - math.ceil(steps * settings.start)
                if self._open(inside) and (quota or refining or settings.threshold is not None):
                    self._step(inside, quota, refining, local, steps)
                self.index += 1
        for _ in range(settings.extra_steps):
            if self.stop is None:
                self._step(list(range(self.first, self.last)), 0, True, None, 1)
            self.index += 1
        return self.result

    def _quotas(self, masks: int, steps: int) -> list[int]:
        match self.settings.schedule:
            case "even":
                return even(masks, steps)
            case "linear":
                return linear(masks, steps)
            case "dream":
                return dream(masks, steps, self.settings.eps)
            case "origin":
                return [1] * steps

    def _open(self, inside: list[int]) -> list[int]:
        stop = len(self.ids) if self.stop is None else self.stop
        return [i for i in inside if self.ids[i] == self.mask and i < stop]

    def _logits(self) -> Tensor:
        def look(ids, features):
            self.result.forwards += 1
            ids_1L = torch.tensor([ids])
            valid = torch.ones_like(ids_1L, dtype=torch.bool)
            return self.model.logits(self.model.hidden(ids_1L, valid_BL=valid, features_BND=features)[0]).clone()

        seen = look(self.ids, self.features)
        if not self.settings.cfg_scale:
            return seen
        blind = look([self.mask if given else i for i, given in zip(self.ids, self.start, strict=True)], None)
        return blind + (self.settings.cfg_scale + 1) * (seen - blind)

    def _scores(self) -> tuple[list[int], Tensor, Tensor]:
        settings, logits = self.settings, self._logits()
        vocabulary = self.model.tokenizer.get_vocab()

        def without(logits, tokens):
            logits = logits.clone()
            logits[:, [vocabulary.get(token, token) for token in tokens]] = -torch.inf
            return logits

        logits = without(logits, settings.suppress)
        written = without(logits, self.unwritten)
        noisy = written.double()
        for position in range(self.first, self.last) if settings.temperature else ():
            u = numbers(self.stream, self.index, position - self.first, logits.shape[1], 0)
            noisy[position] += settings.temperature * torch.from_numpy(-np.log(-np.log(u)))
        tokens = noisy.argmax(-1)
        p = without(logits if settings.softmax == "all" else written, settings.late).softmax(-1)
        match settings.confidence:
            case "probability":
                sure = p.gather(1, tokens[:, None])[:, 0]
            case "margin":
                best = p.sort(dim=-1, descending=True).values
                sure = best[:, 0] - best[:, 1]
            case "entropy":
                sure = (p * torch.log(p + 1e-10)).sum(-1)
        return tokens.tolist(), sure, p

    def _ranked(self, positions: list[int], sure: Tensor) -> list[int]:
        return sorted(positions, key=lambda i: (-round(float(sure[i]) * 2**self.settings.grid_bits), i))

    def _step(self, inside, quota, refining, local, steps) -> None:
        settings, ids = self.settings, self.ids
        tokens, sure, p = self._scores()
        masked = [] if local is None else self._open(inside)
        visible = [i for i in inside if ids[i] != self.mask]
        after = list(ids)
        if settings.schedule == "origin" and local is not None:
            rate = dream_rates(steps, settings.eps)[local]
            shown = [i for i in masked if numbers(self.stream, self.index, i - self.first, 1, 1)[0] < rate]
        else:
            shown = self._ranked(masked, sure)[:quota]
            if settings.threshold is not None:
                shown += [i for i in masked if float(sure[i]) >= settings.threshold]
        for i in shown:
            after[i] = tokens[i]
        if refining:
            for i in self._ranked(visible, sure)[: int(settings.topk * len(visible))]:
                if settings.margin == 0 or float(sure[i]) - float(p[i, ids[i]]) >= settings.margin:
                    after[i] = tokens[i]
        self.ids = after
        self._look_for_stop()
        self.result.states.append(self.ids[self.response])
        self.result.indices.append(self.index)

    def _look_for_stop(self) -> None:
        for item in self.settings.stop:
            word = self._ids((item,))
            for i in range(self.first, self.last - len(word) + 1):
                if self.ids[i : i + len(word)] == word:
                    self.stop = min(i, self.last if self.stop is None else self.stop)
                    break
        if self.stop is not None and not any(self.ids[i] == self.mask for i in range(self.first, self.stop)):
            self.ids[self.stop : self.last] = [self.end] * (self.last - self.stop)
