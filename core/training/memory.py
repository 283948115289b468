"""How much memory a training is going to take, and what would make it fit, before it starts.

The step itself is run, on tensors that have sizes and no content (torch's FakeTensorMode): every layer, adapter,
checkpoint of activations and cast to bf16 is that of the training, and the sizes of all tensors that are alive at the
same time are added up. What kernels take for themselves, allocators keep, and the data take is not in it.

Shapes: B rows computed at once, L text tokens, N supervised tokens, D hidden size.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from pathlib import Path
from typing import Any, cast
from weakref import finalize

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from core.errors import InputError
from core.models.checkpoint import read_config
from core.models.denoiser import LOADERS, load_denoiser
from core.models.pretrained import PretrainedDenoiser
from core.training.memory_images import image_features
from core.training.optim import Muon, build_optimizers
from core.training.settings import LoraSettings, TrainSettings
from core.training.sharding import layers_of
from core.training.trainee import Trainee, prepare

_ADAPTER = LoraSettings(rank=16)
_TAKES_NONE = {
    "steps", "lr", "warmup", "floor", "weight_decay", "grad_clip", "log_every", "checkpoint_every", "bucket",
}  # fmt: skip
"""Settings that no plan depends on."""


@dataclass(frozen=True, kw_only=True)
class RowSizes:
    """A long row of the data: prompt and response in tokens, those that are supervised, and its image in pixels."""

    text: int
    supervised: int
    image: tuple[int, int] | None = None
    """Width and height."""


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes of one process at the worst moment of a step, and before the first.

    gathered: parameters of other processes that it holds while it computes with them. working: activations, the loss,
    and what the optimizer's step or the backward pass hold for a while. start: all weights, in the dtypes that they are
    trained in, which each process has whole until they are dealt out.
    """

    weights: int
    gradients: int
    optimizer: int
    gathered: int
    working: int
    start: int

    @property
    def step(self) -> int:
        """Of a step: the sum of its parts."""
        return self.weights + self.gradients + self.optimizer + self.gathered + self.working

    @property
    def total(self) -> int:
        """What is needed: for a step, or for the start if that takes more."""
        return max(self.step, self.start)


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """A change of the settings, as people read it, and what the training would need then."""

    change: str
    plan: MemoryPlan


def plan_training(
    model: PretrainedDenoiser, settings: TrainSettings, row: RowSizes, *, processes: int = 1
) -> MemoryPlan:
    """What each of the processes needs.

    Args:
        model: without its weights (on the meta device), or with them; it is of no use afterwards.
        settings: of the training.
        row: every row is taken to be like this one.
        processes: how many deal weights and rows out among them (FSDP).
    """
    trainee = prepare(model, settings, seed=0)
    own = -(-settings.batch_size // processes)
    at_once = min(own, settings.micro_batch or own)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _empty(model)
        trained = _bytes(trainee.trained().values())
        weights = _bytes(model.parameters())
        optimizers = build_optimizers(model, settings, trainee.rates)
        moments = sum(
            _bytes(group["params"]) * (1 if isinstance(optimizer, Muon) else 2)
            for optimizer in optimizers
            for group in optimizer.param_groups
        )
        if processes > 1:
            working = _peak_of_step(trainee, row, at_once, keep=False)
            return MemoryPlan(
                weights=weights // processes,
                gradients=trained // processes,
                optimizer=moments // processes,
                gathered=_gathered(model),
                working=working,
                start=weights,
            )
        peak = max(_peak_of_step(trainee, row, at_once, keep=True, times=1 if at_once == own else 2), trained)
        for optimizer in optimizers:
            if isinstance(optimizer, Muon):
                peak = max(peak, trained + _peak_of_muon(optimizer))
    return MemoryPlan(
        weights=weights, gradients=trained, optimizer=moments, gathered=0, working=peak - trained, start=weights
    )


def blank(checkpoint: Path) -> PretrainedDenoiser:
    """The model of a checkpoint. Of the published layouts, which may be large, only the files' headers are read.

    Raises:
        InputError: it is no such checkpoint.
    """
    by_parts = LOADERS.get(read_config(checkpoint)["model_type"], "").startswith(
        ("core.models.published", "core.models.compose")
    )
    model = load_denoiser(checkpoint, device="meta" if by_parts else "cpu")
    if not isinstance(model, PretrainedDenoiser):
        raise InputError(f"{checkpoint}: the memory of small models made anew is not planned: they need less than 1 GB")
    return model


class Planner:
    """Plans for rows of one size. Settings that differ in nothing that takes memory are planned once.

    `build` makes the model anew for each plan.
    """

    def __init__(self, build: Callable[[], PretrainedDenoiser], row: RowSizes) -> None:
        self._build, self._row = build, row
        self._plans: dict[tuple[str, int], MemoryPlan] = {}

    def plan(self, settings: TrainSettings, *, processes: int = 1) -> MemoryPlan:
        """See `plan_training`."""
        key = (settings.model_dump_json(exclude=_TAKES_NONE), processes)
        if key not in self._plans:
            self._plans[key] = plan_training(self._build(), settings, self._row, processes=processes)
        return self._plans[key]


def remedies(
    planner: Planner, settings: TrainSettings, *, processes: int, memory: int, shared: bool = False
) -> list[Remedy]:
    """Changes that make a training fit into `memory` bytes a process: each that does alone, else the fewest together.

    Of as many, those that change nothing in the result come first. Empty if nothing known here helps.

    Args:
        shared: all processes have the same memory, as on one machine's processors, so that more of them have no more.
    """
    known = [one for one in _CHANGES if not (shared and one.times > 1)]
    changes = [one for one in known if one.times > 1 or settings.model_copy(update=one.update) != settings]

    def remedy(chosen: Sequence[_Change]) -> Remedy:
        changed, count = settings, processes
        for one in chosen:
            changed, count = changed.model_copy(update=one.update), count * one.times
        said = " and ".join(one.said.format(processes=count) for one in chosen)
        return Remedy(change=said, plan=planner.plan(changed, processes=count))

    for count in range(1, len(changes) + 1):
        fitting = (one for one in map(remedy, combinations(changes, count)) if one.plan.total <= memory)
        if found := list(fitting if count == 1 else islice(fitting, 1)):
            return found
    return []


@dataclass(frozen=True, kw_only=True)
class _Change:
    said: str
    update: dict[str, Any]
    times: int = 1


_CHANGES = (
    _Change(said="micro_batch = 1", update={"micro_batch": 1}),
    _Change(said="gradient_checkpointing = true", update={"gradient_checkpointing": True}),
    _Change(said="precision = 'bf16'", update={"precision": "bf16"}),
    _Change(said=f"lora.rank = {_ADAPTER.rank}", update={"lora": _ADAPTER}),
    _Change(said="compute.processes = {processes} with optimizer = 'adamw'", update={"optimizer": "adamw"}, times=4),
)
"""Those that change nothing in what is computed first, then those that do, then more hardware."""


def _empty(model: nn.Module) -> None:
    """Give every parameter and buffer its size and no content."""
    done: dict[int, nn.Parameter] = {}
    for part in list(model.modules()):
        for name, p in list(part.named_parameters(recurse=False)):
            if id(p) not in done:
                done[id(p)] = nn.Parameter(torch.empty(p.shape, dtype=p.dtype), requires_grad=p.requires_grad)
            setattr(part, name, done[id(p)])
        for name, buffer in list(part.named_buffers(recurse=False)):
            part.register_buffer(name, torch.empty(buffer.shape, dtype=buffer.dtype), persistent=False)


def _peak_of_step(trainee: Trainee, row: RowSizes, rows: int, *, keep: bool, times: int = 1) -> int:
    """Most bytes alive at once in forward and backward, gradients included if they are kept."""
    trained = list(trainee.trained().values())
    handles = [] if keep else [p.register_post_accumulate_grad_hook(_forget) for p in trained]  # type: ignore[no-untyped-call]  # torch's
    live = _Live()
    with live:
        for _ in range(times):
            with trainee.computing():
                loss = _loss(cast(PretrainedDenoiser, trainee.model), row, rows)
            loss.backward()  # type: ignore[no-untyped-call]  # torch's
            del loss
    for handle in handles:
        handle.remove()
    for p in trained:
        p.grad = None
    return live.peak


def _forget(p: Tensor) -> None:
    p.grad = None


def _loss(model: PretrainedDenoiser, row: RowSizes, rows: int) -> Tensor:
    """As `core.training.loop.batch_loss`, where no content decides about a size."""
    ids_BL = torch.zeros(rows, row.text, dtype=torch.int64)
    parts = [model.get_input_embeddings()(ids_BL)]
    if row.image is not None:
        parts.insert(0, image_features(model, row.image, rows))
    hidden_BLD = model.layout.encode(model.language, torch.cat(parts, dim=1), None)[:, -row.text :]
    hidden_ND = hidden_BLD[:, : row.supervised].flatten(0, 1)
    targets_N = torch.zeros(len(hidden_ND), dtype=torch.int64)
    return model.token_losses(hidden_ND, targets_N, torch.zeros(len(hidden_ND))).loss


def _peak_of_muon(optimizer: Muon) -> int:
    """Most bytes alive in its step beyond gradients and momentum."""
    matrices = [p for group in optimizer.param_groups for p in group["params"]]
    for p in matrices:
        p.grad = torch.empty_like(p)
        optimizer.state[p]["momentum"] = torch.empty_like(p)
    live = _Live()
    with live:
        optimizer.step()
    for p in matrices:
        p.grad = None
    return live.peak


def _gathered(model: PretrainedDenoiser) -> int:
    """Two layers of the language model, in computation and on their way, and all that is outside of the layers.

    Each with its gradients, as far as it is trained, before they are dealt out.
    """
    layers = list(layers_of(model))
    inside = {id(p) for layer in layers for p in layer.parameters()}
    outside = [p for p in model.parameters() if id(p) not in inside]
    largest = max((_with_gradients(list(layer.parameters())) for layer in layers), default=0)
    return 2 * largest + _with_gradients(outside)


def _with_gradients(parameters: Sequence[nn.Parameter]) -> int:
    return _bytes(parameters) + _bytes(p for p in parameters if p.requires_grad)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """The bytes of all tensors that were made in it and are alive: now, and at most."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in given:
                self._add(leaf.untyped_storage())
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
