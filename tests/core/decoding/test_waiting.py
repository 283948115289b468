"""A step waits for the device at most once: every wait leaves it idle until the next kernels are sent."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from core.decoding.reading import Reader
from core.decoding.settings import DecodeSettings
from core.decoding.strategies import strategies
from tests.core.decoding.tiny import TinyDenoiser, random_prompts

WAITS = {"nonzero", "_local_scalar_dense", "masked_select", "equal", "is_nonzero", "_unique2"}
"""Operators whose result, or its shape, the host must read on a GPU."""
SENDS = {"lift_fresh"}
"""Makes a tensor of Python numbers, which is sent to a GPU. (Which rows stay is told to a reader on the CPU.)"""
EXACT = ["4 freeze", "3 refine block_length=7", "4 freeze cfg_scale=1.5 suppress=w01", "4 freeze temperature=0.5"]
EARLY = [
    "3+4 refine",
    "1 freeze threshold=0.5",
    "4 freeze schedule=origin",
    "3 refine stop=w01,w02",
    "3+2 refine stop=w01",
]


class Waits(TorchDispatchMode):
    """Counts them by the forward of the model that they follow."""

    def __init__(self, model: TinyDenoiser, names: set[str]) -> None:
        super().__init__()
        self._model, self._names, self.found = model, names, Counter[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if name in self._names or masks:
            self.count()
        return func(*args, **kwargs or {})

    def count(self) -> None:
        self.found[len(self._model.rows_seen)] += 1


def waits_of(name: str, names: set[str], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often each step waited, from its forward to the next; without what is before the first and after the last."""
    model = TinyDenoiser(copy=1.0)
    chosen = strategies(DecodeSettings.parse(name), model)
    canvas = chosen.canvas(model, random_prompts([4, 6, 3, 9]), response_length=20)
    reader = chosen.reader(model, None, response_length=20)
    waits = Waits(model, names)
    tolist = Tensor.tolist

    def counted(tensor: Tensor) -> Any:
        waits.count()
        return tolist(tensor)

    with waits, monkeypatch.context() as patch:
        patch.setattr(Tensor, "tolist", counted)  # on a CPU it is no operator
        chosen.decode(reader, canvas, response_length=20)
    forwards = len(model.rows_seen)
    assert forwards > 2
    return [waits.found[step] for step in range(1, forwards)]


@pytest.mark.parametrize("name", EXACT)
def test_a_step_by_the_plan_never_waits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert max(waits_of(name, WAITS | SENDS, monkeypatch)) == 0


@pytest.mark.parametrize("name", EARLY)
def test_a_step_that_rows_may_leave_at_waits_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = waits_of(name, WAITS, monkeypatch)
    assert max(waits) <= 1
    assert sum(waits) > 0


class Guarded:
    """Forbids waiting from the first forward to the last, after which the result is read."""

    def __init__(self, reader: Reader, forwards: int) -> None:
        self._reader, self._forwards, self._done = reader, forwards, 0
        self.tokenizer = reader.tokenizer

    def hidden(self, *args: Any) -> Tensor:
        self._done += 1
        torch.cuda.set_sync_debug_mode("error" if 1 < self._done < self._forwards else "default")
        return self._reader.hidden(*args)

    def logits(self, hidden_NW: Tensor) -> Tensor:
        return self._reader.logits(hidden_NW)

    def select(self, rows: Tensor) -> "Guarded":
        raise AssertionError(rows)


@pytest.mark.gpu
@pytest.mark.parametrize("name", EXACT)
def test_a_step_by_the_plan_never_waits_on_a_gpu(name: str) -> None:
    model = TinyDenoiser().cuda()
    model.bias = model.bias.cuda()
    chosen = strategies(DecodeSettings.parse(name), model)
    canvas = chosen.canvas(model, random_prompts([4, 6, 3, 9]), response_length=20)
    guarded = Guarded(chosen.reader(model, None, response_length=20), len(chosen.schedule.plan(20)))
    try:
        chosen.decode(guarded, canvas, response_length=20)
    finally:
        torch.cuda.set_sync_debug_mode("default")
