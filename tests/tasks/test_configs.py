"""What decides a stage's key, and what does not."""

from core.config import PairSettings, RunConfig
from core.corruption.settings import ObjectiveSettings
from core.expert.settings import ExpertSettings
from core.models.settings import ModelSettings
from core.training.settings import LoraSettings, TrainSettings
from tasks.finetune import FinetuneConfig, ModelConfig
from tasks.pair import PairConfig
from tasks.revise import ReviseConfig
from tests.core.models.checkpoints import published

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
    assert "system" not in plain.model_dump(mode="json")["model"]
    assert set(plain.model_dump(mode="json")) == {"model", "seed", "checkpoint_sha256"}
    for said in ({"prompt_attention": "prefix"}, {"system": ""}):
        model = ModelConfig(model=ModelSettings(**said), seed=0)
        assert said.items() <= model.model_dump(mode="json")["model"].items()
        assert ModelConfig.model_validate(model.model_dump()) == model


def test_a_checkpoint_is_taken_in_once_whatever_sizes_and_seed_are_said_beside_it(tmp_path):
    folder = published(tmp_path, "llada_tiny")
    settings = ModelSettings(checkpoint=str(folder), response_length=64)
    one, other = (RunConfig(seed=seed, model=settings.model_copy(update=more)) for seed, more in (
        (0, {}), (7, {"response_length": 128, "tokenizer": "bpe"}),
    ))  # fmt: skip
    assert ModelConfig.of(one) == ModelConfig.of(other)
    assert ModelConfig.of(one).model_dump(mode="json")["taken_in"] == 2
    assert ModelConfig.of(one) != ModelConfig.of(RunConfig(model=settings.model_copy(update={"system": "Be brief."})))


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
