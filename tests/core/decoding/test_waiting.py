"""A step waits for the device at most once: every wait leaves it idle until the next kernels are sent."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from core.decoding.settings import DecodeSettings
from core.decoding.strategies import strategies
from tests.core.decoding.tiny import TinyDenoiser, random_prompts

WAITS = {"nonzero", "_local_scalar_dense", "masked_select", "equal", "is_nonzero", "_unique2"}
"""Operators whose result, or its shape, the host must read on a GPU."""
SENDS = {"lift_fresh"}
"""Makes a tensor of Python numbers, which must be sent to a GPU. (The rows that stay are told to a reader on the CPU.)"""
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
    reader = chosen.reader(model, None)
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


@pytest.mark.gpu
def test_a_step_by_the_plan_never_waits_on_a_gpu() -> None:
    model = TinyDenoiser().cuda()
    model.bias = model.bias.cuda()
    for name in EXACT:
        chosen = strategies(DecodeSettings.parse(name), model)
        canvas = chosen.canvas(model, random_prompts([4, 6, 3, 9]), response_length=20)
        reader, plan = chosen.reader(model, None), chosen.schedule.plan(20)
        waited: list[int] = []

        class Silent:
            """Forbids waiting from the second forward on."""

            tokenizer = model.tokenizer

            def hidden(self, *args: Any) -> Tensor:
                torch.cuda.set_sync_debug_mode("error" if waited else "default")
                waited.append(1)
                if len(waited) == len(plan):  # the result is read after the last one
                    torch.cuda.set_sync_debug_mode("default")
                return reader.hidden(*args)

            def logits(self, hidden_NW: Tensor) -> Tensor:
                return reader.logits(hidden_NW)

            def select(self, rows: Tensor) -> "Silent":
                return self

        try:
            chosen.decode(Silent(), canvas, response_length=20)
        finally:
            torch.cuda.set_sync_debug_mode("default")
