"""The verb `doctor`: a real forward, expert call, store write and MLflow write, before any money is spent."""

import time
import uuid
from collections.abc import Callable

import polars as pl
from rich.console import Console
from rich.text import Text

from core.config import RunConfig
from core.decoding.settings import DecodeSettings
from core.drafting import answer
from core.errors import RedraftError
from core.expert.request import build_request
from core.models.create import create_denoiser
from core.models.denoiser import load_denoiser
from core.store import put_image
from core.worlds.scenes import synthesize
from flows.session import session
from tasks.compute import DTYPES, device_names
from tasks.revise import client_of
from tasks.workplace import Workplace


def examine(config: RunConfig) -> int:
    """Try each part and say how it went; 1 if any part does not work."""
    console, broken = Console(), 0
    with session(config) as place:
        checks: list[tuple[str, Callable[[], str]]] = [
            ("model", lambda: _forward(config, place)),
            ("expert", lambda: _ask(config, place)),
            ("store", lambda: _write(place)),
            ("MLflow", lambda: _track(place)),
        ]
        for name, check in checks:
            started = time.monotonic()
            try:
                said = check()
            except (RedraftError, OSError, ValueError) as error:
                broken += 1
                console.print(line("✗", "red", name, str(error)), soft_wrap=True)
            else:
                seconds = time.monotonic() - started
                console.print(line("✓", "green", name, f"{said} ({seconds:.1f} s)"), soft_wrap=True)
    return 1 if broken else 0


def line(mark: str, colour: str, name: str, said: str) -> Text:
    """A coloured mark, and what was said as it is: replies and errors hold what rich would take for markup."""
    return Text.assemble((mark, colour), f" {name:7} {said}")


def _forward(config: RunConfig, place: Workplace) -> str:
    """Decode one answer about one picture, or to its prompt alone if the model reads no images, where a run would."""
    samples, images = synthesize(split="dev", start=0, count=1, captions=1, seed=config.seed)
    for data in images.values():
        put_image(place.store, data)
    checkpoint = config.model.checkpoint
    device = device_names(place.devices)[0]
    model = (
        load_denoiser(checkpoint, device=device, dtype=DTYPES[config.draft.dtype])
        if checkpoint
        else create_denoiser(config.model, samples["reference"].to_list(), seed=config.seed)
    )
    seen = samples if model.vision_parameters() else samples.with_columns(image_sha=pl.lit(None, dtype=pl.String))
    answered = answer(
        model,
        seen,
        [DecodeSettings(tokens_per_step=config.model.response_length, policy="freeze")],
        load_image=place.images,
        response_length=config.model.response_length,
        batch_size=1,
    )
    text = answered.answers["text"].to_list()
    if not text:
        raise RedraftError(f"the model cannot take the prompt: {answered.rejects.rows()}")
    return f"{checkpoint or 'a new small model'} wrote {len(text[0].split())} words on {model.device}"


def _ask(config: RunConfig, place: Workplace) -> str:
    """One request with an image and the reply's schema. The question is new each time, so it is really asked."""
    samples, images = synthesize(split="dev", start=0, count=1, captions=1, seed=config.seed)
    (sha, data), reference = next(iter(images.items())), samples["reference"][0]
    client = client_of(place, config.expert)
    question = f"{samples['prompt'][0]} ({uuid.uuid4().hex[:8]})"
    wrong = reference.replace(" .", " , .", 1)
    request = build_request(client.settings, question=question, reference=reference, prediction=wrong, image_sha=sha)
    reply = client.ask([request], lambda _: data)[0]
    if reply.status != "answered":
        raise RedraftError(f"{client.settings.base_url} gave no usable reply: {reply.error}")
    return f"{client.settings.model} at {client.settings.base_url} answered {(reply.raw or '')[:60]!r}"


def _write(place: Workplace) -> str:
    """Write, read back and delete one object."""
    content = uuid.uuid4().bytes
    place.store.write("doctor/probe", content)
    if place.store.read("doctor/probe") != content:
        raise RedraftError(f"{place.store.uri} gives back other bytes than were written")
    place.store.delete("doctor")
    return place.store.uri


def _track(place: Workplace) -> str:
    """Write one run."""
    tracker = place.tracker
    run_id = tracker.start_run("doctor", parent=None, tags={"redraft.doctor": "yes"}, params={})
    tracker.log_metrics(run_id, {"ok": 1.0}, step=0)
    tracker.finish(run_id, "FINISHED")
    if not run_id:
        raise RedraftError(f"MLflow at {place.mlflow_uri} took no run")
    return str(place.mlflow_uri)
