"""A step waits for the device at most once: every wait leaves it idle until the next kernels are sent."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from core.decoding.reading import Reader
from core.decoding.settings import DecodeSettings
from core.decoding.strategies import strategies
from core.models.denoiser import load_denoiser
from tests.core.decoding.tiny import TinyDenoiser, random_prompts
from tests.core.models.checkpoints import published

WAITS = {"nonzero", "_local_scalar_dense", "masked_select", "equal", "is_nonzero", "_unique2"}
"""Operators whose result, or its shape, the host must read on a GPU."""
SENDS = {"lift_fresh"}
"""Makes a tensor of Python numbers, which is sent to a GPU. (Which rows stay is told to a reader on the CPU.)"""
IMAGE = -200
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

    def __init__(self, forwards: Callable[[], int], names: set[str]) -> None:
        super().__init__()
        self._forwards, self._names, self.found = forwards, names, Counter[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if name in self._names or masks:
            self.count()
        return func(*args, **kwargs or {})

    def count(self) -> None:
        self.found[self._forwards()] += 1


def waits_of(name: str, names: set[str], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often each step waited, from its forward to the next; without what is before the first and after the last."""
    model = TinyDenoiser(copy=1.0)
    prompts = random_prompts([4, 6, 3, 9])
    return waits_with(model, name, prompts, None, lambda: len(model.rows_seen), names, monkeypatch)


def waits_with(
    model: Any,
    name: str,
    prompts: Sequence[Sequence[int]],
    features: Any,
    forwards: Callable[[], int],
    names: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> list[int]:
    chosen = strategies(DecodeSettings.parse(name), model)
    canvas = chosen.canvas(model, prompts, response_length=20)
    reader = chosen.reader(model, features, response_length=20)
    waits = Waits(forwards, names)
    tolist, select = Tensor.tolist, type(reader).select
    selecting: list[bool] = []

    def counted(tensor: Tensor) -> Any:
        if not selecting:
            waits.count()
        return tolist(tensor)

    def selected(reader: Any, rows: Tensor) -> Any:
        selecting.append(True)  # `rows` are on the CPU
        try:
            return select(reader, rows)
        finally:
            selecting.pop()

    with waits, monkeypatch.context() as patch:
        patch.setattr(Tensor, "tolist", counted)  # on a CPU it is no operator
        patch.setattr(type(reader), "select", selected)
        chosen.decode(reader, canvas, response_length=20)
    assert forwards() > 2
    return [waits.found[step] for step in range(1, forwards())]


@pytest.mark.parametrize("name", EXACT)
def test_a_step_by_the_plan_never_waits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert max(waits_of(name, WAITS | SENDS, monkeypatch)) == 0


@pytest.mark.parametrize("name", EARLY)
def test_a_step_that_rows_may_leave_at_waits_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = waits_of(name, WAITS, monkeypatch)
    assert max(waits) <= 1
    assert sum(waits) > 0


@pytest.fixture(scope="module")
def published_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("checkpoints")
    return {name: load_denoiser(published(folder, name)) for name in ("llada_tiny", "llada_v_tiny")}


@pytest.mark.parametrize("kept", ["", " cache=dual refresh=3", "prefix attention"])
@pytest.mark.parametrize("checkpoint", ["llada_tiny", "llada_v_tiny"])
@pytest.mark.parametrize("name", [EXACT[0], EXACT[2], EARLY[1], EARLY[3], EARLY[4]])
def test_a_published_model_adds_no_wait(
    published_models: dict[str, Any], checkpoint: str, name: str, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where text and images go is asked before the first forward, and never again, however rows leave."""
    model, attention = published_models[checkpoint], "prefix" if "attention" in kept else "full"
    prompts, features = random_prompts([4, 6, 3]), None
    if model.vision is not None:
        prompts = [[IMAGE, *row] for row in prompts]
        with torch.inference_mode():
            features = model.image_features(
                model.pixels([np.full((56, 56 + 40 * i, 3), 90, np.uint8) for i in range(3)])
            )
    forwards: list[int] = []
    counting = model.language.register_forward_pre_hook(lambda *_: forwards.append(1))
    model.attend(attention)
    asked = name.replace("w01,w02", "A,B").replace("w01", "A") + kept.replace("prefix attention", "")
    names = WAITS if name in EARLY else WAITS | SENDS
    try:
        waits = waits_with(model, asked, prompts, features, lambda: len(forwards), names, monkeypatch)
    finally:
        counting.remove()
        model.attend("full")
    assert max(waits) <= (name in EARLY)


class Guarded:
    """Forbids waiting from the first forward to the last, after which the result is read."""

    def __init__(self, reader: Reader, forwards: int) -> None:
        self._reader, self._forwards, self._done = reader, forwards, 0
        self.tokenizer = reader.tokenizer

    def hidden(self, *args: Any) -> Tensor:
        self._done += 1
        torch.cuda.set_sync_debug_mode("error" if 1 < self._done < self._forwards else "default")
        return self._reader.hidden(*args)

    def repeats(self) -> bool:
        return self._reader.repeats()

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
