"""Ingestion: rows a second without images, images a second, peak memory; beside `datasets.load_dataset` + `map`.

python -m tests.benchmarks.bench_ingest --out tests/results/benchmarks/ingest.json [--rows 1000000] [--images 1000]

Every measurement is a process of its own. All of them read the same JSON array in LLaVA format, check it the same way
(conversation, control tokens, length, duplicates, split by hash) and write Parquet. The images are photo-like noise of
640x480, as JPEG, each of them different: they are decoded, hashed and stored.
"""

import argparse
import io
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

_WORDS = [
    "a",
    "man",
    "woman",
    "dog",
    "red",
    "blue",
    "bus",
    "train",
    "table",
    "with",
    "on",
    "of",
    "in",
    "standing",
    "holding",
    "large",
    "two",
    "people",
    "tree",
    "white",
    "pizza",
]


def write_rows(path: Path, count: int) -> None:
    """A LLaVA JSON array of `count` captions of about 40 words."""
    draw = random.Random(0)
    with path.open("w") as file:
        for row in range(count):
            caption = f"{' '.join(draw.choices(_WORDS, k=40))} {row}."
            turns = [{"from": "human", "value": "Please describe the image."}, {"from": "gpt", "value": caption}]
            file.write(("[" if row == 0 else ",\n") + json.dumps({"id": row, "conversations": turns}))
        file.write("]")


def write_images(folder: Path, rows: Path, count: int) -> None:
    """`count` different photo-like JPEGs of 640x480 and a LLaVA file that names each once."""
    random_ = np.random.default_rng(0)
    records: list[dict[str, Any]] = []
    for index in range(count):
        coarse = random_.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        photo = Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC)
        grain = Image.fromarray(random_.integers(0, 256, (480, 640, 3), dtype=np.uint8))
        data = io.BytesIO()
        Image.blend(photo, grain.filter(ImageFilter.GaussianBlur(1)), 0.25).save(data, "JPEG", quality=90)
        (folder / f"{index}.jpg").write_bytes(data.getvalue())
        turns = [{"from": "human", "value": "<image>\nDescribe."}, {"from": "gpt", "value": f"photo {index}"}]
        records.append({"id": index, "image": f"{index}.jpg", "conversations": turns})
    rows.write_text(json.dumps(records))


def redraft(rows: Path, images: str, folder: Path) -> int:
    """Redraft's ingestion into a store; returns the accepted rows."""
    from core.claims import Claims, open_database
    from core.ingest.ahead import read_rows
    from core.ingest.notebook import Notebook
    from core.ingest.samples import Ingestor
    from core.ingest.settings import IngestSettings
    from core.ingest.sources import image_source
    from core.ingest.writing import write_ingested
    from core.stage import Output, Stage, run_stage
    from core.store import LocalStore, put_image

    settings, store = IngestSettings(text_only=not images), LocalStore(folder / "store")

    def compute(output: Output) -> None:
        ingestor = Ingestor(
            images=image_source(images),
            put_image=lambda data: put_image(store, data),
            settings=settings,
            notebook=Notebook(output.work / "notebook.db"),
        )
        write_ingested(output, ingestor.batches(read_rows("llava", rows, threads=2)))

    claims = Claims(open_database(f"sqlite:///{folder / 'state.db'}"))
    stage = Stage(name="ingest", version=1, config=settings)
    return run_stage(store, claims, stage, compute, work_root=folder / "work").manifest.counts.ok


def hub_datasets(rows: Path, processes: int, folder: Path) -> int:
    """The same checks with Hugging Face datasets; returns the accepted rows."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache"), "HF_HOME": str(folder / "home")}
    import datasets

    from core.ingest.samples import split_of
    from core.ingest.settings import IngestSettings

    datasets.disable_progress_bars()
    settings = IngestSettings()

    def check(row: dict[str, Any], index: int) -> dict[str, Any]:
        import hashlib

        human, gpt = row["conversations"]
        prompt, reference = human["value"].replace("<image>", "").strip(), gpt["value"].strip()
        good = (
            human["from"] == "human"
            and gpt["from"] == "gpt"
            and all(0 < len(text) <= settings.max_chars for text in (prompt, reference))
            and not any(token in text for text in (prompt, reference) for token in settings.control_tokens)
        )
        digest = hashlib.blake2b("\x1f".join(("", prompt, reference)).encode(), digest_size=16).hexdigest()
        return {
            "sample_id": digest,
            "prompt": prompt,
            "reference": reference,
            "split": split_of(prompt, settings),
            "source": f"{rows.name}:{index}",
            "good": good,
        }

    loaded = datasets.load_dataset("json", data_files=str(rows), split="train")
    many = processes if processes > 1 else None
    mapped = loaded.map(check, with_indices=True, remove_columns=loaded.column_names, num_proc=many)
    seen: set[str] = set()

    def fresh(row: dict[str, Any]) -> bool:
        return bool(row["good"] and not (row["sample_id"] in seen or seen.add(row["sample_id"])))

    kept = mapped.filter(fresh)
    kept.to_parquet(str(folder / "samples.parquet"))
    return int(kept.num_rows)


def child(kind: str, rows: Path, images: str, folder: Path) -> None:
    """One measurement, printed as JSON."""
    measured: dict[str, Callable[[], int]] = {
        "redraft": lambda: redraft(rows, images, folder),
        "datasets": lambda: hub_datasets(rows, 1, folder),
        "datasets, 2 processes": lambda: hub_datasets(rows, 2, folder),
    }
    started = time.perf_counter()
    ok = measured[kind]()
    seconds = time.perf_counter() - started
    sizes = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    sys.stdout.write(json.dumps({"ok": ok, "seconds": round(seconds, 2), "peak_mb": round(sum(sizes) / 1024)}) + "\n")


def measure(kind: str, rows: Path, images: str = "") -> dict[str, Any]:
    """`child` in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.benchmarks.bench_ingest", "--child", kind, str(rows), images, folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found = json.loads(done.stdout.splitlines()[-1])
    return {"what": kind, **found, "per_second": round(found["ok"] / found["seconds"])}


def main() -> int:
    """Run, write the JSON, and return 0 if the targets are reached."""
    if sys.argv[1:2] == ["--child"]:
        kind, rows, images, folder = sys.argv[2:]
        child(kind, Path(rows), images, Path(folder))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--compared", type=int, default=200_000, help="rows of the comparison")
    parser.add_argument("--images", type=int, default=2000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        write_rows(folder / "many.json", args.rows)
        write_rows(folder / "some.json", args.compared)
        write_images(folder / "images", folder / "photos.json", args.images)
        many = measure("redraft", folder / "many.json")
        photos = measure("redraft", folder / "photos.json", str(folder / "images"))
        kinds = ("redraft", "datasets", "datasets, 2 processes")
        compared = [measure(kind, folder / "some.json") for kind in kinds]
    ratios = {row["what"]: round(compared[0]["per_second"] / row["per_second"], 2) for row in compared[1:]}
    result = {
        "benchmark": "ingest",
        "command": "python -m tests.benchmarks.bench_ingest " + " ".join(sys.argv[1:]),
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), "datasets": version("datasets"), "pillow": version("pillow")},
        "text": many,
        "images": photos,
        "compared": compared,
        "times_as_fast_as": ratios,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    fast = many["per_second"] >= 20_000 and photos["per_second"] >= 300 and min(ratios.values()) >= 3
    return 0 if fast and many["peak_mb"] < 1000 else 1


if __name__ == "__main__":
    sys.exit(main())
