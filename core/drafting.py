"""The model answers: samples x decoder settings -> Drafts and Traces, or texts alone for evaluation.

Batches belong to the shard: they depend on its samples and the batch size alone, so a resumed shard repeats them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from core.corruption.rows import reject_frame
from core.decoding.room import Room
from core.decoding.samples import DecodedBatch, OnDecoded, decode_samples
from core.decoding.settings import DecodeSettings
from core.decoding.state import mask_token
from core.errors import RowError
from core.ingest.images import LoadImage
from core.models.denoiser import Denoiser
from core.models.text import decode_response
from data_contracts import Drafts, Traces

ANSWER_COLUMNS = {
    "sample_id": pl.String,
    "setting": pl.String,
    "policy": pl.String,
    "tokens_per_step": pl.Int32,
    "extra_steps": pl.Int32,
    "nfe": pl.Int32,
    "text": pl.String,
}


@dataclass(frozen=True, kw_only=True)
class Drafted:
    """Frames Drafts and Traces; `rejects` with row_id (the draft_id), outcome, reason, detail.

    samples x settings = drafts + rejects.
    """

    drafts: pl.DataFrame
    traces: pl.DataFrame
    rejects: pl.DataFrame


@dataclass(frozen=True, kw_only=True)
class Answered:
    """`answers` with ANSWER_COLUMNS; `rejects` as `Drafted`'s, row_id being 'sample_id/setting'.

    samples x settings = answers + rejects. `seconds` of decoding by setting, image features left out.
    """

    answers: pl.DataFrame
    rejects: pl.DataFrame
    seconds: dict[str, float]


def draft(
    model: Denoiser,
    samples: pl.DataFrame,
    settings: Sequence[DecodeSettings],
    *,
    load_image: LoadImage,
    response_length: int,
    batch_size: int,
    round_index: int,
    model_digest: str,
    trace_samples: int,
    room: Room | None = None,
    on_progress: OnDecoded = lambda _done, _total: None,
) -> Drafted:
    """Decode every sample at every setting; the traces are those of the first `trace_samples` rows of `samples`.

    Rows are ordered by sample, then setting. A sample whose prompt or image is unusable is one reject a setting.
    `room` knows afterwards how often memory was too small for a batch.
    """
    drafts = [pl.DataFrame(schema=Drafts.create_empty().schema)]
    traces = [pl.DataFrame(schema=Traces.create_empty().schema)]
    unusable: dict[int, RowError] = {}
    for batch in decode_samples(
        model,
        samples,
        settings,
        load_image=load_image,
        response_length=response_length,
        batch_size=batch_size,
        record=True,
        unusable=unusable,
        room=room or Room(),
        on_progress=on_progress,
    ):
        ids = [_draft_id(sample, batch.setting, round_index) for sample in samples["sample_id"][batch.rows]]
        drafts.append(_draft_rows(model, samples, batch, ids, model_digest, round_index))
        traces.append(_trace_rows(model, samples, batch, trace_samples))
    rejected = [
        (_draft_id(samples["sample_id"][row], setting, round_index), error)
        for row, error in sorted(unusable.items())
        for setting in settings
    ]
    return Drafted(
        drafts=in_order(pl.concat(drafts), samples, settings),
        traces=in_order(pl.concat(traces), samples, settings),
        rejects=_rejects(rejected),
    )


def answer(
    model: Denoiser,
    samples: pl.DataFrame,
    settings: Sequence[DecodeSettings],
    *,
    load_image: LoadImage,
    response_length: int,
    batch_size: int,
    room: Room | None = None,
    on_progress: OnDecoded = lambda _done, _total: None,
) -> Answered:
    """As `draft`, for evaluation: the texts alone, without logs and spans."""
    answers = [pl.DataFrame(schema=ANSWER_COLUMNS)]
    unusable: dict[int, RowError] = {}
    seconds = dict.fromkeys((setting.name for setting in settings), 0.0)
    for batch in decode_samples(
        model,
        samples,
        settings,
        load_image=load_image,
        response_length=response_length,
        batch_size=batch_size,
        record=False,
        unusable=unusable,
        room=room or Room(),
        on_progress=on_progress,
    ):
        seconds[batch.setting.name] += batch.seconds
        texts = [decode_response(model.tokenizer, ids).text for ids in batch.token_ids_BR.tolist()]
        rows = samples[batch.rows].select("sample_id").with_columns(pl.Series("text", texts, dtype=pl.String))
        answers.append(_with_setting(rows, batch).select(pl.col(k).cast(v) for k, v in ANSWER_COLUMNS.items()))
    rejected = [
        (f"{samples['sample_id'][row]}/{setting.name}", error)
        for row, error in sorted(unusable.items())
        for setting in settings
    ]
    found = in_order(pl.concat(answers), samples, settings)
    return Answered(answers=found, rejects=_rejects(rejected), seconds=seconds)


def _draft_id(sample_id: str, setting: DecodeSettings, round_index: int) -> str:
    return f"{sample_id}/r{round_index}/{setting.name}"


def _with_setting(rows: pl.DataFrame, batch: DecodedBatch) -> pl.DataFrame:
    setting = batch.setting
    return rows.with_columns(
        setting=pl.lit(setting.name),
        policy=pl.lit(setting.policy),
        tokens_per_step=setting.pace(batch.token_ids_BR.shape[1]),
        extra_steps=setting.extra_steps,
        nfe=pl.Series(batch.nfe_B),
    )


def _draft_rows(
    model: Denoiser,
    samples: pl.DataFrame,
    batch: DecodedBatch,
    draft_ids: list[str],
    model_digest: str,
    round_index: int,
) -> pl.DataFrame:
    """The Drafts of a batch."""
    texts = [decode_response(model.tokenizer, ids) for ids in batch.token_ids_BR.tolist()]
    rows = samples[batch.rows].select("sample_id", "image_sha", "prompt", "reference")
    rows = _with_setting(rows, batch).with_columns(
        pl.Series("draft_id", draft_ids),
        pl.Series("prompt_ids", batch.prompts, dtype=pl.List(pl.Int32)),
        pl.Series("token_ids", batch.token_ids_BR).arr.to_list(),
        pl.Series("text", [text.text for text in texts]),
        pl.Series("char_start", [text.char_start for text in texts], dtype=pl.List(pl.Int32)),
        pl.Series("char_end", [text.char_end for text in texts], dtype=pl.List(pl.Int32)),
        _write_lists(batch),
        model_digest=pl.lit(model_digest),
        round=round_index,
    )
    return rows.select(pl.col(name).cast(dtype) for name, dtype in Drafts.create_empty().schema.items())


def _write_lists(batch: DecodedBatch) -> pl.Series:
    """The `writes` column: every row of a batch reveals, so every row has a list."""
    write = pl.struct("step", "position", pl.col("new").alias("token")).alias("writes")
    return batch.writes.select("row", write).group_by("row", maintain_order=True).agg("writes")["writes"]


def _trace_rows(model: Denoiser, samples: pl.DataFrame, batch: DecodedBatch, trace_samples: int) -> pl.DataFrame:
    """The Traces of a batch: its writes in rows below `trace_samples`."""
    mask = mask_token(model)
    rows = pl.DataFrame(
        {"row": range(len(batch.rows)), "number": batch.rows, "sample_id": samples["sample_id"][batch.rows]}
    )
    action = pl.when(pl.col("old") == mask).then(pl.lit("reveal")).when(pl.col("new") == mask).then(pl.lit("remask"))
    return (
        batch.writes.join(rows, on="row", maintain_order="left")
        .filter(pl.col("number") < trace_samples, pl.col("step") >= 0)
        .with_columns(action.otherwise(pl.lit("write")).alias("action"), pl.lit(batch.setting.name).alias("setting"))
        .select(pl.col(name).cast(dtype) for name, dtype in Traces.create_empty().schema.items())
    )


def in_order(frame: pl.DataFrame, samples: pl.DataFrame, settings: Sequence[DecodeSettings]) -> pl.DataFrame:
    """Rows by sample, then setting; the order within one of them stays."""
    rank_of_sample = {sample: rank for rank, sample in enumerate(samples["sample_id"])}
    rank_of_setting = {setting.name: rank for rank, setting in enumerate(settings)}
    return frame.sort(
        pl.col("sample_id").replace_strict(rank_of_sample, return_dtype=pl.Int64),
        pl.col("setting").replace_strict(rank_of_setting, return_dtype=pl.Int64),
        maintain_order=True,
    )


def _rejects(rejected: list[tuple[str, RowError]]) -> pl.DataFrame:
    return reject_frame(
        [row_id for row_id, _ in rejected],
        [error.reason for _, error in rejected],
        [error.detail for _, error in rejected],
    )
