"""One training in several processes: parameters, gradients and optimizers are dealt out (FSDP2), rows too.

What a parameter is whole of and what this process has of it are told apart by its type: DTensor or Tensor.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from core.models.denoiser import TrainableDenoiser
from core.models.pretrained import PretrainedDenoiser
from core.training.window import Values


@dataclass(frozen=True, kw_only=True)
class Processes:
    """This process among those that train together. Without a mesh it trains alone, and nothing is dealt out."""

    rank: int = 0
    world: int = 1
    mesh: DeviceMesh | None = None

    def gather(self, steps: list[list[Values]]) -> list[list[list[Values]]]:
        """What each of them measured."""
        if self.mesh is None:
            return [steps]
        found: list[list[list[Values]]] = [[] for _ in range(self.world)]
        dist.all_gather_object(found, steps)
        return found

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors, on the processor, in process 0; the others help, and get nothing."""
        gathered = {}
        for name, tensor in tensors.items():
            full = whole(tensor)
            if self.rank == 0:
                gathered[name] = full if self.mesh is None else full.cpu()
        return gathered


ALONE = Processes()


def whole(tensor: Tensor) -> Tensor:
    """A tensor that no process has a part of; all of them must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def share_of(tensor: Tensor, like: Tensor) -> Tensor:
    """What this process keeps of a whole tensor, on the device of the parameter `like`, dealt out as that is.

    A tensor of another shape than the parameter's (a step counter) is not dealt out.
    """
    moved = tensor.to(like.device)
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return moved
    return distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None)


def deal_out(step: nn.Module, model: TrainableDenoiser, processes: Processes, *, pictured: bool) -> None:
    """Deal out the parameters of `step`, a module whose forward is a whole step of `model`.

    Each layer of the language model is gathered when it is computed. Everything else is gathered for the whole step:
    a tower runs as often as a process has tiles, so its layers must not wait for those of other processes.

    `pictured`: rows may show images, those of one process alone perhaps; where it has none, the gradients of what sees
    are zeros for it; see `drop_gradients_of_sight` for steps in which nobody has any.
    """
    for layer in layers_of(model):
        fully_shard(layer, mesh=processes.mesh)
    fully_shard(step, mesh=processes.mesh)
    for part in step.modules():
        if isinstance(part, FSDPModule):  # gradients of shares of the loss are added up, not averaged
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)
            part.set_reduce_scatter_unused_params(pictured, recurse=False)
    if isinstance(model, PretrainedDenoiser) and any(p.requires_grad for p in model.vision_parameters()):
        # the backward pass of rows with images goes down to the embeddings, gathering layers and summing gradients in
        # that order, which takes everyone: rows of text alone have to go there too
        model.get_input_embeddings().register_forward_hook(lambda _module, _given, made: made.requires_grad_())


def drop_gradients_of_sight(model: TrainableDenoiser) -> None:
    """After a step that shows no image: one process would have none, and zeros let momentum and decay move weights."""
    for p in model.vision_parameters():
        p.grad = None


def layers_of(model: TrainableDenoiser) -> Iterator[nn.Module]:
    """The layers of the language model: the children of its outermost lists."""
    language = model.language if isinstance(model, PretrainedDenoiser) else cast(nn.Module, model)
    lists = {name: part for name, part in language.named_modules() if isinstance(part, nn.ModuleList)}
    for name, part in lists.items():
        if not any(name.startswith(f"{other}.") for other in lists if other != name):
            yield from part


@torch.no_grad()
def put_together(model: TrainableDenoiser, processes: Processes) -> None:
    """Give the model of process 0 whole parameters, on the processor: to be saved, not to be run. Others lose them.

    A parameter that several modules share is gathered once, and they go on sharing it.
    """
    parts = cast(nn.Module, model)
    made: dict[nn.Parameter, nn.Parameter] = {}
    for name, p in list(parts.named_parameters(remove_duplicate=False)):
        if p not in made:
            full = whole(p)
            kept = full.cpu() if processes.rank == 0 else torch.empty(0)
            made[p] = nn.Parameter(kept, requires_grad=p.requires_grad)
        owner, _, attribute = name.rpartition(".")
        setattr(parts.get_submodule(owner), attribute, made[p])
