import pytest

from core import token_losses
from tests.benchmarks import train_step_gpu
from tests.benchmarks.training_step import WAYS, Shape, batch, denoiser, gradient_norm

TINY = Shape(vocabulary=300, hidden=32, layers=2, heads=2, intermediate=48)


def test_all_ways_of_a_training_step_find_the_same_loss_and_gradient(monkeypatch):
    monkeypatch.setattr(token_losses, "_WHOLE_BYTES", 0)
    model, given = denoiser(TINY), batch(TINY, rows=3, prompt=8, response=56, supervised=0.5)
    found = {}
    for name, way in WAYS.items():
        loss = float(way(model, given))
        found[name] = (loss, gradient_norm(model))
    assert set(found) == {"redraft", "bare", "plain", "plain_rows", "torch"}
    for name, values in found.items():
        assert values == pytest.approx(found["bare"], rel=1e-4), name


def test_the_benchmark_for_gpus_runs_on_a_processor():
    case = train_step_gpu.GpuCase(
        shape=TINY, device="cpu", rows=4, at_once=2, prompt=8, response=4, rank=2, checkpointing=True, matmul=32
    )
    measured, ratios = train_step_gpu.measure(1, case)
    assert [ratio.bound for ratio in ratios] == [0.55, 0.45]
    assert measured["flops"]["lora_step"] > 0
    assert measured["seconds"].keys() == {"forward", "lora_step"}
