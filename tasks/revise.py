"""The expert revises: one shard of drafts, through an OpenAI-compatible endpoint."""

import os
from dataclasses import replace
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
from core.expert.request import load_prompt
from core.expert.settings import AlignmentSettings, ExpertSettings
from core.manifest import Ref, read_table
from core.models.tokenizer import load_tokenizer
from core.revising import revise as revise_drafts
from core.settings import Settings
from core.stage import Output
from data_contracts import Drafts, Revisions
from tasks.running import run, stage_of
from tasks.workplace import Workplace


class ReviseConfig(Settings):
    """What decides a revision. Address, key, patience and prices are not in it: they change nothing that is said."""

    model: str
    prompt_version: str
    structured: str
    temperature: float | None
    max_tokens: int
    align: AlignmentSettings
    image_max_side: int | None = None
    image_max_bytes: int | None = None

    @model_serializer(mode="wrap")
    def _without_limits_that_are_none(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Work without a limit on images keeps the key that it had before there were any."""
        return {name: value for name, value in dump(self).items() if value is not None or not name.startswith("image_")}

    @classmethod
    def of(cls, expert: ExpertSettings) -> "ReviseConfig":
        """The part of the expert's settings that decides its answers."""
        known = expert.model_dump(include=set(cls.model_fields))
        return cls(**known, prompt_version=load_prompt(expert.prompt).version)


@task(cache_policy=NO_CACHE, task_run_name="revise")
def revise(
    place: Workplace, config: ReviseConfig, expert: ExpertSettings, tokenizer: Ref, drafts: Ref, *, parent: str
) -> State:
    """Drafts -> what the expert made of them, aligned to tokens. A draft without a usable revision is counted."""

    def compute(output: Output) -> None:
        last = Progress(total=0)

        def watch(progress: Progress) -> None:
            nonlocal last
            last = replace(progress)
            output.progress(progress.done, progress.total, {})

        revisions = revise_drafts(
            read_table(place.store, drafts, Drafts),
            client=client_of(place, expert),
            tokenizer=load_tokenizer(place.local_folder(tokenizer)),
            load_image=place.image_bytes,
            on_progress=watch,
        )
        output.write(Revisions, revisions, counted=False)
        ok = _account(output, revisions)
        sent = {"requests": last.done - last.cached, "from_ledger": last.cached, "cost_usd": last.cost_usd}
        facts = sent | _tokens(revisions)
        output.commit(rows_in=revisions.height, ok=ok, facts=facts)

    inputs = {"tokenizer": [tokenizer], "drafts": [drafts]}
    return run(place, stage_of("revise", config, inputs), compute, parent=parent, retry_failed=place.retry_failed)


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


def _tokens(revisions: pl.DataFrame) -> dict[str, int]:
    """Tokens of the replies behind the revisions; drafts that shared a request count once."""
    replies = revisions.unique("request_key")
    return {name: int(replies[name].sum()) for name in ("prompt_tokens", "completion_tokens")}
