"""The expert revises: one shard of drafts, through an OpenAI-compatible endpoint."""

import os
from typing import Any

import polars as pl
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from pydantic import SecretStr, SerializerFunctionWrapHandler, model_serializer

from core.errors import ConfigError
from core.expert.client import ExpertClient
from core.expert.ledger import Ledger
from core.expert.progress import Progress
from core.expert.reask_request import PROMPT as REASK_PROMPT
from core.expert.request import load_prompt
from core.expert.settings import AlignmentSettings, ExpertSettings
from core.manifest import Ref, read_table
from core.models.tokenizer import load_tokenizer
from core.revising import Revised
from core.revising import revise as revise_drafts
from core.settings import Settings
from core.stage import Output
from data_contracts import Drafts, Reasks, Revisions
from tasks.expert_calls import calls_of
from tasks.running import run, stage_of
from tasks.trackers import ExpertCall
from tasks.workplace import Workplace


class ReviseConfig(Settings):
    """What decides a revision. Address, key, patience and prices are not in it: they change nothing that is said."""

    model: str
    prompt_version: str
    structured: str
    temperature: float | None
    max_tokens: int
    align: AlignmentSettings
    reask_version: str | None = None
    """Version of the second question's prompt; None: there is no second question."""
    image_max_side: int | None = None
    image_max_bytes: int | None = None

    @model_serializer(mode="wrap")
    def _without_what_is_none(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Work without a limit on images, or a second question, keeps the key that it had before there were any."""
        optional = ("reask_version", "image_max_side", "image_max_bytes")
        return {name: value for name, value in dump(self).items() if value is not None or name not in optional}

    @classmethod
    def of(cls, expert: ExpertSettings) -> "ReviseConfig":
        """The part of the expert's settings that decides its answers."""
        known = expert.model_dump(include=set(cls.model_fields))
        again = load_prompt(REASK_PROMPT).version if expert.reask else None
        return cls(**known, prompt_version=load_prompt(expert.prompt).version, reask_version=again)


@task(cache_policy=NO_CACHE, task_run_name="revise")
def revise(
    place: Workplace, config: ReviseConfig, expert: ExpertSettings, tokenizer: Ref, drafts: Ref, *, parent: str
) -> State:
    """Drafts -> what the expert made of them, aligned to tokens. A draft without a usable revision is counted."""

    calls: list[ExpertCall] = []

    def compute(output: Output) -> None:
        watch = _Watch(output)
        revised = revise_drafts(
            read_table(place.store, drafts, Drafts),
            client=client_of(place, expert),
            tokenizer=load_tokenizer(place.local_folder(tokenizer)),
            load_image=place.image_bytes,
            on_progress=watch,
        )
        calls.extend(calls_of(revised, expert.traced))
        output.write(Revisions, revised.revisions, counted=False)
        if revised.reasks.height:
            output.write(Reasks, revised.reasks, counted=False)
        ok = _account(output, revised.revisions)
        facts = watch.facts() | _tokens(revised) | _yields(revised)
        output.commit(rows_in=revised.revisions.height, ok=ok, facts=facts, is_shard=True)

    inputs = {"tokenizer": [tokenizer], "drafts": [drafts]}
    return run(
        place,
        stage_of("revise", config, inputs),
        compute,
        parent=parent,
        retry_failed=place.retry_failed,
        afterwards=lambda run_id: place.tracker.log_calls(run_id, calls),
    )


class _Watch:
    """Shows how the expert gets on, and remembers it."""

    def __init__(self, output: Output) -> None:
        self._output, self._last = output, Progress(total=0)

    def __call__(self, progress: Progress) -> None:
        self._last = progress
        self._output.note(_in_words(progress))
        self._output.progress(progress.done, progress.total, {})

    def facts(self) -> dict[str, float | None]:
        """What was sent, what was there, and what was paid."""
        last = self._last
        return {"requests": last.done - last.cached, "from_ledger": last.cached, "cost_usd": last.cost_usd}


def _in_words(progress: Progress) -> str:
    """E.g. "1,203 ok, 4 failed, $0.1250"."""
    failed = f", {progress.failed:,} failed" if progress.failed else ""
    cost = "" if progress.cost_usd is None else f", ${progress.cost_usd:,.4f}"
    return f"{progress.done - progress.failed:,} ok{failed}{cost}"


def client_of(place: Workplace, expert: ExpertSettings) -> ExpertClient:
    """The client of the configured endpoint, or of the run's reference expert. The key comes from the environment."""
    known = expert.model_copy(update={"base_url": expert.base_url or place.expert_url})
    key = os.environ.get(expert.api_key_env) if expert.api_key_env else None
    if expert.api_key_env and not key:
        raise ConfigError(f"expert.api_key_env names {expert.api_key_env}, which is not set in the environment")
    secret = SecretStr(key) if key else None
    return ExpertClient(known, ledger=Ledger(place.engine), api_key=secret, run=place.run, began=place.began)


def _account(output: Output, revisions: pl.DataFrame) -> int:
    """Count the drafts without a usable revision; the number of the others."""
    for row in revisions.filter(pl.col("verdict") == "failed").iter_rows(named=True):
        reason, _, detail = (row["error"] or "no_reply").partition(":")
        output.reject(row["draft_id"], reason.strip(), detail.strip(), failed=reason != "empty_draft")
    for row in revisions.filter(pl.col("verdict") == "unusable").iter_rows(named=True):
        reasons = sorted({segment["reason"] for segment in row["segments"]})
        output.reject(row["draft_id"], "no_segment_aligned", ", ".join(reasons))
    return revisions.filter(pl.col("verdict").is_in(["right", "revised"])).height


def _tokens(revised: Revised) -> dict[str, int]:
    """Tokens of the replies behind the revisions; drafts that shared a request count once."""
    names = ("prompt_tokens", "completion_tokens")
    replies = pl.concat([frame.select("request_key", *names) for frame in (revised.revisions, revised.reasks)])
    unique = replies.unique("request_key")
    return {name: int(unique[name].sum()) for name in names}


def _yields(revised: Revised) -> dict[str, int]:
    """What became of the segments: those of equal length are all that the published filter would have used."""
    return {
        "segments": revised.segments,
        "segments_equal": revised.equal,
        "segments_usable_first": revised.usable_first,
        "segments_usable": revised.usable,
        "reasked_drafts": revised.reasks.height,
        "reasks_failed": revised.reasks["error"].drop_nulls().len(),
    }
