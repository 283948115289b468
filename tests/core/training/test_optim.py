import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from core.errors import ConfigError
from core.models.scene_denoiser import SceneDenoiser, SceneDenoiserConfig
from core.models.tokenizer import build_word_tokenizer
from core.training.optim import (
    Muon,
    build_optimizers,
    learning_rate,
    load_optimizer_tensors,
    optimizer_tensors,
    orthogonalised,
    set_learning_rate,
)
from core.training.settings import TrainSettings


def matrices(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


@pytest.mark.parametrize("shape", [(4, 16, 16), (3, 24, 8), (2, 8, 24)])
def test_newton_schulz_brings_singular_values_near_one_and_keeps_directions(shape):
    matrix_KMN = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    ours_KMN = orthogonalised(matrix_KMN)
    u, _, vh = torch.linalg.svd(matrix_KMN, full_matrices=False)
    diagonal = u.mT @ ours_KMN @ vh.mT
    values = torch.diagonal(diagonal, dim1=-2, dim2=-1)
    assert values.min() > 0.3
    assert values.max() < 1.3
    assert torch.allclose(diagonal, torch.diag_embed(values), atol=1e-3)


def test_newton_schulz_survives_a_gradient_of_zeros():
    assert torch.equal(orthogonalised(torch.zeros(2, 4, 4)), torch.zeros(2, 4, 4))


def test_muon_steps_as_torchs_muon_does():
    """torch's iterates in bf16, hence the tolerance: 3 % of the size of an update."""
    ours, theirs = matrices((12, 8), (8, 12), (12, 8)), matrices((12, 8), (8, 12), (12, 8))
    muon = Muon(ours, lr=0.02, weight_decay=0.1)
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(5):
        gradients = matrices((12, 8), (8, 12), (12, 8), seed=step + 1)
        for p, q, gradient in zip(ours, theirs, gradients, strict=True):
            p.grad, q.grad = gradient.detach().clone(), gradient.detach().clone()
        muon.step()
        reference.step()
    for p, q in zip(ours, theirs, strict=True):
        assert (p - q).norm() < 0.03 * 5 * 0.02 * 0.2 * math.sqrt(12 * 8)


def test_learning_rate_rises_linearly_and_falls_to_its_floor():
    settings = TrainSettings(steps=100, warmup=10, lr=1.0, floor=0.1)
    rates = [learning_rate(step, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[4] == pytest.approx(0.5, rel=0.01)
    assert rates[9] == max(rates)
    assert all(a > b for a, b in pairwise(rates[9:]))
    assert rates[50] == pytest.approx(0.1 + 0.9 * 0.5)
    assert rates[99] == pytest.approx(0.1, rel=0.01)
    assert learning_rate(0, TrainSettings(warmup=0, lr=1.0)) == 1.0


def small_model():
    config = SceneDenoiserConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, max_length=8)
    return SceneDenoiser.create(config, build_word_tokenizer(["a", "b"]), seed=0)


def step_once(model, optimizers, seed):
    for name, p in model.named_parameters():
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed + len(name)))
    set_learning_rate(optimizers, 0.01)
    for optimizer in optimizers:
        optimizer.step()


@pytest.mark.parametrize(("kind", "count"), [("muon", 2), ("adamw", 1)])
def test_every_parameter_belongs_to_exactly_one_optimizer(kind, count):
    model = small_model()
    optimizers = build_optimizers(model, TrainSettings(optimizer=kind))
    owned = [id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert len(optimizers) == count
    assert sorted(owned) == sorted(id(p) for p in model.parameters())


def test_optimizer_state_goes_through_names_and_back_to_the_bit():
    one, other = small_model(), small_model()
    optimizers = build_optimizers(one, TrainSettings())
    step_once(one, optimizers, 1)
    tensors = {key: value.clone() for key, value in optimizer_tensors(one.named_parameters(), optimizers).items()}
    assert "blocks.0.qkv.weight/momentum" in tensors
    assert "lm_head.bias/exp_avg" in tensors
    other.load_state_dict(one.state_dict())
    restored = build_optimizers(other, TrainSettings())
    load_optimizer_tensors(other.named_parameters(), restored, tensors)
    for model, opts in ((one, optimizers), (other, restored)):
        step_once(model, opts, 2)
        step_once(model, opts, 3)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


def test_state_of_another_model_is_refused():
    model = small_model()
    optimizers = build_optimizers(model, TrainSettings())
    with pytest.raises(ConfigError, match="elsewhere"):
        load_optimizer_tensors(model.named_parameters(), optimizers, {"elsewhere.weight/momentum": torch.ones(1)})
