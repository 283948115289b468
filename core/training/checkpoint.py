"""Atomic checkpoints of a training that is under way: safetensors and JSON, never pickles.

`<folder>/step-00000200/` holds model.safetensors, optimizer.safetensors and, with their sha256, state.json. A folder
of that name is complete: it is written under another name, synced and renamed. Whatever does not verify is skipped.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.errors import StoreError

_KEPT = 2  # the newest, and the one before in case the newest was damaged
_TENSOR_FILES = ("model", "optimizer")


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """What a training needs to go on exactly. `step` updates are done; `about` is whatever JSON the caller gave.

    Mappings in it keep their order.
    """

    step: int
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    about: Mapping[str, Any]


def save_state(folder: Path, state: TrainingState) -> Path:
    """Write `state` below `folder`, drop all but the newest two, return the new checkpoint's path.

    Raises:
        StoreError: if the disk is full or not writable; what was there before stays.
    """
    final = folder / f"step-{state.step:08d}"
    draft = folder / f".writing-{final.name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        digests = {}
        for name, tensors in zip(_TENSOR_FILES, (state.model, state.optimizer), strict=True):
            path = draft / f"{name}.safetensors"
            save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, path)
            digests[name] = _digest(path)
            _sync(path)
        record = {"step": state.step, "about": dict(state.about), "sha256": digests}
        (draft / "state.json").write_text(json.dumps(record, indent=1))
        _sync(draft / "state.json")
        _sync(draft)
        shutil.rmtree(final, ignore_errors=True)
        draft.rename(final)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise StoreError(f"checkpoint {final} could not be written: {error}") from error
    for old in _checkpoints(folder)[_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def load_latest(folder: Path) -> TrainingState | None:
    """The newest checkpoint below `folder` that verifies; None if there is none."""
    for path in _checkpoints(folder):
        try:
            record = json.loads((path / "state.json").read_text())
            files = [path / f"{name}.safetensors" for name in _TENSOR_FILES]
            if [_digest(file) for file in files] != [record["sha256"][name] for name in _TENSOR_FILES]:
                continue
            model, optimizer = (load_file(file) for file in files)
            return TrainingState(step=record["step"], model=model, optimizer=optimizer, about=record["about"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            continue
    return None


def _checkpoints(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted(folder.glob("step-" + "[0-9]" * 8), reverse=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
