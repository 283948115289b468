import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from core import token_losses as module
from core.models.denoiser import load_denoiser
from core.models.pretrained import TiedHead
from core.models.scene_denoiser import SceneDenoiser, SceneDenoiserConfig
from core.models.tokenizer import build_word_tokenizer
from core.token_losses import LinearHead, losses_of_logits, token_losses
from core.training.batches import Batch
from core.training.loop import batch_loss
from data_contracts import TokenKind
from tests.core.models.checkpoints import published

N, V, D = 201, 311, 24


@pytest.fixture
def chunked(monkeypatch):
    """Small problems are computed as large ones are: in chunks of 64 tokens, the last of which is short."""
    monkeypatch.setattr(module, "_WHOLE_BYTES", 0)
    monkeypatch.setattr(module, "_CHUNK_BYTES", {"cpu": 64 * 4 * V})


def problem(*, bias=True, dtype=torch.float32, seed=0):
    """hidden_ND, targets_N, weights_N and a head. Half of the tokens weigh 0, a quarter is predicted right."""
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(D, V, bias=bias)
    with torch.no_grad():
        for p in head.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    hidden = torch.randn(N, D, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(0, V, (N,), generator=generator)
    weights = torch.rand(N, generator=generator) * (torch.arange(N) % 2)
    with torch.no_grad():
        targets[::4] = head(hidden.float())[::4].argmax(dim=1)
    return hidden, targets, weights, head.to(dtype)


def not_called(hidden_ND):
    raise AssertionError("all logits at once")


def gradients(loss, *tensors):
    """Of 2.5 x loss: what comes from above is not 1."""
    return torch.autograd.grad(2.5 * loss, tensors)


@pytest.mark.parametrize("bias", [True, False])
def test_chunks_give_the_losses_and_gradients_of_all_logits_at_once(chunked, bias):
    hidden, targets, weights, head = problem(bias=bias)
    whole = losses_of_logits(head(hidden), targets, weights)
    parts = token_losses(hidden, targets, weights, logits=not_called, head=LinearHead.of(head))
    torch.testing.assert_close(parts.loss, whole.loss)
    torch.testing.assert_close(parts.ce_N, whole.ce_N)
    assert torch.equal(parts.correct_N, whole.correct_N)
    assert 0 < whole.correct_N.sum() < N
    wanted, found = (gradients(one.loss, hidden, *head.parameters()) for one in (whole, parts))
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_chunks_of_bfloat16_are_summed_in_fp32(chunked):
    hidden, targets, weights, head = problem(dtype=torch.bfloat16)
    parts = token_losses(hidden, targets, weights, logits=not_called, head=LinearHead.of(head))
    assert parts.loss.dtype == parts.ce_N.dtype == torch.float32
    exact = head.double()
    exact_hidden = hidden.detach().double().requires_grad_()
    whole = losses_of_logits(exact(exact_hidden), targets, weights)
    assert parts.loss.item() == pytest.approx(whole.loss.item(), rel=2e-3)
    found = torch.autograd.grad(parts.loss, hidden)[0]
    wanted = torch.autograd.grad(whole.loss, exact_hidden)[0]
    assert found.dtype == torch.bfloat16
    assert (found.double() - wanted).norm() < 0.01 * wanted.norm()


def test_autocast_computes_chunks_in_its_precision(chunked):
    hidden, targets, weights, head = problem()
    with torch.autocast("cpu", torch.bfloat16):
        parts = token_losses(hidden, targets, weights, logits=not_called, head=LinearHead.of(head))
        whole = losses_of_logits(head(hidden), targets, weights)
    torch.testing.assert_close(parts.loss, whole.loss, rtol=1e-4, atol=1e-4)
    wanted, found = (gradients(one.loss, hidden, head.weight) for one in (whole, parts))
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - theirs).norm() < 0.01 * theirs.norm()


def test_a_token_that_the_model_holds_impossible_has_its_loss(chunked):
    head = nn.Linear(1, V, bias=True)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.full((V,), -500.0))
        head.bias[0] = 0.0
    parts = token_losses(
        torch.zeros(2, 1), torch.tensor([0, 5]), torch.ones(2), logits=not_called, head=LinearHead.of(head)
    )
    assert parts.ce_N.tolist() == [0.0, 500.0]
    assert parts.correct_N.tolist() == [1.0, 0.0]


def test_a_frozen_head_gets_no_gradient_and_passes_one_on(chunked):
    hidden, targets, weights, head = problem()
    head.requires_grad_(False)
    parts = token_losses(hidden, targets, weights, logits=not_called, head=LinearHead.of(head))
    whole = losses_of_logits(head(hidden), targets, weights)
    torch.testing.assert_close(gradients(parts.loss, hidden), gradients(whole.loss, hidden), rtol=1e-4, atol=1e-4)
    assert head.weight.grad is None


def test_a_gradient_is_taken_once(chunked):
    hidden, targets, weights, head = problem()
    loss = token_losses(hidden, targets, weights, logits=not_called, head=LinearHead.of(head)).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        loss.backward()


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that anything makes."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return made


def test_chunks_never_hold_the_scores_of_all_tokens(chunked):
    hidden, targets, weights, head = problem()
    with Largest() as parts:
        token_losses(hidden, targets, weights, logits=not_called, head=LinearHead.of(head)).loss.backward()
    with Largest() as whole:
        losses_of_logits(head(hidden), targets, weights).loss.backward()
    assert (parts.elements, whole.elements) == (64 * V, N * V)


def test_small_problems_have_the_bits_of_a_plain_cross_entropy():
    hidden, targets, weights, head = problem()
    found = token_losses(hidden, targets, weights, logits=head, head=LinearHead.of(head))
    plain = (weights * F.cross_entropy(head(hidden), targets, reduction="none")).sum()
    assert torch.equal(found.loss, plain)
    for mine, theirs in zip(gradients(found.loss, hidden), gradients(plain, hidden), strict=True):
        assert torch.equal(mine, theirs)


def test_a_head_of_several_layers_scores_all_tokens_at_once(chunked):
    hidden, targets, weights, head = problem()
    composed = nn.Sequential(nn.GELU(), head)
    assert LinearHead.of(composed) is None
    found = token_losses(hidden, targets, weights, logits=composed, head=None)
    assert torch.equal(found.loss, losses_of_logits(composed(hidden), targets, weights).loss)


def scene_model(tmp_path):
    tokenizer = build_word_tokenizer([f"w{i}" for i in range(300)])
    return SceneDenoiser.create(
        SceneDenoiserConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, max_length=40),
        tokenizer,
        seed=0,
    )


def llada(tmp_path):
    return load_denoiser(published(tmp_path, "llada_tiny"))


def tied_llada(tmp_path):
    model = llada(tmp_path)
    model.head = TiedHead(model.get_input_embeddings())
    return model


def dream(tmp_path):
    return load_denoiser(published(tmp_path, "dream_tiny"))


def step(model):
    """Loss, metrics and gradients of a batch with 5 rows of 40 tokens, two thirds of them supervised."""
    generator = torch.Generator().manual_seed(1)
    ids_BL = torch.randint(0, 300, (5, 40), generator=generator)
    kinds_BL = torch.tensor([TokenKind.PROMPT, TokenKind.MASK, TokenKind.SYNTAX], dtype=torch.int8)[ids_BL % 3]
    batch = Batch(
        input_ids_BL=ids_BL,
        target_ids_BL=ids_BL.roll(1, 0),
        kinds_BL=kinds_BL,
        weights_BL=(kinds_BL != TokenKind.PROMPT) * torch.rand(5, 40, generator=generator),
        valid_BL=torch.ones_like(ids_BL, dtype=torch.bool),
        regions_BL=None,
        pixels=None,
        image_index_I=None,
    )
    model.zero_grad()
    loss, metrics = batch_loss(model, batch, 0.0)
    loss.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **metrics}, grads


@pytest.mark.parametrize("made", [scene_model, llada, tied_llada, dream])
def test_a_training_step_is_the_same_in_chunks_and_at_once(tmp_path, monkeypatch, made):
    model = made(tmp_path)
    metrics, grads = step(model)
    monkeypatch.setattr(module, "_WHOLE_BYTES", 0)
    monkeypatch.setattr(type(model), "logits", lambda _, hidden_ND: not_called(hidden_ND))
    again, grads_again = step(model)
    torch.testing.assert_close(again, metrics)
    torch.testing.assert_close(grads_again, grads, rtol=1e-3, atol=1e-5)
