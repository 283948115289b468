"""Reading training rows back: the share of a training's time in which a step waits for its batch.

python -m tests.benchmarks.bench_reading --out tests/results/benchmarks/reading.json

The training loop itself, with batches made one step ahead as `redraft run` has them and with batches made when they are
asked for, in turn. No image is read twice. Cases:
text     paragraphs in responses of 128 tokens, a Llama-like decoder of 8 layers of 512;
scenes   pictures of 48 x 48 and the scene model at its defaults;
photos   JPEGs of 640 x 480 in LLaVA's tiles of 384 pixels, a small SigLIP and a decoder of 4 layers of 256: far less
         work a picture than with a real one, so real trainings wait less.
Fails if a step waits for more than 3 % of the time. The first batch, which nothing can hide, is left out of it.
"""

import argparse
import io
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import torch
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
from core.training.loop import Batches, train
from core.training.settings import TrainSettings
from core.worlds import scenes
from data_contracts import HallucinationPairs, TokenKind
from tests.benchmarks.paragraphs import large_tokenizer, samples_and_pairs
from tests.benchmarks.record import Ratio, record

TARGET = 3.0
VOCABULARY = 2048
_PLACEHOLDER = VOCABULARY - 1


@dataclass(frozen=True, kw_only=True)
class Case:
    """A training: its model, rows, images and batch size."""

    name: str
    model: Callable[[], TrainableDenoiser]
    frame: pl.DataFrame
    images: Mapping[str, bytes]
    batch_size: int


@dataclass
class Watched:
    """Batches, and the seconds that each call took."""

    batches: Batches
    seconds: list[float] = field(default_factory=list)

    def batch(self, step: int) -> Batch:
        started = time.perf_counter()
        batch = self.batches.batch(step)
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
    model = PretrainedDenoiser(
        language=language, head=head, vision=vision, layout=layout, tokenizer=large_tokenizer(VOCABULARY)
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
    rows = text_case().frame.head(2 * steps).with_columns(image_sha=pl.format("photo-{}", pl.int_range(pl.len())))
    first = {"input_ids": _PLACEHOLDER, "target_ids": _PLACEHOLDER, "kinds": int(TokenKind.PROMPT)}
    rows = rows.with_columns(
        pl.concat_list(pl.lit(value, dtype=rows.schema[name].inner), name).alias(name) for name, value in first.items()
    )
    images = {sha: _photo(index) for index, sha in enumerate(rows["image_sha"])}
    model = lambda: cast(TrainableDenoiser, decoder(hidden=256, layers=4, eyes=True))  # noqa: E731
    return Case(name="photos", model=model, frame=rows, images=images, batch_size=2)


def _photo(index: int) -> bytes:
    """A JPEG with the detail of a photograph: noise at every scale."""
    draws, pixels = rng("photo", index), np.zeros((480, 640, 3))
    for size in (4, 16, 64, 256):
        noise = draws.integers(0, 256, (size * 3 // 4, size, 3), dtype=np.uint8)
        pixels += np.asarray(Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC)) / 4
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def waits(case: Case, steps: int, threads: int, *, ahead: bool) -> tuple[float, float, float]:
    """Share of the time in which steps waited, seconds a step, and seconds a batch took when it was asked for."""
    model = case.model()
    batches = TrainingBatches(
        case.frame,
        model,
        lambda sha: decode(case.images[sha]),
        batch_size=case.batch_size,
        seed=0,
        objective=ObjectiveSettings(),
    )
    settings = TrainSettings(steps=steps, batch_size=case.batch_size, lr=1e-5, warmup=1, log_every=1)
    with Ahead(batches, steps=steps) as prepared:
        watched = Watched(prepared if ahead else batches)
        seconds = train(model, watched, settings, threads=threads).seconds - watched.seconds[0]
    waited = sum(watched.seconds[1:])
    return waited / seconds, seconds / steps, waited / (steps - 1)


def main() -> int:
    """Run, write the JSON, and return 0 if no step waits for long."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cases", nargs="+", default=["text", "scenes", "photos"])
    args = parser.parse_args()

    measured, ratios = {}, []
    for case in (text_case(), scene_case(args.steps), photo_case(args.steps)):
        if case.name not in args.cases:
            continue
        found = {ahead: [] for ahead in (True, False)}
        for _ in range(args.repeats):
            for ahead, runs in found.items():
                runs.append(waits(case, args.steps, args.threads, ahead=ahead))
        share, step_s, _ = np.median(found[True], axis=0)
        bare_share, bare_step_s, batch_s = np.median(found[False], axis=0)
        measured[case.name] = {
            "batch_size": case.batch_size,
            "milliseconds_a_step": round(1e3 * step_s, 2),
            "milliseconds_a_step_without_thread": round(1e3 * bare_step_s, 2),
            "milliseconds_a_batch": round(1e3 * batch_s, 2),
            "waiting_percent": round(100 * share, 3),
            "waiting_percent_without_thread": round(100 * bare_share, 3),
        }
        what = f"Training waits for its rows: {case.name}"
        ratios.append(Ratio(what=what, value=100 * share, bound=TARGET, kind="at most", unit="% of the time"))
    sizes = {"steps": args.steps, "repeats": args.repeats, "threads": args.threads}
    packages = ("numpy", "polars", "torch", "transformers", "pillow")
    return record(args.out, "reading", settings=sizes, measured=measured, ratios=ratios, packages=packages)


if __name__ == "__main__":
    sys.exit(main())
