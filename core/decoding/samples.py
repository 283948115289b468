"""Samples in, decoded batches out: prompts encoded, images loaded and encoded once, rows batched by prompt length.

Shapes: B rows, R tokens of a response, N image features, D width.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from core.corruption.responses import encode_prompts
from core.decoding.settings import DecodeSettings
from core.decoding.strategies import strategies
from core.decoding.trace import Recorder
from core.errors import RowError
from core.models.denoiser import Denoiser, Features
from core.seeds import stream_key

LoadImage = Callable[[str], NDArray[np.uint8]]
OnDecoded = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class DecodedBatch:
    """One batch under one setting. `rows` are row numbers of the samples, `prompts` their prompts' ids.

    nfe_B: forwards that each answer takes; guidance takes two a step. writes: see `Recorder.frame`, its `row` counting
    within the batch; empty if not recorded.
    """

    rows: list[int]
    prompts: list[list[int]]
    setting: DecodeSettings
    token_ids_BR: NDArray[np.int32]
    nfe_B: list[int]
    seconds: float
    writes: pl.DataFrame


def decode_samples(
    model: Denoiser,
    samples: pl.DataFrame,
    settings: Sequence[DecodeSettings],
    *,
    load_image: LoadImage,
    response_length: int,
    batch_size: int,
    record: bool,
    unusable: dict[int, RowError],
    on_progress: OnDecoded = lambda _done, _total: None,
) -> Iterator[DecodedBatch]:
    """Decode every sample at every setting. The batches depend on `samples` and `batch_size` alone.

    Args:
        unusable: filled while iterating: row number -> why its prompt or image cannot be used.
        on_progress: told how many of all (sample, setting) pairs are done, after each batch.
    """
    prompts = encode_prompts(
        model.tokenizer, samples["prompt"], response_length, with_image=samples["image_sha"].is_not_null()
    )
    reasons = [prompts.reason_P[index] for index in prompts.index_N]
    unusable |= {row: RowError(reason, samples["prompt"][row]) for row, reason in enumerate(reasons) if reason}
    ids = [prompts.ids_P[index].tolist() for index in prompts.index_N]
    shas: list[str | None] = samples["image_sha"].to_list()
    done, total = 0, samples.height * len(settings)
    for batch in _batches([len(row) for row in ids], [sha is not None for sha in shas], unusable, batch_size):
        rows, images = _load([(row, shas[row]) for row in batch], load_image, unusable)
        if not rows:
            continue
        features_BND = _encode_images(model, images)
        for setting in settings:
            yield _decode_batch(
                model,
                setting,
                rows=rows,
                sample_ids=samples["sample_id"][rows].to_list(),
                prompts=[ids[row] for row in rows],
                features_BND=features_BND,
                response_length=response_length,
                record=record,
            )
            done += len(rows)
            on_progress(done, total)


def _decode_batch(
    model: Denoiser,
    setting: DecodeSettings,
    *,
    rows: list[int],
    sample_ids: list[str],
    prompts: list[list[int]],
    features_BND: Features | None,
    response_length: int,
    record: bool,
) -> DecodedBatch:
    chosen = strategies(setting, model)
    streams = [stream_key(setting.seed, "decode", sample) for sample in sample_ids]
    canvas = chosen.canvas(model, prompts, response_length=response_length, streams=streams)
    recorder, started = Recorder(), time.monotonic()
    decoded = chosen.decode(
        chosen.reader(model, features_BND, response_length=response_length),
        canvas,
        response_length=response_length,
        recorder=recorder if record else None,
    )
    return DecodedBatch(
        rows=rows,
        prompts=prompts,
        setting=setting,
        token_ids_BR=decoded.token_ids_BR.numpy().astype(np.int32),
        nfe_B=(decoded.nfe_B * setting.forwards_per_step).tolist(),
        seconds=time.monotonic() - started,
        writes=recorder.frame(),
    )


def _batches(
    lengths: list[int], with_image: list[bool], unusable: dict[int, RowError], batch_size: int
) -> Iterator[list[int]]:
    """Row numbers, batch by batch: rows with and without an image apart, each by prompt length, then by row number.

    Unusable rows are left out of nothing but the work: they do not shift the batches of the others.
    """
    for image in (True, False):
        rows = sorted((row for row, has in enumerate(with_image) if has is image), key=lambda row: lengths[row])
        for start in range(0, len(rows), batch_size):
            yield [row for row in rows[start : start + batch_size] if row not in unusable]


def _load(
    rows: list[tuple[int, str | None]], load_image: LoadImage, unusable: dict[int, RowError]
) -> tuple[list[int], list[NDArray[np.uint8]]]:
    """The rows whose image could be loaded, or that have none, and the images."""
    usable: list[int] = []
    images: list[NDArray[np.uint8]] = []
    for row, sha in rows:
        try:
            if sha is not None:
                images.append(load_image(sha))
            usable.append(row)
        except RowError as error:
            unusable[row] = error
    return usable, images


@torch.inference_mode()
def _encode_images(model: Denoiser, images: list[NDArray[np.uint8]]) -> Features | None:
    """Row i of image i, or None for rows without images."""
    return model.image_features(model.pixels(images)) if images else None
