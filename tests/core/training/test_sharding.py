"""Two processes train as one does. They are started once; the tests read what they wrote."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from safetensors.torch import load_file

from core.errors import ConfigError
from core.models.denoiser import load_denoiser
from core.training.loop import train
from core.training.sharding import ALONE, Processes, put_together
from core.training.trainee import prepare
from tests.core.models.checkpoints import published
from tests.core.models.test_masked_lm import CONFIGS, written
from tests.core.models.test_published_use import SHAS
from tests.core.training import two_processes
from tests.core.training.trainings import apart, batches_of, same_bits, trained, weights

pytestmark = pytest.mark.timeout(600)  # processes that wait for each other are slow on a machine that others use


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """The checkpoint, what two processes made of it, and what one made."""
    torch.set_num_threads(1)
    base = tmp_path_factory.mktemp("sharding")
    checkpoint = published(base, "llada_v_tiny")
    written(base / "bert", CONFIGS["bert"])
    (base / "two").mkdir()
    torch.multiprocessing.spawn(two_processes.run, args=(checkpoint, base / "two"), nprocs=2)
    two_processes.alone(checkpoint, base / "one")
    return checkpoint, base / "two", base / "one"


def curve(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


@pytest.mark.parametrize("name", [*two_processes.CASES, *two_processes.SOME_BLIND, "one blind"])
def test_two_processes_end_where_one_does(found, name):
    checkpoint, two, one = found
    for (_, ours), (_, alone) in zip(curve(two, name), curve(one, name), strict=True):
        assert ours.keys() == alone.keys()
        for metric in (key for key in ours if key.split("/")[0] in ("loss", "ce", "accuracy", "count", "lr")):
            assert ours[metric] == pytest.approx(alone[metric], rel=1e-4), metric
        assert ours["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-3)
    models = [load_denoiser(folder / name) for folder in (two, one)]
    assert apart(*models, load_denoiser(checkpoint)) < 5e-3


def test_steps_without_images_come_among_others_with(found):
    settings = two_processes.SOME_BLIND["blind steps"]
    batches = batches_of(load_denoiser(found[0]), settings, [*SHAS, None, None, None])
    shown = [batches.shows(step) for step in range(settings.steps)]
    assert (True, False) in pairwise(shown)
    assert shown == [batches.batch(step).pixels is not None for step in range(settings.steps)]


def test_where_sight_alone_is_trained_rows_of_text_alone_change_nothing(found):
    """Some steps show no image at all, and in some one process has rows of text alone."""
    checkpoint, _, one = found
    settings = two_processes.SOME_BLIND["sight alone"]
    batches = batches_of(load_denoiser(checkpoint), settings, [*SHAS, None, None, None])
    assert {batches.shows(step) for step in range(settings.steps)} == {True, False}
    before, after = weights(load_denoiser(checkpoint)), weights(load_denoiser(one / "sight alone"))
    moved = {name for name, p in after.items() if not torch.equal(p, before[name])}
    assert moved
    assert all(name.startswith("vision.") for name in moved)


def test_weights_that_stand_still_in_bf16_are_dealt_out_beside_adapters_in_fp32(found):
    checkpoint, two, one = found
    for (_, ours), (_, alone) in zip(curve(two, "frozen in bf16"), curve(one, "frozen in bf16"), strict=True):
        assert ours["loss"] == pytest.approx(alone["loss"], rel=0.01)
        assert ours["grad_norm"] == pytest.approx(alone["grad_norm"], rel=0.05)
    ours, alone = (
        load_file(folder / "frozen in bf16" / "adapter" / "adapter_model.safetensors") for folder in (two, one)
    )
    assert {tensor.dtype for tensor in ours.values()} == {torch.float32}
    up = [name for name in ours if "lora_B" in name]
    distance = sum((ours[name] - alone[name]).square().sum() for name in up)
    assert (distance / sum(alone[name].square().sum() for name in up)).sqrt() < 0.2
    still, before = load_denoiser(two / "frozen in bf16"), load_denoiser(checkpoint, dtype=torch.bfloat16)
    assert {p.dtype for p in still.parameters()} == {torch.bfloat16}
    assert torch.equal(still.head.weight, before.head.weight)


def test_two_processes_train_a_head_that_shares_the_token_embedding(found):
    checkpoint, two, one = found
    ours, alone = (load_denoiser(folder / "tied") for folder in (two, one))
    start = load_denoiser(checkpoint.parent / "bert")
    assert len(list(start.parameters())) < len(list(start.named_parameters(remove_duplicate=False)))
    assert apart(ours, alone, start) < 5e-3
    assert [step for step, _ in curve(two, "tied")] == [1, 2, 3]


def test_parameters_that_are_shared_stay_so_when_they_are_put_together(tmp_path):
    written(tmp_path, CONFIGS["bert"])
    model, settings = load_denoiser(tmp_path), two_processes.PLAIN
    before = weights(model)
    trainee = prepare(model, settings, seed=0)
    names = [name for name, _ in model.named_parameters()]
    put_together(model, ALONE)
    assert [name for name, _ in model.named_parameters()] == names
    trainee.finish()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_each_process_holds_half_of_every_parameter(found):
    shards = json.loads((found[1] / "shards.json").read_text())
    assert shards
    for own, whole in shards:
        assert own == pytest.approx(whole / 2, rel=0.05)


def test_two_processes_go_on_with_the_same_bits(found):
    _, two, _ = found
    assert same_bits(load_denoiser(two / "lora"), load_denoiser(two / "lora resumed"))
    assert [step for step, _ in curve(two, "lora resumed")] == [1, 2, 3]


def test_one_process_goes_on_from_what_two_have_left(found, tmp_path):
    checkpoint, two, _ = found
    shutil.copytree(two / "steps" / "step-00000002", tmp_path / "step-00000002")
    model, result = trained(checkpoint, two_processes.CASES["lora"], seed=1, checkpoint_dir=tmp_path)
    assert result.resumed_at == 2
    assert apart(model, load_denoiser(two / "lora"), load_denoiser(checkpoint)) < 5e-3


def test_muon_is_refused_where_matrices_are_dealt_out(found):
    model = load_denoiser(found[0])
    settings = two_processes.PLAIN.model_copy(update={"optimizer": "muon"})
    with pytest.raises(ConfigError, match=r"Muon.*adamw"):
        train(model, batches_of(model, settings), settings, processes=Processes(rank=0, world=2, mesh=object()))
