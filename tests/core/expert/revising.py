"""One worker that revises drafts, for tests that start it as a process of its own, kill it, or start two."""

import multiprocessing
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Barrier
from pathlib import Path

import polars as pl
from pydantic import SecretStr
from transformers import PreTrainedTokenizerFast

from core.claims import open_database
from core.expert.budget import Budget
from core.expert.client import ExpertClient
from core.expert.ledger import Ledger
from core.expert.limiter import SharedLimiter
from core.expert.settings import ExpertSettings
from core.models.tokenizer import build_word_tokenizer
from core.revising import revise
from data_contracts import Drafts

_COLOURS = ("red", "blue", "green", "violet")  # the tokenizer cannot write the last one
_WORDS = ("what", "is", "it", "a", "red", "blue", "green", "small", "ring", "number", *map(str, range(1000)))


def word_tokenizer() -> PreTrainedTokenizerFast:
    return build_word_tokenizer(_WORDS)


def text_drafts(n: int) -> pl.DataFrame:
    """n different drafts without images: some right, some with a mistake, some whose correction cannot be written."""
    kinds = [(_COLOURS[i % 3], _COLOURS[i % 4]) for i in range(n)]
    return drafts_of(
        [(f"a {draft} ring number {i}", f"a {true} ring number {i}") for i, (draft, true) in enumerate(kinds)]
    )


def drafts_of(
    texts: list[tuple[str, str]], tokenizer: PreTrainedTokenizerFast | None = None, length: int = 16
) -> pl.DataFrame:
    """Drafts of (text, reference), each of `length` tokens at least."""
    tokenizer, records = tokenizer or word_tokenizer(), []
    for index, (text, reference) in enumerate(texts):
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        fill = max(0, length - len(encoded["input_ids"]))
        records.append(
            {
                "draft_id": f"draft-{index}",
                "sample_id": f"sample-{index}",
                "prompt": "what is it",
                "reference": reference,
                "prompt_ids": tokenizer("what is it", add_special_tokens=False)["input_ids"],
                "token_ids": encoded["input_ids"] + [tokenizer.eos_token_id] * fill,
                "text": text,
                "char_start": [start for start, _ in encoded["offset_mapping"]] + [-1] * fill,
                "char_end": [end for _, end in encoded["offset_mapping"]] + [-1] * fill,
                "writes": [],
                "setting": "8 refine",
                "tokens_per_step": 8,
                "extra_steps": 0,
                "policy": "refine",
                "nfe": 2,
                "model_digest": "0" * 64,
                "round": 1,
            }
        )
    return Drafts.validate(pl.DataFrame(records, schema=Drafts.create_empty().schema))


def no_image(sha: str) -> bytes:
    raise KeyError(sha)


def account_of(settings: ExpertSettings) -> tuple[str, ...]:
    """Whose budget a worker's requests are of."""
    return settings.base_url, settings.model


def work(
    settings: ExpertSettings,
    database: str,
    ttl_s: float,
    n: int,
    name: str,
    run: str,
    out: Path,
    begin: Barrier | None = None,
) -> None:
    """Revise `text_drafts(n)` and write the revisions to `out`. The expert knows this worker by its key, `name`.

    Workers with the same `begin` do so together.
    """
    ledger = Ledger(open_database(database), ttl_s=ttl_s)
    rates = {"requests_per_minute": settings.requests_per_minute, "tokens_per_minute": settings.tokens_per_minute}
    limiter = SharedLimiter(
        Budget(ledger.engine, account_of(settings), ttl_s=ttl_s), concurrency=settings.concurrency, **rates
    )
    client = ExpertClient(settings, ledger=ledger, api_key=SecretStr(name), run=run, limiter=limiter)
    if begin:
        begin.wait(60)
    revise(text_drafts(n), client=client, tokenizer=word_tokenizer(), load_image=no_image).revisions.write_parquet(out)


def start_worker(**arguments: object) -> BaseProcess:
    """A process that does `work(**arguments)`. It is forked from one that has imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__])
    process = context.Process(target=work, kwargs=arguments, daemon=True)
    process.start()
    return process
