"""Peak memory of training steps in a fresh process, which writes one line of JSON: what `bench_train_step` starts.

python -m tests.benchmarks.training_memory '{"way": "redraft", "vocabulary": 2048, ...}'    (`MemoryCase`)

Resident memory, as the kernel counts it; the peak is that of the whole process, in which nothing before the steps took
as much. Two steps of forward, backward and AdamW, so that the optimizer's state is there in the second.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import torch

from core.heap import large_tensors_apart
from core.training.loop import batch_loss
from core.training.optim import build_optimizers
from core.training.settings import LoraSettings, TrainSettings
from core.training.trainee import prepare
from tests.benchmarks import training_step
from tests.benchmarks.training_step import Shape


@dataclass(frozen=True, kw_only=True)
class MemoryCase:
    """What is measured: a way of `training_step`, the model's sizes and the batch; `at_once`: rows a forward.

    adapted: as the preset for published checkpoints trains: adapters in fp32 on weights in bf16, computed in bf16,
    activations computed again.
    """

    way: str
    vocabulary: int
    hidden: int = 512
    layers: int = 8
    rows: int = 16
    prompt: int = 64
    response: int = 128
    supervised: float = 0.5
    at_once: int = 0
    adapted: bool = False

    @property
    def settings(self) -> TrainSettings:
        """Of the training."""
        plain = TrainSettings(optimizer="adamw", batch_size=self.rows, micro_batch=self.at_once)
        less = {"lora": LoraSettings(rank=16), "precision": "bf16", "gradient_checkpointing": True}
        return plain.model_copy(update=less) if self.adapted else plain

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights as they are loaded."""
        return torch.bfloat16 if self.adapted else torch.float32


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes: of the process before there was a model, with its weights, and at most."""

    before: int
    loaded: int
    peak: int

    @property
    def step(self) -> int:
        """Of the training: weights, gradients, optimizer, activations and loss, without the interpreter's libraries."""
        return self.peak - self.before

    @property
    def above_weights(self) -> int:
        """Without the weights."""
        return self.peak - self.loaded


def measure(case: MemoryCase) -> Memory:
    """Run the steps in this process, which must be fresh."""
    shape = Shape(vocabulary=case.vocabulary, hidden=case.hidden, layers=case.layers, intermediate=3 * case.hidden)
    with torch.autocast("cpu", torch.bfloat16, enabled=case.adapted):
        training_step.WAYS["bare"](*_tiny())  # what torch loads when it first computes is no part of a step
    before = _resident()
    model = training_step.denoiser(shape, dtype=case.dtype)
    trainee = prepare(model, case.settings, seed=0)
    optimizers = build_optimizers(model, case.settings, trainee.rates)
    loaded = _resident()
    whole = training_step.batch(
        shape, rows=case.rows, prompt=case.prompt, response=case.response, supervised=case.supervised
    )
    with large_tensors_apart():  # as core.training.job has it; all ways alike
        for _ in range(2):
            for part in training_step.parts(whole, case.at_once or case.rows):
                if case.adapted:
                    with trainee.computing():
                        loss, _ = batch_loss(model, part, 0.0)
                    loss.backward()
                else:
                    training_step.WAYS[case.way](model, part)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
    return Memory(before=before, loaded=loaded, peak=_most_resident())


def _tiny() -> tuple[training_step.PretrainedDenoiser, training_step.Batch]:
    shape = Shape(vocabulary=64, hidden=16, layers=1, heads=2, intermediate=16)
    return training_step.denoiser(shape), training_step.batch(shape, rows=2, prompt=4, response=4, supervised=0.5)


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)


def _most_resident() -> int:
    """Of this program alone: getrusage's ru_maxrss begins with what the process that started it had."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]) if len(sys.argv) > 2 else torch.get_num_threads())
    sys.stdout.write(json.dumps(asdict(measure(MemoryCase(**json.loads(sys.argv[1]))))) + "\n")
