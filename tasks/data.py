"""Samples into the store: from the scene world, or from a user's file; and slices of them."""

from collections import Counter
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State

from core.fingerprint import file_digest, folder_digest
from core.ingest.llava import ingest_llava
from core.ingest.settings import IngestSettings
from core.manifest import Ref, read_table
from core.settings import Settings
from core.stage import Output
from core.store import put_image
from core.worlds.scenes import synthesize
from data_contracts import Samples
from tasks.running import run, stage_of
from tasks.workplace import Workplace

_BATCH = 1000


class SceneSlice(Settings):
    """Scenes [start, start + count) of a split."""

    split: str
    start: int
    count: int
    captions: int
    seed: int


class SampleSlice(Settings):
    """Samples [start, start + count) of a split, in the order of the file."""

    split: str
    start: int
    count: int


@task(cache_policy=NO_CACHE, task_run_name="synth {settings.split} {settings.start}")
def synth(place: Workplace, settings: SceneSlice, *, parent: str) -> State:
    """Draw scenes, render them, caption them -> samples."""

    def compute(output: Output) -> None:
        for start in range(settings.start, settings.start + settings.count, _BATCH):
            count = min(_BATCH, settings.start + settings.count - start)
            frame, images = synthesize(**settings.model_dump(exclude={"start", "count"}), start=start, count=count)
            for data in images.values():
                put_image(place.store, data)
            output.write(Samples, frame, part=f"{start:08d}")
        output.commit(rows_in=settings.count * settings.captions)

    return run(place, stage_of("synth", settings), compute, parent=parent)


class IngestConfig(Settings):
    """A file and its images, by content: a changed file, or a changed image folder, is ingested anew."""

    file_sha256: str
    images_sha256: str
    """Digest of the names, sizes and times of the files in the image folder."""
    settings: IngestSettings


@task(cache_policy=NO_CACHE, task_run_name="ingest")
def ingest(place: Workplace, path: Path, images: Path | None, settings: IngestSettings, *, parent: str) -> State:
    """Read a LLaVA-format file, check and store its images -> samples."""
    config = IngestConfig(file_sha256=file_digest(path), images_sha256=folder_digest(images), settings=settings)

    def compute(output: Output) -> None:
        rows_in = 0
        splits: Counter[str] = Counter()
        put = lambda data: put_image(place.store, data)  # noqa: E731 - the store, as the reader wants it
        for index, batch in enumerate(ingest_llava(path, images=images, put_image=put, settings=settings)):
            output.write(Samples, batch.samples, part=f"{index:08d}")
            output.reject_frame(batch.rejects)
            rows_in += batch.rows_in
            splits.update(batch.samples["split"].to_list())
        output.commit(rows_in=rows_in, facts=dict(splits))

    return run(place, stage_of("ingest", config), compute, parent=parent)


@task(cache_policy=NO_CACHE, task_run_name="take {settings.split} {settings.start}")
def take(place: Workplace, samples: Ref, settings: SampleSlice, *, parent: str) -> State:
    """Some samples of a split, by their place in the file -> samples."""

    def compute(output: Output) -> None:
        frame = read_table(place.store, samples, Samples).filter(split=settings.split)
        frame = frame.slice(settings.start, settings.count)
        output.write(Samples, frame)
        output.commit(rows_in=frame.height)

    stage = stage_of("take", settings, {"samples": [samples]})
    return run(place, stage, compute, parent=parent)
