"""A user's checkpoint becomes one of the store, in its published layout."""

from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from pydantic import SerializerFunctionWrapHandler, model_serializer

from core.fingerprint import checkpoint_digest
from core.models.denoiser import load_denoiser, save_denoiser
from core.models.settings import PromptAttention
from core.settings import Settings
from core.stage import Output
from tasks.running import run, stage_of
from tasks.workplace import Workplace


class KeepConfig(Settings):
    """A checkpoint, by the content of its folder."""

    sha256: str
    prompt_attention: PromptAttention | None = None
    """What its prompt may see of the response; None: as the checkpoint says. Left out of the stage's key then."""

    @model_serializer(mode="wrap")
    def _leave_out_unset(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        unset = {"prompt_attention"} if self.prompt_attention is None else set[str]()
        return {key: value for key, value in dump(self).items() if key not in unset}


@task(cache_policy=NO_CACHE, task_run_name="keep model")
def keep_model(place: Workplace, folder: str, *, parent: str, prompt_attention: PromptAttention | None = None) -> State:
    """The checkpoint of a folder -> the store, its tokenizer knowing the mask, the ends and the image placeholder."""
    config = KeepConfig(sha256=checkpoint_digest(folder), prompt_attention=prompt_attention)

    def compute(output: Output) -> None:
        denoiser = load_denoiser(folder)
        if config.prompt_attention is not None:
            denoiser.attend(config.prompt_attention)
        save_denoiser(denoiser, output.work / "model")
        output.write_folder(output.work / "model")
        output.commit(rows_in=1, ok=1)

    stage = stage_of("keep_model", config, kind="checkpoint")
    return run(place, stage, compute, parent=parent)
