"""The flow `self_correction`: rounds of draft, revise, assemble, fine-tune, and a look at what was gained."""

from functools import partial

from prefect import flow

from core.config import RunConfig
from core.manifest import Ref, read_manifest
from core.settings import Settings
from data_contracts import Samples
from flows.foundation import Foundation, StageOne, samples_of
from flows.gathering import only, shards_of
from tasks.assemble import AssembleConfig, assemble
from tasks.compute import shards_at_once
from tasks.draft import DraftConfig, draft
from tasks.evaluate import EvaluateConfig, evaluate
from tasks.finetune import FinetuneConfig, finetune
from tasks.promote import beats
from tasks.revise import ReviseConfig, revise
from tasks.rounds import close_round, open_round
from tasks.workplace import Workplace

_SHARDS_ASKING = 4
"""Shards that share the places in flight: while one waits for its last replies, the others keep the expert busy."""


class Round(Settings):
    """What a round left behind."""

    number: int
    samples: Ref
    drafts: list[Ref]
    revisions: list[Ref]
    examples: Ref
    model: Ref
    dev: Ref
    """Its evaluation on the dev split."""
    shown: Ref
    """What the new model writes for the round's first samples, for the report."""
    gained: bool
    """Does its dev result, with its interval, beat the best round before?"""


@flow(name="self_correction", flow_run_name="self_correction")
def self_correction(
    config: RunConfig, place: Workplace, ground: Foundation, start: StageOne, first_sample: int, parent: str
) -> list[Round]:
    """Rounds from `start.model` on; stops when `rounds.patience` rounds in a row have gained nothing."""
    rounds: list[Round] = []
    model = start.model
    best = evaluate_dev(config, place, model, ground.dev, config.compute.beside, parent)
    for number in range(1, config.rounds.n + 1):
        first = first_sample + (number - 1) * config.rounds.samples
        done = correct_once(config, place, ground, start.rows, number, model, best, first, parent)
        rounds.append(done)
        best = done.dev if done.gained else best
        model = done.model
        recent = rounds[-config.rounds.patience :]
        if len(recent) == config.rounds.patience and not any(one.gained for one in recent):
            break
    return rounds


def correct_once(
    config: RunConfig,
    place: Workplace,
    ground: Foundation,
    replay: Ref,
    number: int,
    model: Ref,
    best: Ref,
    first: int,
    parent: str,
) -> Round:
    """One round: new samples, drafts of `model`, the expert's revisions, stage 2 from `model`, its dev result."""
    run = open_round(place, f"round {number}", parent)
    count = config.rounds.samples
    samples = samples_of(config, place, "train", first, count, 1, ground.ingested, run)
    drafts = draft_shards(config, place, number, model, samples, run)
    revisions = revise_shards(config, place, ground.blank, drafts, run)
    assembling = AssembleConfig(
        refine=config.refine, scope=config.objective.refine_scope, replay=config.rounds.replay, seed=config.seed
    )
    examples = only(assemble.submit(place, assembling, ground.blank, drafts, revisions, replay, parent=run), "assembly")
    tuning = FinetuneConfig(name="stage2", train=config.stage2, objective=config.objective, seed=config.seed + number)
    tuned = only(
        finetune.submit(
            place,
            tuning,
            model,
            examples,
            threads=config.compute.beside,
            processes=config.compute.processes,
            parent=run,
        ),
        "stage 2",
    )
    dev = evaluate_dev(config, place, tuned, ground.dev, config.compute.beside, run)
    showing = EvaluateConfig.of(config, "gallery", (config.rounds.promote_on,), first=config.evaluate.gallery)
    shown = only(evaluate.submit(place, showing, tuned, samples, threads=config.compute.beside, parent=run), "gallery")
    gained = beats(place, dev, best, config.rounds.promote_on, config.seed)
    close_round(place, run, gained)
    return Round(
        number=number, samples=samples, drafts=drafts, revisions=revisions, examples=examples, model=tuned, dev=dev,
        shown=shown, gained=gained,
    )  # fmt: skip


def evaluate_dev(config: RunConfig, place: Workplace, model: Ref, dev: Ref, threads: int, parent: str) -> Ref:
    """The dev result that decides about the champion."""
    measuring = EvaluateConfig.of(config, "dev", (config.rounds.promote_on,))
    return only(evaluate.submit(place, measuring, model, dev, threads=threads, parent=parent), "dev evaluation")


def draft_shards(
    config: RunConfig,
    place: Workplace,
    number: int,
    model: Ref,
    samples: Ref,
    run: str,
    *,
    limit: int | None = None,
) -> list[Ref]:
    """Drafts of `model`, shard by shard; with a limit for the first samples alone."""
    parts = read_manifest(place.store, samples.uri).parts
    rows = sum(part.rows or 0 for part in parts if part.table == Samples.table)
    rows = rows if limit is None else min(limit, rows)
    shards = [
        DraftConfig(
            settings=config.draft.settings,
            offset=offset,
            length=min(config.draft.shard_size, rows - offset),
            batch_size=config.draft.batch_size,
            response_length=config.model.response_length,
            round=number,
            traces=config.evaluate.traces if offset == 0 else 0,
            dtype=config.draft.dtype,
        )
        for offset in range(0, rows, config.draft.shard_size)
    ]
    threads = config.compute.beside
    tasks = [partial(draft.submit, place, shard, model, samples, threads=threads, parent=run) for shard in shards]
    together = shards_at_once(place.devices, threads=config.compute.threads, each=threads)
    return shards_of(place, "draft shards", together, tasks)


def revise_shards(config: RunConfig, place: Workplace, tokenizer: Ref, drafts: list[Ref], run: str) -> list[Ref]:
    """The expert's revisions of each shard of drafts."""
    asking, together = ReviseConfig.of(config.expert), min(len(drafts), config.expert.concurrency, _SHARDS_ASKING)
    if config.expert.mode == "batch":  # which does nothing but wait, for up to a day
        together = len(drafts)
    tasks = [partial(revise.submit, place, asking, config.expert, tokenizer, shard, parent=run) for shard in drafts]
    return shards_of(place, "revision shards", together, tasks)
