"""Reading training rows back: the share of a training's time in which a step waits for its batch.

python -m tests.benchmarks.bench_reading --out tests/results/benchmarks/reading.json

The training loop itself, with batches made one step ahead as `redraft run` has them and with batches made when they are
asked for, in turn. No image is read twice. Cases:
text     paragraphs in responses of 128 tokens, a Llama-like decoder of 8 layers of 512;
scenes   pictures of 48 x 48 and the scene model at its defaults;
photos   JPEGs of 640 x 480 in LLaVA's tiles of 384 pixels, in the place of their token, so that all are measured at
         the start; rows by length, a step in micro-batches; a small SigLIP and a decoder of 4 layers of 256: far less
         work a picture than with a real one, so real trainings wait less.
Fails if a step waits for more than 3 % of the time. The first rows, which nothing can hide, are left out of it. The
thread that reads takes processor time from the step: so steps are also timed on rows that are all there before.
"""

import argparse
import io
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from PIL import Image

from core.corruption.revision import revision_rows
from core.corruption.settings import ObjectiveSettings, RevisionSettings
from core.ingest.images import decode
from core.models.decoders import decoder_family
from core.models.denoiser import TrainableDenoiser
from core.models.pretrained import Layout, PretrainedDenoiser, encode_bidirectionally
from core.models.published import tiled_vision
from core.models.scene_denoiser import SceneDenoiser, SceneDenoiserConfig
from core.models.tokenizer import build_word_tokenizer
from core.seeds import rng
from core.training.ahead import Ahead
from core.training.batches import Batch, TrainingBatches
from core.training.loop import train
from core.training.parts import Part, is_whole, parts_of
from core.training.settings import TrainSettings
from core.training.shares import Batches
from core.worlds import scenes
from data_contracts import HallucinationPairs, TokenKind
from tests.benchmarks.paragraphs import large_tokenizer, samples_and_pairs
from tests.benchmarks.record import Ratio, record

TARGET = 3.0
VOCABULARY = 2048
_PLACEHOLDER = VOCABULARY - 1


@dataclass(frozen=True, kw_only=True)
class Case:
    """A training: its model, rows and images, and how rows come together; see TrainSettings."""

    name: str
    model: Callable[[], TrainableDenoiser]
    frame: pl.DataFrame
    images: Mapping[str, bytes]
    batch_size: int
    micro_batch: int = 0
    bucket: int = 0


class Ready:
    """Batches whose rows were all read before the training."""

    def __init__(self, batches: Batches, steps: int, parts: Sequence[Part]) -> None:
        self._batches = batches
        self._read = {
            (step, part.places[0]): batches.part(step, part.places) for step in range(steps) for part in parts
        } or {(step, 0): batches.batch(step) for step in range(steps)}

    def batch(self, step: int) -> Batch:
        return self._read[step, 0]

    def part(self, step: int, places_P: NDArray[np.int64]) -> Batch:
        return self._read[step, places_P[0]]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batches, name)


@dataclass
class Watched:
    """Batches, and the seconds that each read took."""

    batches: Batches
    seconds: list[float] = field(default_factory=list)

    def batch(self, step: int) -> Batch:
        return self._timed(lambda: self.batches.batch(step))

    def part(self, step: int, places_P: NDArray[np.int64]) -> Batch:
        return self._timed(lambda: self.batches.part(step, places_P))

    def _timed(self, read: Callable[[], Batch]) -> Batch:
        started = time.perf_counter()
        batch = read()
        self.seconds.append(time.perf_counter() - started)
        return batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.batches, name)


def decoder(*, hidden: int, layers: int, eyes: bool) -> PretrainedDenoiser:
    """A Llama-like decoder of random weights, with or without a small SigLIP on LLaVA's tiles."""
    family = decoder_family(
        {
            "model_type": "llava_llada",
            "vocab_size": VOCABULARY,
            "hidden_size": hidden,
            "intermediate_size": 3 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": 8,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500_000.0,
        }
    )
    language, head = family.build()
    tower = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
    tiles = {
        "image_aspect_ratio": "anyres_max_4",
        "mm_patch_merge_type": "spatial_unpad",
        "image_grid_pinpoints": [[384, 768], [768, 384], [768, 768]],
        "mm_projector_type": "mlp2x_gelu",
    }
    vision = tiled_vision(tiles, {**tower, "image_size": 384, "patch_size": 14}, hidden) if eyes else None
    layout = Layout(
        encode=encode_bidirectionally,
        name_of=family.name_of,
        config={},
        beside={},
        max_positions=8192,
        placeholder=_PLACEHOLDER if eyes else None,
    )
    tokenizer = large_tokenizer(VOCABULARY)
    if eyes:
        tokenizer.init_kwargs["image_placeholder_id"] = _PLACEHOLDER  # as LLaVA-V's has it when it is loaded
    model = PretrainedDenoiser(
        language=language, head=head, vision=vision, layout=layout, tokenizer=tokenizer
    ).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0) if parameter.ndim == 1 else parameter.normal_(std=0.02, generator=generator)
        for name, buffer in model.named_buffers():
            if name.endswith("position_ids"):
                buffer.copy_(torch.arange(buffer.shape[-1]))
    rotary: Any = language.rotary_emb
    language.rotary_emb = type(rotary)(config=language.config)  # its buffers are computed, not drawn
    return model


def text_case() -> Case:
    samples, pairs = samples_and_pairs(2000)
    rows = revision_rows(
        samples, pairs, large_tokenizer(VOCABULARY), response_length=128, seed=0, settings=RevisionSettings()
    )
    model = lambda: cast(TrainableDenoiser, decoder(hidden=512, layers=8, eyes=False))  # noqa: E731
    return Case(name="text", model=model, frame=rows.examples, images={}, batch_size=4)


def scene_case(steps: int) -> Case:
    samples, images = scenes.synthesize(split="train", start=0, count=64 * steps, captions=1, seed=0)
    tokenizer = build_word_tokenizer(scenes.VOCABULARY)
    rows = revision_rows(
        samples,
        HallucinationPairs.create_empty(),
        tokenizer,
        response_length=scenes.RESPONSE_LENGTH,
        seed=0,
        settings=RevisionSettings(),
    )
    model = lambda: cast(TrainableDenoiser, SceneDenoiser.create(SceneDenoiserConfig(), tokenizer, seed=0))  # noqa: E731
    return Case(name="scenes", model=model, frame=rows.examples, images=images, batch_size=64)


def photo_case(steps: int) -> Case:
    rows = text_case().frame.head(4 * steps).with_columns(image_sha=pl.format("photo-{}", pl.int_range(pl.len())))
    first = {"input_ids": _PLACEHOLDER, "target_ids": _PLACEHOLDER, "kinds": int(TokenKind.PROMPT)}
    rows = rows.with_columns(
        pl.concat_list(pl.lit(value, dtype=rows.schema[name].inner), name).alias(name) for name, value in first.items()
    )
    images = {sha: _photo(index) for index, sha in enumerate(rows["image_sha"])}
    model = lambda: cast(TrainableDenoiser, decoder(hidden=256, layers=4, eyes=True))  # noqa: E731
    return Case(name="photos", model=model, frame=rows, images=images, batch_size=4, micro_batch=2, bucket=2)


def _photo(index: int) -> bytes:
    """A JPEG with the detail of a photograph: noise at every scale."""
    draws, pixels = rng("photo", index), np.zeros((480, 640, 3))
    for size in (4, 16, 64, 256):
        noise = draws.integers(0, 256, (size * 3 // 4, size, 3), dtype=np.uint8)
        pixels += np.asarray(Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC)) / 4
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


@dataclass(frozen=True, kw_only=True)
class Waits:
    """Share of the time in which steps waited; seconds a step, a read when it was asked for, and of the beginning."""

    share: float
    step_s: float
    read_s: float
    begin_s: float


Way = Literal["ahead", "asked", "ready"]


def waits(case: Case, steps: int, threads: int, way: Way) -> Waits:
    """Of a training whose rows are read by a thread, when they are asked for, or before it."""
    model = case.model()
    settings = TrainSettings(
        steps=steps,
        batch_size=case.batch_size,
        micro_batch=case.micro_batch,
        bucket=case.bucket,
        lr=1e-5,
        warmup=1,
        log_every=1,
    )
    began = time.perf_counter()
    batches = TrainingBatches(
        case.frame,
        model,
        lambda sha: decode(case.images[sha]),
        batch_size=case.batch_size,
        seed=0,
        objective=ObjectiveSettings(),
        bucket=case.bucket,
    )
    begin_s = time.perf_counter() - began
    parts = parts_of(case.batch_size, micro_batch=case.micro_batch)
    parts = [] if is_whole(parts, case.batch_size) else parts
    with Ahead(batches, steps=steps, parts=parts) as prepared:
        chosen = {"ahead": prepared, "asked": batches}.get(way) or Ready(batches, steps, parts)
        watched = Watched(chosen)
        seconds = train(model, watched, settings, threads=threads).seconds - watched.seconds[0]
    waited = sum(watched.seconds[1:])
    return Waits(
        share=waited / seconds, step_s=seconds / steps, read_s=waited / (len(watched.seconds) - 1), begin_s=begin_s
    )


def measure(case: Case, args: argparse.Namespace) -> tuple[dict[str, float], list[Ratio]]:
    """All ways in turn: the medians, and the ratios."""
    found: dict[Way, list[Waits]] = {"ahead": [], "asked": [], "ready": []}
    for _ in range(args.repeats):
        for way, runs in found.items():
            runs.append(waits(case, args.steps, args.threads, way))

    def median(way: Way, name: str) -> float:
        return statistics.median(getattr(one, name) for one in found[way])

    share = median("ahead", "share")
    slower = statistics.median(
        one.step_s / other.step_s for one, other in zip(found["ahead"], found["ready"], strict=True)
    )
    measured = {
        "batch_size": case.batch_size,
        "micro_batch": case.micro_batch,
        "seconds_to_begin": round(median("ahead", "begin_s"), 3),
        "milliseconds_a_step": round(1e3 * median("ahead", "step_s"), 2),
        "milliseconds_a_step_without_thread": round(1e3 * median("asked", "step_s"), 2),
        "milliseconds_a_step_on_ready_rows": round(1e3 * median("ready", "step_s"), 2),
        "milliseconds_a_read": round(1e3 * median("asked", "read_s"), 2),
        "waiting_percent": round(100 * share, 3),
        "waiting_percent_without_thread": round(100 * median("asked", "share"), 3),
    }
    what = f"Training waits for its rows: {case.name}"
    return measured, [
        Ratio(what=what, value=100 * share, bound=TARGET, kind="at most", unit="% of the time"),
        Ratio(what=f"Step beside the thread over step on ready rows: {case.name}", value=slower, kind="at most"),
    ]


def main() -> int:
    """Run, write the JSON, and return 0 if no step waits for long."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cases", nargs="+", default=["text", "scenes", "photos"])
    args = parser.parse_args()

    measured: dict[str, Any] = {}
    ratios: list[Ratio] = []
    for case in (text_case(), scene_case(args.steps), photo_case(args.steps)):
        if case.name not in args.cases:
            continue
        measured[case.name], found = measure(case, args)
        ratios += found
    sizes = {"steps": args.steps, "repeats": args.repeats, "threads": args.threads}
    packages = ("numpy", "polars", "torch", "transformers", "pillow")
    return record(args.out, "reading", settings=sizes, measured=measured, ratios=ratios, packages=packages)


if __name__ == "__main__":
    sys.exit(main())
