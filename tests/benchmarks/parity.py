"""How near our models and decodings are to what the published codes gave on the committed checkpoints.

python -m tests.benchmarks.parity --out tests/results/parity.json   writes the figures and prints them as a table
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from core.models.denoiser import load_denoiser
from tests.core.decoding.published_cases import (
    NAMES,
    all_cases,
    decode_case,
    outputs_of,
    prompts_of,
    settings_of,
)  # fmt: skip
from tests.core.models.checkpoints import DATA, cases, golden, published
from tests.core.models.test_published import TEXT_LOSSES, published_loss, visible_ids

COMMAND = "python -m tests.benchmarks.parity --out tests/results/parity.json"


def _error(ours: Tensor, theirs: np.ndarray) -> float:
    return float((ours - torch.from_numpy(theirs)).abs().max())


def _logits(model: Any, ids_BL: Tensor, features: Any = None) -> Tensor:
    hidden = model.hidden(ids_BL, valid_BL=torch.ones_like(ids_BL, dtype=torch.bool), features_BND=features)
    return model.logits(hidden)


def figures(name: str, model: Any) -> Iterator[dict[str, Any]]:
    """Largest errors of logits and image features."""
    arrays = golden(name)
    ids_BL = torch.from_numpy(arrays["text/input_ids"]).long()
    key = "text/logits_shifted" if "text/logits_shifted" in arrays else "text/logits"
    yield {"fixture": f"{name} text", "of": "logits", "max_error": _error(_logits(model, ids_BL), arrays[key])}
    for image in cases(name).get("images", ()):
        pixels = model.pixels([np.asarray(Image.open(DATA / name / f"image_{image}.png").convert("RGB"))])
        features, prefix = model.image_features(pixels), f"img/{image}"
        theirs = arrays[f"{prefix}/merged_image_features"]
        yield {"fixture": f"{name} {image}", "of": "features", "max_error": _error(features.of(0), theirs)}
        ids = torch.from_numpy(arrays[f"{prefix}/prompt_ids"]).long().reshape(1, -1)
        logits_BLV = _logits(model, ids, features)
        place = int((ids[0] == -200).nonzero()[0, 0])
        theirs = arrays[f"{prefix}/logits"].reshape(-1, logits_BLV.shape[2])
        behind = ids.shape[1] - place - 1
        text = np.concatenate([theirs[: place + 1], theirs[len(theirs) - behind :]])
        yield {"fixture": f"{name} {image}", "of": "logits", "max_error": _error(logits_BLV[0], text)}


def losses(model: Any) -> Iterator[dict[str, Any]]:
    """Relative errors of the training losses for the published draws."""
    for case in TEXT_LOSSES:
        arrays = golden("llada_v_tiny")
        ours = float(published_loss(model, case, _logits(model, visible_ids(arrays, case))))
        theirs = float(arrays[f"loss/{case}/loss_total"])
        yield {"fixture": f"llada_v_tiny {case}", "of": "loss (relative)", "max_error": abs(ours / theirs - 1)}


def decodings(models: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Whether the ids are equal, case by case, with the settings that a user would write."""
    for name, case in all_cases():
        settings = settings_of(name, case)
        ours = decode_case(models[name], name, case, settings)
        theirs = outputs_of(name, case, prompts_of(golden(name), case["prompt"]))
        if settings.stop:
            ours = [row[: len(ids)] for row, ids in zip(ours, theirs, strict=True)]
        yield {"fixture": name, "case": case["name"], "settings": settings.name, "equal": ours == theirs}


def table(found: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["| Fixture | Of | Largest error |", "| --- | --- | --- |"]
    lines += [f"| {row['fixture']} | {row['of']} | {row['max_error']:.1e} |" for row in found["errors"]]
    lines += ["", "| Fixture | Decodings | Equal ids |", "| --- | --- | --- |"]
    for name in NAMES:
        rows = [row for row in found["decodings"] if row["fixture"] == name]
        lines.append(f"| {name} | {len(rows)} | {sum(row['equal'] for row in rows)} |")
    return "\n".join(lines)


@torch.inference_mode()
def measure() -> dict[str, Any]:
    """All figures."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        models = {name: load_denoiser(published(Path(folder), name)) for name in NAMES}
        return {
            "command": COMMAND,
            "torch": torch.__version__,
            "errors": [
                *(row for name in NAMES for row in figures(name, models[name])),
                *losses(models["llada_v_tiny"]),
            ],
            "decodings": list(decodings(models)),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    out: Path | None = parser.parse_args().out
    found = measure()
    if out is not None:
        out.write_text(json.dumps(found, indent=1) + "\n")
    sys.stdout.write(table(found) + "\n")


if __name__ == "__main__":
    main()
