"""How the models of the experiments come about. Stage keys make equal work shared: between experiments, and with runs.

Trainings are futures, so that as many run side by side as the lab's flow has workers.
"""

from functools import cached_property

from prefect.futures import PrefectFuture

from core.config import RunConfig
from core.corruption.settings import ObjectiveSettings, RefineScope, RefineSettings
from core.manifest import Ref
from core.training.settings import TrainSettings
from flows.foundation import Foundation, StageOne, foundation, stage_one
from flows.gathering import only
from flows.pipeline import control_of
from flows.self_correction import Round, draft_shards, revise_shards, self_correction
from tasks.assemble import AssembleConfig, assemble
from tasks.corrupt import MaskConfig, mask
from tasks.finetune import AttentionConfig, FinetuneConfig, finetune, switch_attention
from tasks.workplace import Workplace

Model = Ref | PrefectFuture[Ref]
OMITTING = "reference-omits-0.3"
"""The reference expert, silent about three of ten mistakes."""


class Lab:
    """One seed's models, by name. Make the slow and independent ones first: they train while others are prepared."""

    def __init__(self, config: RunConfig, place: Workplace, parent: str) -> None:
        self.config, self.place, self.parent = config, place, parent
        self.beside = config.compute.beside
        self.rounds_made = 2
        self._made: dict[str, Model] = {}

    def model(self, name: str) -> Model:
        """The model called `name` in the catalogue: finished, or in training."""
        if name not in self._made:
            self._made[name] = self._recipe(name)
        return self._made[name]

    @cached_property
    def ground(self) -> Foundation:
        """Samples and base."""
        return foundation(self.config, self.place, self.parent)

    @cached_property
    def start(self) -> StageOne:
        """Stage 1."""
        return stage_one(self.config, self.place, self.ground, self.beside, self.parent)

    @cached_property
    def rounds(self) -> list[Round]:
        """Both rounds, whatever the first one gained."""
        patient = self.config.rounds.model_copy(update={"n": self.rounds_made, "patience": self.rounds_made})
        config = self.config.model_copy(update={"rounds": patient})
        return self_correction(config, self.place, self.ground, self.start, self.ground.used, self.parent)

    def _recipe(self, name: str) -> Model:
        config = self.config
        if ", lr " in name:
            kind, rate = name.split(", lr ")
            return self._at_rate(float(rate)).model(kind)
        if name.endswith("prefix attention"):
            return self._with_prefix_attention(name)
        match name:
            case "base":
                return self.ground.base
            case "stage 1":
                return self.start.model
            case "round 1" | "round 2":
                return self.rounds[int(name[-1]) - 1].model
            case "mask-predict":
                tuning, base, rows = control_of(config, self.place, self.ground, self.parent)
                return finetune.submit(self.place, tuning, base, rows, threads=self.beside, parent=self.parent)
            case "stage 2 alone":
                return self._stage_two_alone()
            case "round 1, more steps":
                first = self.rounds[0]
                return self._train("stage2 control", config.stage2, first.model, first.examples, offset=2)
            case "round 1, omitting expert":
                expert = config.expert.model_copy(update={"model": OMITTING})
                asking = config.model_copy(update={"expert": expert})
                drafts = self.rounds[0].drafts
                revisions = revise_shards(asking, self.place, self.ground.blank, drafts, self.parent)
                return self._variant(config.refine, config.objective.refine_scope, revisions)
        refine, scope = self._variants()[name]
        return self._variant(refine, scope, self.rounds[0].revisions)

    def _variants(self) -> dict[str, tuple[RefineSettings, RefineScope]]:
        """Stage II as published, and with one thing changed at a time; as many rows a draft in all of them."""
        published = self.config.refine.model_copy(update={"input": "published"})
        return {
            "eq. 5": (published, "mistakes"),
            "eq. 5, trajectory input": (self.config.refine, "mistakes"),
            "full loss": (published, "full"),
            "full loss, error-free kept": (published, "response"),
        }

    def _with_prefix_attention(self, name: str) -> Model:
        """Stage 1 with a prompt that does not attend to the response: trained so, or switched to it afterwards."""
        switched = name == "stage 1, switched to prefix attention"
        known = self.start.model if switched else self.ground.base
        config = AttentionConfig(prompt_attention="prefix")
        blind = only(switch_attention.submit(self.place, config, known, parent=self.parent), "prefix attention")
        return blind if switched else self._train("stage1", self.config.stage1, blind, self.start.rows, offset=0)

    def _at_rate(self, lr: float) -> "Lab":
        """A lab whose trainings after the base have another learning rate; one round is enough to compare them."""
        rates = {
            name: getattr(self.config, name).model_copy(update={"lr": lr}) for name in ("stage1", "stage2", "control")
        }
        other = Lab(self.config.model_copy(update=rates), self.place, self.parent)
        other.rounds_made = 1
        return other

    def _variant(self, refine: RefineSettings, scope: RefineScope, revisions: list[Ref]) -> Model:
        """Stage II from stage 1 on the drafts of round 1."""
        objective = self.config.objective.model_copy(update={"refine_scope": scope})
        rows = self._assembled(self.rounds[0].drafts, revisions, self.start.rows, refine, objective)
        return self._train("stage2", self.config.stage2, self.start.model, rows, offset=1, objective=objective)

    def _stage_two_alone(self) -> Model:
        """Stage II from the base, for the steps of stages I and II: its own drafts, old rows of its own training."""
        config, first = self.config, self.rounds[0]
        settings = tuple(name.replace("refine", "freeze") for name in config.draft.settings)
        frozen = config.model_copy(update={"draft": config.draft.model_copy(update={"settings": settings})})
        drafts = draft_shards(frozen, self.place, 1, self.ground.base, first.samples, self.parent)
        revisions = revise_shards(config, self.place, self.ground.blank, drafts, self.parent)
        masking = MaskConfig(mask=config.mask, response_length=config.model.response_length, seed=config.seed)
        old = only(
            mask.submit(self.place, masking, self.ground.blank, [self.ground.samples], parent=self.parent), "mask"
        )
        rows = self._assembled(drafts, revisions, old, config.refine, config.objective)
        train = config.stage2.model_copy(update={"steps": config.stage1.steps + config.stage2.steps})
        return self._train("stage2", train, self.ground.base, rows, offset=1)

    def _assembled(
        self,
        drafts: list[Ref],
        revisions: list[Ref],
        replay: Ref,
        refine: RefineSettings,
        objective: ObjectiveSettings,
    ) -> Ref:
        config = AssembleConfig(
            refine=refine, scope=objective.refine_scope, replay=self.config.rounds.replay, seed=self.config.seed
        )
        future = assemble.submit(self.place, config, self.ground.blank, drafts, revisions, replay, parent=self.parent)
        return only(future, "assembly")

    def _train(
        self,
        name: str,
        train: TrainSettings,
        model: Ref,
        rows: Ref,
        *,
        offset: int,
        objective: ObjectiveSettings | None = None,
    ) -> Model:
        """`offset`: added to the seed of the data order, as the rounds do it."""
        known = objective or self.config.objective
        tuning = FinetuneConfig(name=name, train=train, objective=known, seed=self.config.seed + offset)
        return finetune.submit(self.place, tuning, model, rows, threads=self.beside, parent=self.parent)
