"""The planner's bytes against those that torch's profiler counts while a real training step runs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft.tuners.lora import Linear as LoraLinear
from torch.profiler import ProfilerActivity, profile

from core.models.compose import compose
from core.models.denoiser import load_denoiser, save_denoiser
from core.models.devices import Placement
from core.training.batches import Batch
from core.training.loop import train
from core.training.memory import Planner, RowSizes, blank, plan_training, remedies
from core.training.settings import GroupRates, LoraSettings, TrainSettings
from core.training.trainee import prepare
from data_contracts import TokenKind
from tests.benchmarks.training_step import Shape, denoiser
from tests.core.models.checkpoints import published
from tests.core.models.test_compose import tower
from tests.core.models.test_masked_lm import CONFIGS, written


class Rows:
    """Rows of a prompt and a supervised response; with an image each, or none."""

    pictured = False

    def __init__(self, model, settings, *, text, supervised, image=None):
        self.model, self.rows, self.text, self.supervised, self.image = (
            model,
            settings.batch_size,
            text,
            supervised,
            image,
        )

    def batch(self, step):
        return self.part(step, np.arange(self.rows))

    def labels(self, step, places_P=None):
        return 0

    def part(self, step, places_P):
        rows = len(places_P)
        ids_BL = torch.randint(0, 60, (rows, self.text), generator=torch.Generator().manual_seed(step))
        kinds_BL = torch.full_like(ids_BL, int(TokenKind.PROMPT), dtype=torch.int8)
        kinds_BL[:, -self.supervised :] = int(TokenKind.MASK)
        pixels = None
        if self.image:
            ids_BL[:, 0] = self.model.layout.placeholder
            pixels = self.model.pixels([np.zeros((*self.image[::-1], 3), np.uint8)] * rows)
        return Batch(
            input_ids_BL=ids_BL,
            target_ids_BL=ids_BL.clamp(min=0),
            kinds_BL=kinds_BL,
            weights_BL=(kinds_BL == TokenKind.MASK).float(),
            valid_BL=torch.ones_like(ids_BL, dtype=torch.bool),
            regions_BL=None,
            pixels=pixels,
            image_index_I=None if pixels is None else torch.arange(rows),
        )


def measured(model, settings, rows):
    """Weights, and the most that two steps held beyond what was there: all allocations in their order, added up."""
    weights = sum(p.nbytes for p in model.parameters())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        train(model, rows, settings)
    changes = [event.nbytes() for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return weights + int(np.cumsum(changes).max())


SMALL = Shape(vocabulary=700, hidden=128, layers=3, heads=4, intermediate=384)
DEEP = Shape(vocabulary=100, hidden=64, layers=24, heads=4, intermediate=192)
SETTINGS = {
    "adamw": {"optimizer": "adamw"},
    "muon": {},
    "micro-batches": {"optimizer": "adamw", "micro_batch": 2},
    "activations again": {"optimizer": "adamw", "gradient_checkpointing": True},
    "adapters": {"optimizer": "adamw", "lora": LoraSettings(rank=4)},
    "bf16": {"optimizer": "adamw", "precision": "bf16"},
    "bf16, activations again": {
        "optimizer": "adamw", "precision": "bf16", "micro_batch": 2, "gradient_checkpointing": True,
    },
    "bf16 adapters, activations again": {
        "optimizer": "adamw", "precision": "bf16", "micro_batch": 2, "gradient_checkpointing": True,
        "lora": LoraSettings(rank=4),
    },
    "head alone": {"optimizer": "adamw", "group_lr": GroupRates(language=0.0)},
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_the_plan_is_what_a_training_holds(name):
    settings = TrainSettings(steps=2, batch_size=8, warmup=0, **SETTINGS[name])
    row = RowSizes(text=200, supervised=120)
    plan = plan_training(denoiser(SMALL), settings, row)
    model = denoiser(SMALL)
    found = measured(model, settings, Rows(model, settings, text=row.text, supervised=row.supervised))
    assert plan.total == pytest.approx(found, rel=0.1)


def test_weights_in_bf16_are_never_all_there_at_once_where_activations_are_computed_again():
    shape = Shape(vocabulary=100, hidden=128, layers=12, heads=4, intermediate=512)
    model, settings = (
        denoiser(shape),
        TrainSettings(steps=2, batch_size=4, warmup=0, **SETTINGS["bf16, activations again"]),
    )
    in_bf16 = sum(p.nbytes for p in model.parameters()) // 2
    always = 8 * in_bf16  # weights, gradients and the optimizer's two moments in fp32
    assert measured(model, settings, Rows(model, settings, text=50, supervised=30)) - always < 0.5 * in_bf16


def test_adapters_of_the_same_input_keep_it_once(monkeypatch):
    settings = TrainSettings(steps=2, batch_size=4, warmup=0, optimizer="adamw", precision="bf16",
                             lora=LoraSettings(rank=4))  # fmt: skip
    found = []
    for _ in range(2):
        model = denoiser(SMALL).to(torch.bfloat16)
        found.append(measured(model, settings, Rows(model, settings, text=200, supervised=120)))
        monkeypatch.setattr(LoraLinear, "_cast_input_dtype", lambda self, x, dtype: x.to(dtype))
    input_in_bf16 = 2 * 4 * 200 * SMALL.hidden
    assert found[1] - found[0] > 3 * SMALL.layers * input_in_bf16, "of q, k and v two copies, of gate and up one"


def with_eyes(tmp_path, kind):
    if kind == "llada_v":
        return published(tmp_path, "llada_v_tiny")
    if kind == "modernvbert":
        written(tmp_path / kind, CONFIGS[kind])
        return tmp_path / kind
    tower(kind).save_pretrained(tmp_path / "eyes")
    model = compose(tmp_path / "eyes", published(tmp_path, "llada_tiny"), seed=0, placement=Placement())
    save_denoiser(model, tmp_path / kind)
    return tmp_path / kind


@pytest.mark.parametrize("kind", ["llada_v", "modernvbert", "qwen2_vl", "qwen2_5_vl"])
def test_the_plan_counts_images(tmp_path, kind):
    folder, image = with_eyes(tmp_path, kind), (150, 90)
    settings = TrainSettings(steps=2, batch_size=6, warmup=0, optimizer="adamw")
    row = RowSizes(text=50, supervised=30, image=image)
    plan = plan_training(blank(folder), settings, row)
    model = load_denoiser(folder)
    found = measured(model, settings, Rows(model, settings, text=row.text, supervised=row.supervised, image=image))
    assert plan.total == pytest.approx(found, rel=0.2)
    assert plan_training(blank(folder), settings, RowSizes(text=50, supervised=30)).working < 0.9 * plan.working


@pytest.mark.parametrize("image", [(640, 480), (1000, 100)])
def test_what_a_tiling_shrinks_or_cuts_off_does_not_enter_the_language_model(tmp_path, image):
    folder = with_eyes(tmp_path, "llada_v")
    settings = TrainSettings(steps=2, batch_size=6, warmup=0, optimizer="adamw")
    plan = plan_training(blank(folder), settings, RowSizes(text=50, supervised=30, image=image))
    model = load_denoiser(folder)
    found = measured(model, settings, Rows(model, settings, text=50, supervised=30, image=image))
    assert plan.total == pytest.approx(found, rel=0.05)


def test_processes_share_what_belongs_to_weights_and_gather_a_part():
    settings = TrainSettings(batch_size=8, optimizer="adamw")
    row = RowSizes(text=200, supervised=120)
    alone, shared = (plan_training(denoiser(SMALL), settings, row, processes=count) for count in (1, 4))
    assert shared.weights == alone.weights // 4
    assert shared.optimizer == alone.optimizer // 4
    assert 0 < shared.gathered < alone.weights + alone.gradients
    assert shared.total < alone.total


def test_each_process_has_the_whole_model_before_weights_are_dealt_out():
    """As `train` does it: the model is loaded, what is trained becomes fp32, and only then are shares made."""
    settings = TrainSettings(batch_size=8, optimizer="adamw")
    row = RowSizes(text=4, supervised=2)
    model = denoiser(DEEP).to(torch.bfloat16)
    prepare(model, settings, seed=0)
    whole = sum(p.nbytes for p in model.parameters())
    plan = plan_training(denoiser(DEEP).to(torch.bfloat16), settings, row, processes=64)
    assert plan.start == whole
    assert plan.step < whole
    assert plan.total == whole
    adapted = settings.model_copy(update={"lora": LoraSettings(rank=2), "precision": "bf16"})
    assert plan_training(denoiser(DEEP).to(torch.bfloat16), adapted, row, processes=64).start < 0.7 * whole


def build(folder: Path):
    return lambda: blank(folder)


def test_what_helps_is_said_and_helps(tmp_path):
    make = build(published(tmp_path, "llada_tiny"))
    settings = TrainSettings(batch_size=32, optimizer="adamw")
    row = RowSizes(text=400, supervised=300)
    needed = plan_training(make(), settings, row).total
    found = remedies(Planner(make, row), settings, processes=1, memory=needed // 2)
    assert {one.change for one in found} >= {"micro_batch = 1", "gradient_checkpointing = true"}
    assert all(one.plan.total <= needed // 2 for one in found)
    assert remedies(Planner(make, row), settings, processes=1, memory=1000) == []


def test_changes_that_help_together_are_the_fewest(tmp_path):
    make = build(published(tmp_path, "llada_tiny"))
    settings, row = TrainSettings(batch_size=8, optimizer="adamw"), RowSizes(text=40, supervised=30)
    planner = Planner(make, row)
    both = settings.model_copy(update={"micro_batch": 1, "lora": LoraSettings(rank=16)})
    (found,) = remedies(planner, settings, processes=1, memory=planner.plan(both).total, shared=True)
    assert found.change == "micro_batch = 1 and lora.rank = 16"
    assert found.plan == planner.plan(both)


def test_a_change_that_takes_memory_beside_others_is_left_out():
    """All changes together need more than three of them: bf16 adds copies, processes what they gather."""
    settings, row = TrainSettings(batch_size=8, optimizer="adamw"), RowSizes(text=64, supervised=48)
    planner = Planner(lambda: denoiser(Shape(vocabulary=8000, hidden=64, layers=2, heads=2, intermediate=64)), row)
    three = {"micro_batch": 1, "gradient_checkpointing": True, "lora": LoraSettings(rank=16)}
    least = planner.plan(settings.model_copy(update=three)).total
    (found,) = remedies(planner, settings, processes=1, memory=least)
    assert found.change == "micro_batch = 1 and gradient_checkpointing = true and lora.rank = 16"
    assert remedies(planner, settings, processes=1, memory=least - 1) == []


def test_what_takes_the_same_memory_is_planned_once(tmp_path):
    folder, made = published(tmp_path, "llada_tiny"), []

    def make():
        made.append(blank(folder))
        return made[-1]

    planner = Planner(make, RowSizes(text=40, supervised=30))
    settings = TrainSettings(batch_size=4, optimizer="adamw")
    plans = [
        planner.plan(settings.model_copy(update=update)) for update in ({}, {"steps": 7, "lr": 1.0}, {"batch_size": 5})
    ]
    assert len(made) == 2
    assert plans[0] == plans[1]
    assert plans[0].working < plans[2].working


def test_a_training_that_saves_memory_in_every_other_way_is_told_to_take_more_processes():
    settings = TrainSettings(
        batch_size=8, micro_batch=1, optimizer="adamw", precision="bf16", gradient_checkpointing=True,
        lora=LoraSettings(rank=16),
    )  # fmt: skip
    row = RowSizes(text=20, supervised=12)

    def make():
        return denoiser(DEEP).to(torch.bfloat16)

    memory = plan_training(make(), settings, row).total // 2
    for processes in (1, 2):
        (only,) = remedies(Planner(make, row), settings, processes=processes, memory=memory)
        assert only.change == f"compute.processes = {4 * processes} with optimizer = 'adamw'"
        assert only.plan == plan_training(make(), settings, row, processes=4 * processes)
    shared = remedies(Planner(make, row), settings, processes=1, memory=memory, shared=True)
    assert shared == [], "four processes on one machine's processors have no more memory than one"
