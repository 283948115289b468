"""Samples into the store: from the scene world, or from a user's file; and slices of them."""

from contextlib import closing
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State

from core.config import DataSettings
from core.fingerprint import file_digest, images_digest
from core.ingest.ahead import read_rows
from core.ingest.formats import format_of
from core.ingest.notebook import Notebook
from core.ingest.samples import Ingestor
from core.ingest.settings import IngestSettings
from core.ingest.sources import image_source
from core.ingest.writing import write_ingested
from core.manifest import Ref, read_parts, read_slice
from core.settings import Settings
from core.stage import Output
from core.store import put_image
from core.worlds.scenes import synthesize
from data_contracts import HallucinationPairs, Samples
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
    """A file and its images, by content: a changed file, or a changed image, is ingested anew."""

    format: str
    file_sha256: str
    images_sha256: str
    """Digest of the names, sizes and times of the images."""
    settings: IngestSettings


@task(cache_policy=NO_CACHE, task_run_name="ingest")
def ingest(place: Workplace, data: DataSettings, settings: IngestSettings, *, threads: int, parent: str) -> State:
    """Read a file of a public format, check and store its images -> samples (and its pairs, or its corrections)."""
    path = Path(data.path)
    format_ = format_of(data.source, path)
    config = IngestConfig(
        format=format_,
        file_sha256=file_digest(path),
        images_sha256=images_digest(data.images, place.s3_endpoint or ""),
        settings=settings,
    )

    def compute(output: Output) -> None:
        with closing(Notebook(output.work / "notebook.db")) as notebook:
            ingestor = Ingestor(
                images=image_source(data.images, endpoint_url=place.s3_endpoint),
                put_image=lambda data: put_image(place.store, data),
                settings=settings,
                notebook=notebook,
                threads=threads,
            )
            write_ingested(output, ingestor.batches(read_rows(format_, path, threads=threads)))

    return run(place, stage_of("ingest", config), compute, parent=parent)


@task(cache_policy=NO_CACHE, task_run_name="take {settings.split} {settings.start}")
def take(place: Workplace, samples: Ref, settings: SampleSlice, *, parent: str) -> State:
    """Some samples of a split, by their place in the file, and the pairs that came with them -> samples."""

    def compute(output: Output) -> None:
        frame = read_slice(place.store, samples, Samples, **settings.model_dump())
        output.write(Samples, frame)
        for number, pairs in enumerate(read_parts(place.store, samples, HallucinationPairs)):
            theirs = pairs.join(frame.select("sample_id"), on="sample_id", how="semi", maintain_order="left")
            output.write(HallucinationPairs, theirs, part=f"{number:08d}", counted=False)
        output.commit(rows_in=frame.height)

    stage = stage_of("take", settings, {"samples": [samples]})
    return run(place, stage, compute, parent=parent)
