import threading

import pytest
import torch

from core.corruption.mask import mask_rows
from core.corruption.settings import MaskSettings, ObjectiveSettings
from core.errors import FatalError, InputError
from core.models.scene_denoiser import SceneDenoiser, SceneDenoiserConfig
from core.training.ahead import Ahead
from core.training.batches import TrainingBatches
from core.training.loop import train
from core.training.parts import parts_of
from core.training.settings import TrainSettings
from tests.clock import Clock, eventually
from tests.core.corruption.tables import LENGTH, TOKENIZER, world
from tests.core.training.test_batches import image

SAMPLES, _ = world(24)
FRAME = mask_rows(SAMPLES, TOKENIZER, response_length=LENGTH, seed=0, settings=MaskSettings()).examples
SETTINGS = TrainSettings(steps=4, batch_size=6, lr=1e-2, warmup=1, log_every=1)


def model():
    config = SceneDenoiserConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_height=48, image_width=48
    )
    return SceneDenoiser.create(config, TOKENIZER, seed=0)


def batches(denoiser, load_image=image):
    return TrainingBatches(FRAME, denoiser, load_image, batch_size=6, seed=0, objective=ObjectiveSettings())


class Counted:
    """Batches that are step numbers; `asked` has the steps in order, `fails` is one that cannot be made."""

    def __init__(self, fails=None):
        self.asked, self.fails = [], fails

    def batch(self, step):
        self.asked.append(step)
        if step == self.fails:
            raise InputError(f"image of step {step} is gone")
        return step

    def part(self, step, places_P):
        return self.batch((step, *places_P.tolist()))


def threads():
    return {thread for thread in threading.enumerate() if thread.name.startswith("next batch")}


def test_training_ahead_has_the_bits_of_training_without():
    one, other = model(), model()
    plain = train(one, batches(one), SETTINGS)
    with Ahead(batches(other), steps=SETTINGS.steps) as prepared:
        ahead = train(other, prepared, SETTINGS)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert [metrics["loss"] for _, metrics in plain.curve] == [metrics["loss"] for _, metrics in ahead.curve]


def test_each_batch_is_made_once_and_none_beyond_the_last_step():
    counted = Counted()
    with Ahead(counted, steps=5) as prepared:
        assert [prepared.batch(step) for step in range(5)] == list(range(5))
    assert counted.asked == list(range(5))


def test_parts_of_a_step_are_read_ahead_one_by_one():
    counted = Counted()
    parts = parts_of(5, micro_batch=2, rank=0, world=1)
    reads = [(step, part.places) for step in range(3) for part in parts]
    with Ahead(counted, steps=3, parts=parts) as prepared:
        found = [prepared.part(*read) for read in reads]
    assert found == counted.asked == [(step, *places.tolist()) for step, places in reads]


def test_training_in_parts_ahead_has_the_bits_of_training_without():
    one, other = model(), model()
    settings = SETTINGS.model_copy(update={"micro_batch": 4})
    train(one, batches(one), settings)
    with Ahead(batches(other), steps=settings.steps, parts=parts_of(6, micro_batch=4)) as prepared:
        train(other, prepared, settings)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_a_training_may_begin_anywhere_and_ask_out_of_order():
    with Ahead(Counted(), steps=100) as prepared:
        assert [prepared.batch(step) for step in (7, 8, 3, 3, 99, 4)] == [7, 8, 3, 3, 99, 4]


def test_the_next_batch_is_made_while_a_step_computes_and_only_waiting_counts(monkeypatch):
    waits = threading.Event()

    class Looked(Clock):
        def perf_counter(self):
            waits.set()
            return self.now

    class Slow(Counted):
        def batch(self, step):
            assert waits.wait(60)
            clock.now += 5.0
            return super().batch(step)

    clock, slow = Looked(), Slow()
    monkeypatch.setattr("core.training.ahead.time", clock)
    with Ahead(slow, steps=4) as prepared:
        prepared.batch(0)
        assert prepared.waited_s == 5.0
        for step in range(1, 4):
            eventually(lambda step=step: slow.asked[-1] == step)
            prepared.batch(step)
        assert prepared.waited_s == 5.0


def test_an_image_that_cannot_be_read_fails_the_step_that_needs_it():
    with Ahead(Counted(fails=2), steps=4) as prepared:
        assert (prepared.batch(0), prepared.batch(1)) == (0, 1)
        with pytest.raises(InputError, match="step 2"):
            prepared.batch(2)


def test_no_thread_outlives_a_training_that_ends_or_fails():
    before = threads()
    for learning_rate, error in ((1e-3, None), (float("inf"), FatalError)):
        denoiser = model()
        settings = SETTINGS.model_copy(update={"lr": learning_rate})
        try:
            with Ahead(batches(denoiser), steps=settings.steps) as prepared:
                train(denoiser, prepared, settings)
        except FatalError:
            assert error is FatalError
        else:
            assert error is None
        assert threads() == before
