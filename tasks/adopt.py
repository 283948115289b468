"""Drafts that came as text become drafts of the store, written in the tokens of a tokenizer that is kept with them."""

from pathlib import Path

import polars as pl
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State

from core.adopting import adopt as adopt_drafts
from core.fingerprint import checkpoint_digest
from core.manifest import Ref, read_parts, read_slice
from core.models.tokenizer import load_tokenizer
from core.settings import Settings
from core.stage import Output
from core.store import Store
from data_contracts import Corrections, Drafts, Samples
from tasks.running import run, stage_of
from tasks.workplace import Workplace


class TokenizerConfig(Settings):
    """A tokenizer, by the content of its folder."""

    sha256: str


class AdoptConfig(Settings):
    """One shard: corrections [offset, offset + length), as responses of so many tokens at least."""

    offset: int
    length: int
    response_length: int


@task(cache_policy=NO_CACHE, task_run_name="keep tokenizer")
def keep_tokenizer(place: Workplace, folder: str, *, parent: str) -> State:
    """The tokenizer of a folder -> the store."""

    def compute(output: Output) -> None:
        load_tokenizer(folder).save_pretrained(output.work / "tokenizer")
        output.write_folder(output.work / "tokenizer")
        output.commit(rows_in=1, ok=1)

    load_tokenizer(Path(folder))  # a folder without one is an error before anything is noted down
    stage = stage_of("keep_tokenizer", TokenizerConfig(sha256=checkpoint_digest(folder)), kind="checkpoint")
    return run(place, stage, compute, parent=parent)


@task(cache_policy=NO_CACHE, task_run_name="adopt {config.offset}")
def adopt(place: Workplace, config: AdoptConfig, tokenizer: Ref, corrections: Ref, *, parent: str) -> State:
    """Corrections -> Drafts, in the tokens of the model that wrote them."""

    def compute(output: Output) -> None:
        rows = read_slice(place.store, corrections, Corrections, start=config.offset, count=config.length)
        adopted = adopt_drafts(
            rows,
            _references(place.store, corrections, rows),
            tokenizer=load_tokenizer(place.local_folder(tokenizer)),
            response_length=config.response_length,
            model_digest=tokenizer.digest,
        )
        output.write(Drafts, adopted.drafts)
        output.reject_frame(adopted.rejects)
        output.commit(rows_in=rows.height, is_shard=True)

    inputs = {"tokenizer": [tokenizer], "corrections": [corrections]}
    return run(place, stage_of("adopt", config, inputs), compute, parent=parent)


def _references(store: Store, corrections: Ref, rows: pl.DataFrame) -> dict[str, str]:
    """sample_id -> reference, for those of `rows` that have no answer of their own."""
    wanted = rows.filter(pl.col("answer").is_null()).select("sample_id").drop_nulls().unique()
    known: dict[str, str] = {}
    for part in read_parts(store, corrections, Samples) if wanted.height else ():
        known |= dict(part.join(wanted, on="sample_id", how="semi").select("sample_id", "reference").rows())
    return known
