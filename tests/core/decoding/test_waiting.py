"""A step waits for the device at most once: every wait leaves it idle until the next kernels are sent."""

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from core.decoding import loop
from core.decoding.reading import Reader
from core.decoding.settings import DecodeSettings
from core.decoding.state import Canvas
from core.decoding.strategies import strategies
from core.models.denoiser import load_denoiser
from core.models.rows import Rows
from tests.core.decoding.test_caching import features_for, scene_model
from tests.core.decoding.tiny import TinyDenoiser, random_prompts
from tests.core.models.checkpoints import published
from tests.core.models.test_masked_lm import CONFIGS, written

WAITS = {"nonzero", "_local_scalar_dense", "masked_select", "equal", "is_nonzero", "_unique2"}
"""Operators whose result, or its shape, the host must read on a GPU."""
SENDS = {"lift_fresh"}
"""Makes a tensor of Python numbers, which is sent to a GPU: then and there, or when another tensor is indexed by it."""
IMAGE = -200
EXACT = ["4 freeze", "3 refine block_length=7", "4 freeze cfg_scale=1.5 suppress=w01", "4 freeze temperature=0.5"]
BY_CHANCE = "1 freeze schedule=origin"
EARLY = [
    "3+4 refine",
    "1 freeze threshold=0.5",
    BY_CHANCE,
    "3 refine stop=w01,w02",
    "3+2 refine stop=w01",
]

KEEPING = ("", " cache=dual refresh=3", "prefix attention")
KEPT = [
    ("bert", ""),
    ("modernbert", ""),
    *((checkpoint, kept) for checkpoint in ("llada_tiny", "llada_v_tiny") for kept in KEEPING),
]


class Waits(TorchDispatchMode):
    """Counts them by the step of the decoding that they are in; what is before the first step is in none."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[int] = []
        self.stepping = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if name in WAITS | SENDS or masks:
            self.count()
        return func(*args, **kwargs or {})

    def count(self) -> None:
        if self.stepping:
            self.found[-1] += 1


def waits_of(
    model: Any, name: str, prompts: Sequence[Sequence[int]], features: Any, monkeypatch: pytest.MonkeyPatch
) -> list[int]:
    """How often each step waited."""
    chosen = strategies(DecodeSettings.parse(name), model)
    canvas = chosen.canvas(model, prompts, response_length=20, streams=range(len(prompts)))
    reader = chosen.reader(model, features, response_length=20)
    waits = Waits()
    tolist, step = Tensor.tolist, loop._Run.step

    def counted(tensor: Tensor) -> Any:
        waits.count()
        return tolist(tensor)

    def stepped(run: Any, planned: Any) -> None:
        waits.found.append(0)
        waits.stepping = True
        step(run, planned)
        waits.stepping = False

    with waits, monkeypatch.context() as patch:
        patch.setattr(Tensor, "tolist", counted)  # on a CPU it is no operator
        patch.setattr(loop._Run, "step", stepped)
        decoded = chosen.decode(reader, canvas, response_length=20)
    assert len(waits.found) > 2
    if name.startswith(BY_CHANCE):
        assert decoded.forwards_B.unique().numel() > 1, "rows leave, whatever the model says"
    return waits.found


@pytest.mark.parametrize("name", EXACT)
def test_a_step_by_the_plan_never_waits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert max(waits_of(TinyDenoiser(copy=1.0), name, random_prompts([4, 6, 3, 9]), None, monkeypatch)) == 0


@pytest.mark.parametrize("name", EARLY)
def test_a_step_that_rows_may_leave_at_waits_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = waits_of(TinyDenoiser(copy=1.0), name, random_prompts([4, 6, 3, 9]), None, monkeypatch)
    assert max(waits) == 1


def images_for(model: Any, count: int) -> Any:
    """Features of images of different sizes; None if the model reads none."""
    if model.vision is None:
        return None
    with torch.inference_mode():
        return model.image_features(model.pixels([np.full((56, 56 + 40 * i, 3), 90, np.uint8) for i in range(count)]))


def prompts_for(model: Any, lengths: Sequence[int]) -> list[list[int]]:
    return [[IMAGE, *row] if model.vision is not None else row for row in random_prompts(lengths)]


@pytest.fixture(scope="module")
def published_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("checkpoints")
    models = {name: load_denoiser(published(folder, name)) for name in ("llada_tiny", "llada_v_tiny")}
    for name in ("bert", "modernbert"):
        written(folder / name, CONFIGS[name])
        models[name] = load_denoiser(folder / name)
    return models


@pytest.mark.parametrize(("checkpoint", "kept"), KEPT)
@pytest.mark.parametrize("name", [EXACT[0], EXACT[2], *EARLY])
def test_a_published_model_adds_no_wait(
    published_models: dict[str, Any], checkpoint: str, name: str, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where text and images go is asked before the first step, and never again, however rows leave."""
    model, attention = published_models[checkpoint], "prefix" if "attention" in kept else "full"
    model.attend(attention)
    asked = name.replace("w01,w02", "A,B").replace("w01", "A") + kept.replace("prefix attention", "")
    try:
        waits = waits_of(model, asked, prompts_for(model, (4, 6, 3)), images_for(model, 3), monkeypatch)
    finally:
        model.attend("full")
    assert max(waits) <= (name in EARLY)


class Sent(TorchDispatchMode):
    """Fails where a tensor is brought from the CPU to another device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **kwargs or {})
        if func.overloadpacket.__name__ in ("_to_copy", "copy_", "index"):
            assert len({one.device for one in [made, *tree_leaves(args)] if isinstance(one, Tensor)}) == 1, func
        return made


@pytest.mark.parametrize("attention", ["full", "prefix"])
@torch.inference_mode()
def test_the_scene_model_asks_and_sends_nothing(attention: Any) -> None:
    """On a device whose tensors cannot be read; on a CPU, where asking costs nothing, it asks."""
    model = scene_model().to("meta")
    model.attend(attention)
    canvas = strategies(DecodeSettings(), model).canvas(model, [[5] * 4, [6] * 9], response_length=20)
    features = torch.zeros(2, model.config.regions, 32, device="meta")
    known = {"valid_BL": canvas.valid_BL, "features_BND": features, "prompt_BL": canvas.prompt()}
    rows = Rows(numbers=(1,), index_K=torch.ones(1, dtype=torch.int64, device="meta"))
    with Sent():
        model.hidden(canvas.ids_BL, **known)
        memory = model.remembering()
        if attention == "full":
            _, kept = memory.remember(canvas.ids_BL, **known)
        else:
            kept = memory.remember_prompt(canvas.ids_BL, **known, response_length=20)
        part = canvas.select(rows.index_K)
        memory.reread(part.ids_BL, kept.select(rows), offset_B=part.offset_B, begin=0, end=20)
        kept.restore()


class Guarded:
    """Forbids waiting from the first forward to the last, after which the result is read."""

    def __init__(self, reader: Reader, forwards: int) -> None:
        self._reader, self._forwards, self._done = reader, forwards, 0
        self.tokenizer = reader.tokenizer

    def arrange(self, canvas: Canvas) -> None:
        self._reader.arrange(canvas)

    def hidden(self, *args: Any) -> Tensor:
        self._done += 1
        torch.cuda.set_sync_debug_mode("error" if 1 < self._done < self._forwards else "default")
        return self._reader.hidden(*args)

    def repeats(self) -> bool:
        return self._reader.repeats()

    def logits(self, hidden_NW: Tensor) -> Tensor:
        return self._reader.logits(hidden_NW)

    def select(self, rows: Rows) -> "Guarded":
        raise AssertionError(rows)


@pytest.mark.gpu
@pytest.mark.parametrize(("checkpoint", "kept"), [*KEPT, *(("scene", kept) for kept in KEEPING)])
@pytest.mark.parametrize("name", [*EXACT, *EARLY])
def test_a_step_waits_at_most_once_on_a_gpu(
    published_models: dict[str, Any], checkpoint: str, name: str, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA says itself when it makes the host wait; before that, whatever is set up once is set up."""
    model = copy.deepcopy(scene_model() if checkpoint == "scene" else published_models[checkpoint]).to("cuda")
    model.attend("prefix" if "attention" in kept else "full")
    word = "w1" if checkpoint == "scene" else "A"
    asked = name.replace("w01", word).replace("w02", "w2" if checkpoint == "scene" else "B")
    asked += kept.replace("prefix attention", "")
    found: list[int] = []
    step = loop._Run.step

    def stepped(run: Any, planned: Any) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                step(run, planned)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        found.append(sum("called a synchronizing CUDA operation" in str(one.message) for one in caught))

    for _ in range(2):
        found.clear()
        prompts = random_prompts((4, 6, 3)) if checkpoint == "scene" else prompts_for(model, (4, 6, 3))
        features = features_for(model) if checkpoint == "scene" else images_for(model, 3)
        chosen = strategies(DecodeSettings.parse(asked), model)
        canvas = chosen.canvas(model, prompts, response_length=20, streams=range(3))
        reader = chosen.reader(model, features, response_length=20)
        with monkeypatch.context() as patch:
            patch.setattr(loop._Run, "step", stepped)
            chosen.decode(reader, canvas, response_length=20)
    assert max(found) <= (name in EARLY)


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
