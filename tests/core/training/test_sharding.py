"""Two processes train as one does. They are started once; the tests read what they wrote."""

import json
from pathlib import Path

import pytest
import torch
import torch.multiprocessing

from core.errors import ConfigError
from core.models.denoiser import load_denoiser
from core.training.checkpoint import load_latest
from core.training.loop import train
from core.training.sharding import Processes
from tests.core.models.checkpoints import published
from tests.core.training import two_processes
from tests.core.training.trainings import apart, batches_of, same_bits


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """The checkpoint, what two processes made of it, and what one made."""
    torch.set_num_threads(1)
    base = tmp_path_factory.mktemp("sharding")
    checkpoint = published(base, "llada_v_tiny")
    (base / "two").mkdir()
    torch.multiprocessing.spawn(two_processes.run, args=(checkpoint, base / "two"), nprocs=2)
    two_processes.alone(checkpoint, base / "one")
    return checkpoint, base / "two", base / "one"


def curve(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


@pytest.mark.parametrize("name", [*two_processes.CASES, "one blind"])
def test_two_processes_end_where_one_does(found, name):
    checkpoint, two, one = found
    exact = "bf16" not in str(two_processes.CASES.get(name))
    for (_, ours), (_, alone) in zip(curve(two, name), curve(one, name), strict=True):
        assert ours.keys() == alone.keys()
        for metric in (key for key in ours if key.split("/")[0] in ("loss", "ce", "accuracy", "count", "lr")):
            assert ours[metric] == pytest.approx(alone[metric], rel=1e-4 if exact else 0.02), metric
        assert ours["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-3 if exact else 0.05)
    models = [load_denoiser(folder / name) for folder in (two, one)]
    assert apart(*models, load_denoiser(checkpoint)) < (5e-3 if exact else 0.5)


def test_each_process_holds_half_of_every_parameter(found):
    shards = json.loads((found[1] / "shards.json").read_text())
    assert shards
    for own, whole in shards:
        assert own == pytest.approx(whole / 2, rel=0.05)


@pytest.mark.parametrize("name", ["full", "all"])
def test_two_processes_go_on_with_the_same_bits(found, name):
    _, two, _ = found
    assert same_bits(load_denoiser(two / name), load_denoiser(two / f"{name} resumed"))
    assert [step for step, _ in curve(two, f"{name} resumed")] == [1, 2, 3]


@pytest.mark.parametrize("name", ["full", "all"])
def test_one_process_goes_on_from_what_two_have_left(found, name, tmp_path):
    checkpoint, two, _ = found
    settings = two_processes.CASES[name]
    steps = two / f"steps {name}"
    newest = steps / "step-00000003"
    newest.rename(tmp_path / "newest")
    try:
        model = load_denoiser(checkpoint)
        result = train(model, batches_of(model, settings), settings, seed=1, checkpoint_dir=steps)
    finally:
        if newest.exists():
            newest.rename(tmp_path / "own")
        (tmp_path / "newest").rename(newest)
    assert result.resumed_at == 2
    assert apart(model, load_denoiser(two / name), load_denoiser(checkpoint)) < 0.5
    assert load_latest(steps).step == 3


def test_muon_is_refused_where_matrices_are_dealt_out(found):
    model = load_denoiser(found[0])
    settings = two_processes.PLAIN.model_copy(update={"optimizer": "muon"})
    with pytest.raises(ConfigError, match=r"Muon.*adamw"):
        train(model, batches_of(model, settings), settings, processes=Processes(rank=0, world=2, mesh=object()))
