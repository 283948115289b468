"""Samples in, decoded batches out: prompts encoded, rows of like lengths batched, images encoded once.

Shapes: B rows, R tokens of a response, N image features, D width.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from core.corruption.responses import encode_prompts
from core.decoding.ahead import Batch, Pictures, one_ahead
from core.decoding.room import Room
from core.decoding.settings import DecodeSettings
from core.decoding.strategies import strategies
from core.decoding.trace import Recorder
from core.errors import RowError
from core.ingest.images import LoadImage
from core.models.denoiser import Denoiser, Features
from core.models.special_tokens import image_placeholder
from core.seeds import stream_key

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


@dataclass(frozen=True, kw_only=True)
class _Shard:
    """What is known of all rows. lengths: positions of prompt and image. inside: images stand inside the text."""

    sample_ids: list[str]
    prompts: list[list[int]]
    shas: list[str | None]
    inside: bool
    lengths: list[int]

    def batches(self, batch_size: int) -> list[list[int]]:
        """Row numbers, batch by batch, by length and then by row number.

        A model with images inside the text reads rows with and without one together; else they are apart. Unusable
        rows are among them: they do not shift the batches of the others.
        """
        pictured = [sha is not None and not self.inside for sha in self.shas]
        parts: list[list[int]] = []
        for apart in (True, False):
            rows = [row for row, is_apart in enumerate(pictured) if is_apart is apart]
            rows.sort(key=lambda row: self.lengths[row])
            parts += [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
        return parts


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
    room: Room,
    on_progress: OnDecoded = lambda _done, _total: None,
) -> Iterator[DecodedBatch]:
    """Decode every sample at every setting. The batches depend on `samples` and `batch_size` alone.

    Only where memory is too small do they become smaller, see `Room`.

    Args:
        unusable: filled while iterating: row number -> why its prompt or image cannot be used.
        room: how many rows fit at a time, as far as is known.
        on_progress: told how many of all (sample, setting) pairs are done, after each batch.
    """
    shard = _look(model, samples, load_image, response_length, unusable)
    pictures = Pictures(model=model, load_image=load_image, shas=shard.shas)
    planned = [[row for row in rows if row not in unusable] for rows in shard.batches(batch_size)]
    done, total = 0, samples.height * len(settings)
    for batch in one_ahead([rows for rows in planned if rows], partial(pictures.batch, unusable=unusable)):
        for rows, features_BND in room.pieces(batch.rows, partial(_encode_images, pictures, shard.inside, batch)):
            for setting in settings:
                work = partial(
                    _decode_rows,
                    model,
                    setting,
                    together=rows,
                    shard=shard,
                    features_BND=features_BND,
                    response_length=response_length,
                    record=record,
                )
                for piece, decoded in room.pieces(rows, work):
                    yield decoded
                    done += len(piece)
                    on_progress(done, total)


def _look(
    model: Denoiser,
    samples: pl.DataFrame,
    load_image: LoadImage,
    response_length: int,
    unusable: dict[int, RowError],
) -> _Shard:
    """Encode the prompts and measure the images; rows that cannot be decoded go to `unusable`, before any forward."""
    prompts = encode_prompts(
        model.tokenizer, samples["prompt"], response_length, with_image=samples["image_sha"].is_not_null()
    )
    reasons = [prompts.reason_P[index] for index in prompts.index_N]
    unusable |= {row: RowError(reason, samples["prompt"][row]) for row, reason in enumerate(reasons) if reason}
    ids = [prompts.ids_P[index].tolist() for index in prompts.index_N]
    placeholder, shas = image_placeholder(model.tokenizer), samples["image_sha"].to_list()
    shard = _Shard(
        sample_ids=samples["sample_id"].to_list(),
        prompts=ids,
        shas=shas,
        inside=placeholder is not None,
        lengths=[len(prompt) for prompt in ids],
    )
    if any(sha is not None for sha in shas):
        model.image_positions(1, 1)  # a model without eyes says so now, and once
    if placeholder is not None:
        _add_images(shard, placeholder, Pictures(model=model, load_image=load_image, shas=shas), unusable)
    for row, length in enumerate(shard.lengths):
        if row not in unusable and length + response_length > model.max_positions:
            need = f"{length} positions of prompt and image and {response_length} of the response"
            unusable[row] = RowError("prompt_too_long", f"{need}, but the model reads {model.max_positions}")
    return shard


def _add_images(shard: _Shard, placeholder: int, pictures: Pictures, unusable: dict[int, RowError]) -> None:
    """Make the rows' lengths those of prompts with their images inside."""
    for row, prompt in enumerate(shard.prompts):
        places, images = prompt.count(placeholder), int(shard.shas[row] is not None)
        if row not in unusable and places != images:
            unusable[row] = RowError("image_placeholders", f"{places} places in the prompt for {images} images")
    measured = [row for row, sha in enumerate(shard.shas) if sha is not None and row not in unusable]
    for row, positions in pictures.positions(measured, unusable).items():
        shard.lengths[row] += positions - 1


@torch.inference_mode()
def _encode_images(pictures: Pictures, inside: bool, batch: Batch, rows: list[int]) -> Features | None:
    """Features of these rows of the batch, row by row; None if none of them has an image."""
    images = {row: batch.images[row] for row in rows if row in batch.images}
    if not images:
        return None
    whole = batch.pixels is not None and len(rows) == len(batch.rows)
    features = pictures.model.image_features(batch.pixels if whole else pictures.pixels(images))
    return features.grouped([int(row in images) for row in rows]) if inside else features


def _decode_rows(
    model: Denoiser,
    setting: DecodeSettings,
    rows: list[int],
    *,
    together: list[int],
    shard: _Shard,
    features_BND: Features | None,
    response_length: int,
    record: bool,
) -> DecodedBatch:
    """Decode some of the rows whose features are `together`."""
    if features_BND is not None and len(rows) < len(together):
        start = together.index(rows[0])  # pieces are runs of rows
        features_BND = features_BND[torch.arange(start, start + len(rows))]
    return _decode_batch(
        model,
        setting,
        rows=rows,
        sample_ids=[shard.sample_ids[row] for row in rows],
        prompts=[shard.prompts[row] for row in rows],
        features_BND=features_BND,
        response_length=response_length,
        record=record,
    )


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
