"""Drafts and revisions into stage 2's training rows, mixed with a share of stage 1's."""

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State

from core.corruption.refine import draft_columns, refine_rows
from core.corruption.replay import mix_replay
from core.corruption.settings import RefineScope, RefineSettings
from core.manifest import Ref, read_table
from core.models.tokenizer import load_tokenizer
from core.settings import Settings
from core.stage import Output
from core.worlds.scenes_grounding import ground
from data_contracts import Drafts, Revisions, TrainingExamples
from tasks.running import run, stage_of
from tasks.workplace import Workplace


class AssembleConfig(Settings):
    """What decides stage 2's rows."""

    refine: RefineSettings
    scope: RefineScope
    replay: float
    seed: int


@task(cache_policy=NO_CACHE, task_run_name="assemble")
def assemble(
    place: Workplace,
    config: AssembleConfig,
    tokenizer: Ref,
    drafts: list[Ref],
    revisions: list[Ref],
    replay: Ref,
    *,
    parent: str,
) -> State:
    """Drafts and what the expert made of them -> training examples. A row in is a draft."""

    def compute(output: Output) -> None:
        refined = refine_rows(
            read_table(place.store, drafts, Drafts, columns=draft_columns(config.refine)),
            read_table(place.store, revisions, Revisions),
            load_tokenizer(place.local_folder(tokenizer)),
            seed=config.seed,
            scope=config.scope,
            settings=config.refine,
            ground=ground,
        )
        old = read_table(place.store, replay, TrainingExamples)
        mixed = mix_replay(refined.examples, old, share=config.replay, seed=config.seed)
        output.write(TrainingExamples, mixed, counted=False)
        output.reject_frame(refined.rejects)
        facts = {"refine_rows": refined.examples.height, "replay_rows": mixed.height - refined.examples.height}
        output.commit(rows_in=refined.rows_in, ok=refined.rows_ok, facts=facts)

    inputs = {"tokenizer": [tokenizer], "drafts": drafts, "revisions": revisions, "replay": [replay]}
    return run(place, stage_of("assemble", config, inputs), compute, parent=parent)
