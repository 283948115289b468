"""What decides a stage's key, and what does not."""

from core.config import PairSettings
from core.corruption.settings import ObjectiveSettings
from core.expert.settings import ExpertSettings
from core.models.settings import ModelSettings
from core.training.settings import LoraSettings, TrainSettings
from tasks.finetune import FinetuneConfig, ModelConfig
from tasks.keep import KeepConfig
from tasks.pair import PairConfig
from tasks.revise import ReviseConfig

PLAIN, LIMITED = ExpertSettings(reask=False), ExpertSettings(reask=False, image_max_side=512)


def test_work_without_a_limit_on_images_or_a_second_question_keeps_the_key_that_it_had():
    fields = {"model", "prompt_version", "structured", "temperature", "max_tokens", "align"}
    assert set(ReviseConfig.of(PLAIN).model_dump()) == fields
    assert set(ReviseConfig.of(LIMITED).model_dump()) == fields | {"image_max_side"}
    assert ReviseConfig.of(ExpertSettings()).model_dump()["reask_version"].startswith("reask-v1@")
    assert ReviseConfig.model_validate(ReviseConfig.of(LIMITED).model_dump()) == ReviseConfig.of(LIMITED)


def test_pairs_by_an_expert_that_sees_smaller_images_are_other_pairs():
    by_expert = PairSettings(by="expert")
    plain, limited = (PairConfig.of(by_expert, expert, seed=0, scenes=False).expert for expert in (PLAIN, LIMITED))
    assert set(plain) == {"model", "structured", "temperature", "max_tokens"}
    assert limited == plain | {"image_max_side": 512}
    assert PairConfig.of(PairSettings(), LIMITED, seed=0, scenes=False).expert is None


def test_a_model_that_says_nothing_of_its_prompt_keeps_the_key_that_it_had():
    plain = ModelConfig(model=ModelSettings(), seed=0)
    assert "prompt_attention" not in plain.model_dump(mode="json")["model"]
    blind = ModelConfig(model=ModelSettings(prompt_attention="prefix"), seed=0)
    assert blind.model_dump(mode="json")["model"]["prompt_attention"] == "prefix"
    assert ModelConfig.model_validate(blind.model_dump()) == blind


def test_a_kept_model_that_says_nothing_of_its_prompt_keeps_the_key_that_it_had():
    assert KeepConfig(sha256="0" * 64).model_dump() == {"sha256": "0" * 64}
    blind = KeepConfig(sha256="0" * 64, prompt_attention="prefix")
    assert blind.model_dump()["prompt_attention"] == "prefix"
    assert KeepConfig.model_validate(blind.model_dump()) == blind


def test_a_training_without_what_came_later_keeps_the_key_that_it_had():
    plain = FinetuneConfig(name="base", train=TrainSettings(), objective=ObjectiveSettings(), seed=0)
    assert set(plain.model_dump(mode="json")["train"]) == {
        "steps", "batch_size", "lr", "warmup", "floor", "optimizer", "weight_decay", "grad_clip", "log_every",
        "checkpoint_every",
    }  # fmt: skip
    adapted = plain.model_copy(update={"train": TrainSettings(lora=LoraSettings(rank=4))})
    assert adapted.model_dump(mode="json")["train"]["lora"] == {"rank": 4, "alpha": 32.0, "targets": []}
    assert FinetuneConfig.model_validate(adapted.model_dump()) == adapted


def test_what_saves_memory_in_a_training_does_not_change_its_key():
    plain = FinetuneConfig(name="base", train=TrainSettings(), objective=ObjectiveSettings(), seed=0)
    small = plain.model_copy(update={"train": TrainSettings(micro_batch=2, gradient_checkpointing=True)})
    assert small.model_dump(mode="json") == plain.model_dump(mode="json")
