"""A user's checkpoint becomes one of the store, in its published layout."""

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State

from core.fingerprint import checkpoint_digest
from core.models.denoiser import load_denoiser, save_denoiser
from core.settings import Settings
from core.stage import Output
from tasks.running import run, stage_of
from tasks.workplace import Workplace


class KeepConfig(Settings):
    """A checkpoint, by the content of its folder."""

    sha256: str


@task(cache_policy=NO_CACHE, task_run_name="keep model")
def keep_model(place: Workplace, folder: str, *, parent: str) -> State:
    """The checkpoint of a folder -> the store, its tokenizer knowing the mask, the ends and the image placeholder."""

    def compute(output: Output) -> None:
        save_denoiser(load_denoiser(folder), output.work / "model")
        output.write_folder(output.work / "model")
        output.commit(rows_in=1, ok=1)

    stage = stage_of("keep_model", KeepConfig(sha256=checkpoint_digest(folder)), kind="checkpoint")
    return run(place, stage, compute, parent=parent)
