"""Small trainings of a published vision-language model."""

import torch

from core.corruption.mask import mask_rows
from core.corruption.settings import MaskSettings, ObjectiveSettings
from core.models.denoiser import load_denoiser
from core.training.batches import TrainingBatches
from core.training.loop import train
from tests.core.models.test_published_use import LENGTH, SHAS, load_image, samples


def batches_of(model, settings, shas=(*SHAS, *SHAS)):
    rows = mask_rows(
        samples(shas), model.tokenizer, settings=MaskSettings(draws=2), response_length=LENGTH, seed=0
    ).examples
    return TrainingBatches(
        rows, model, load_image, batch_size=settings.batch_size, seed=0, objective=ObjectiveSettings(),
        bucket=settings.bucket,
    )  # fmt: skip


def trained(folder, settings, **options):
    model = load_denoiser(folder, dtype=options.pop("dtype", None))
    return model, train(model, batches_of(model, settings), settings, **options)


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same_bits(one, other):
    return all(torch.equal(p, weights(other)[name]) for name, p in weights(one).items())


def apart(one, other, start):
    """Distance of two trainings' weights as a share of how far they moved: AdamW blows up what only rounding moves."""
    one, other, start = weights(one), weights(other), weights(start)
    distance = sum((p - other[name]).square().sum().item() for name, p in one.items())
    return (distance / sum((p - start[name]).square().sum().item() for name, p in one.items())) ** 0.5


class Cut:
    """Batches that end with an error at a step, as a killed training's do."""

    def __init__(self, batches, steps):
        self._batches, self._steps = batches, steps
        self.pictured, self.labels, self.shows = batches.pictured, batches.labels, batches.shows

    def _check(self, step):
        if step >= self._steps:
            raise InterruptedError

    def batch(self, step):
        self._check(step)
        return self._batches.batch(step)

    def part(self, step, places):
        self._check(step)
        return self._batches.part(step, places)
