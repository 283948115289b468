"""Published checkpoint folders: config.json and safetensors, in one file or sharded. Read into a model, and back.

A model is built on the meta device and its tensors are read one by one to where they shall be: no tensor is in memory
twice, and none is converted unless asked for. Pickled weights are refused: loading them can run code.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from core.errors import InputError, StoreError
from core.manifest import MANIFEST
from core.training.settings import CURVES_FILE

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_SHARD_BYTES = 5 * 10**9
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_KEPT_SUFFIXES = {".json", ".py", ".txt", ".jinja"}
_KEPT_BYTES = 2**20
_TOKENIZER_FILES = {
    "tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "spm.model",
    "sentencepiece.model", "sentencepiece.bpe.model", "bpe.codes", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja",
}  # fmt: skip
"""Kept however large they are."""
_STORES_OWN = {MANIFEST, CURVES_FILE}
"""What the store adds to the folder of a model that it holds: about that folder, not about the model."""
REBUILT = ("rotary_emb.inv_freq", "position_ids")
"""Ends of the names of buffers that old checkpoints stored and every model computes."""
_SHOWN = 3

NameOf = Callable[[str], str]
"""Name of a parameter here -> its name in the checkpoint."""

DeviceOf = Callable[[str], torch.device]
"""Name of a parameter here -> the device it belongs on."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A folder that was looked at: its config.json, and the file and shape of each tensor.

    `beside` are the folder's other small files and its tokenizer by relative path, kept so that a saved model is as
    complete as the published one (its code among them: it is carried, never run).
    """

    folder: Path
    config: dict[str, Any]
    files: dict[str, Path]
    shapes: dict[str, tuple[int, ...]]
    beside: dict[str, bytes]


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint folder, which must name a model_type.

    Raises:
        InputError: if there is none.
    """
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text())
        if not isinstance(config["model_type"], str):
            raise TypeError("model_type is no string")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder} is no checkpoint: config.json with a model_type is needed ({error!r})") from error
    return config


def open_checkpoint(folder: Path) -> Checkpoint:
    """Look at a folder: which tensors it has, and where.

    Raises:
        InputError: no config.json, no safetensors, a shard missing or damaged, pickled weights alone.
    """
    config = read_config(folder)
    files: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path in _weight_files(folder, config["model_type"]):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - no mapping
                    files[name] = path
                    shapes[name] = tuple(file.get_slice(name).get_shape())
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path} is no readable safetensors file, copy it anew: {error}") from error
    if promised := _promised(folder).keys() - files.keys():
        raise InputError(f"{folder}: {INDEX} promises tensors that no file holds: {listed(promised)}")
    return Checkpoint(folder=folder, config=config, files=files, shapes=shapes, beside=_beside(folder))


def refuse_pickles(folder: Path) -> None:
    """Raise InputError if the folder has pickled weights and no safetensors."""
    pickles = [path.name for pattern in _PICKLES for path in folder.glob(pattern)]
    if pickles and not any(folder.glob("*.safetensors")):
        raise InputError(
            f"{folder} holds pickled weights ({pickles[0]}), which can run code when they are loaded: convert them to "
            "safetensors where you trust them (load the state dict with weights_only=True, save it with safetensors)"
        )


def _weight_files(folder: Path, model_type: str) -> list[Path]:
    names = sorted(set(_promised(folder).values())) or [WEIGHTS]
    for name in names:
        if not (folder / name).is_file():
            refuse_pickles(folder)
            raise InputError(
                f"{folder / name} is missing: this {model_type} checkpoint is incomplete, download it again"
            )
    return [folder / name for name in names]


def _promised(folder: Path) -> dict[str, str]:
    """Tensor -> file, as the index of a sharded checkpoint says; empty without an index."""
    index = folder / INDEX
    if not index.is_file():
        return {}
    try:
        promised: Any = json.loads(index.read_text())["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{index} is damaged ({error!r}): download it again") from error
    if not isinstance(promised, dict) or not all(isinstance(name, str) for name in promised.values()):
        raise InputError(
            f"{index} is damaged: weight_map must give the name of a file for each tensor. Download it again"
        )
    if strange := [name for name in promised.values() if Path(name).name != name]:
        raise InputError(f"{index} points outside of its folder: {strange[0]!r}")
    return promised


def _beside(folder: Path) -> dict[str, bytes]:
    skipped = {CONFIG, INDEX} | _STORES_OWN
    files = [path for pattern in ("*", "*/config.json") for path in sorted(folder.glob(pattern)) if path.is_file()]
    return {
        name: path.read_bytes()
        for path in files
        if (name := path.relative_to(folder).as_posix()) not in skipped
        if name in _TOKENIZER_FILES or (_is_kept(path) and path.stat().st_size <= _KEPT_BYTES)
    }


def _is_kept(path: Path) -> bool:
    return path.name in ("README.md", "LICENSE") or path.suffix in _KEPT_SUFFIXES


def fill(
    module: nn.Module, checkpoint: Checkpoint, *, name_of: NameOf, device_of: DeviceOf, dtype: torch.dtype | None
) -> None:
    """Read every parameter of `module` (on the meta device) from the checkpoint, which must hold no other tensors.

    Args:
        module: gets real parameters, and its computed buffers.
        checkpoint: where from.
        name_of: says what a parameter is called there.
        device_of: says where a parameter belongs.
        dtype: converts each tensor as it is read; None keeps the checkpoint's own.

    Raises:
        InputError: tensors missing, unexpected, of another shape, not of floating point, or not finite.
    """
    wanted = {name: name_of(name) for name, _ in module.named_parameters()}
    _compare(module, checkpoint, wanted)
    for name, published in wanted.items():
        # a file opened anew for each tensor: the pages that are mapped stay mapped as long as a file is open
        with safe_open(checkpoint.files[published], framework="pt") as file:
            read = file.get_tensor(published)
            # copied: mapped pages are neither aligned for fast kernels nor safe from whoever writes the file
            tensor = read.to(device_of(name), dtype or read.dtype, copy=True)
        check_values(checkpoint.folder, published, tensor)
        owner, _, attribute = name.rpartition(".")
        trained = module.get_parameter(name).requires_grad
        setattr(module.get_submodule(owner), attribute, nn.Parameter(tensor, requires_grad=trained))
    compute_buffers(module, device_of)


def _compare(module: nn.Module, checkpoint: Checkpoint, wanted: Mapping[str, str]) -> None:
    unexpected = {name for name in checkpoint.files.keys() - wanted.values() if not name.endswith(REBUILT)}
    missing = [published for published in wanted.values() if published not in checkpoint.files]
    said = []
    if missing:
        said.append(f"missing {listed(missing)}")
    if unexpected:
        said.append(f"unexpected {listed(unexpected)}")
    if said:
        raise InputError(
            f"{checkpoint.folder} does not hold the tensors that its config.json describes: {'; '.join(said)}. "
            "Is the download complete, and the config.json its own?"
        )
    wrong = [
        f"{published} is {list(checkpoint.shapes[published])} instead of {list(module.get_parameter(name).shape)}"
        for name, published in wanted.items()
        if checkpoint.shapes[published] != tuple(module.get_parameter(name).shape)
    ]
    if wrong:
        raise InputError(f"{checkpoint.folder}: sizes differ from those in config.json: {listed(wrong, ordered=True)}")


def check_values(folder: Path, name: str, tensor: Tensor) -> None:
    """Raise InputError if a weight is no floating point number, NaN or infinite."""
    if not tensor.is_floating_point():
        raise InputError(f"{folder}: {name} is of {tensor.dtype}: quantised checkpoints cannot be trained, use bf16")
    if not tensor.is_meta and not bool(
        torch.isfinite(tensor.sum(dtype=torch.float32))
    ):  # a sum makes no second tensor, isfinite would
        raise InputError(f"{folder}: {name} holds NaN or infinite values: take an earlier checkpoint")


def compute_buffers(module: nn.Module, device_of: DeviceOf) -> None:
    """Make anew what a module built on the meta device computes in its constructor and does not store."""
    for path, part in module.named_modules():
        names = [name for name in part._non_persistent_buffers_set if part.get_buffer(name).is_meta]
        if names:
            made = type(part)(part.config)  # transformers' modules keep their config
            for name in names:
                part.register_buffer(name, made.get_buffer(name).to(device_of(f"{path}.{name}")), persistent=False)


def listed(names: Iterable[str], *, ordered: bool = False) -> str:
    """The first few names, and how many more there are."""
    found = list(names) if ordered else sorted(names)
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more


def write_checkpoint(
    folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any], beside: Mapping[str, bytes]
) -> None:
    """Write tensors under their published names, config.json and the files beside it. One file up to 5 GB, else shards.

    Each file is written under another name and moved into place: a model whose weights are read from the same folder
    stays whole.

    Raises:
        StoreError: if the disk is full or not writable.
    """
    shards = _shards(tensors)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_files(folder, beside)
        weight_map: dict[str, str] = {}
        for number, names in enumerate(shards, start=1):
            file = WEIGHTS if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            part = {name: tensors[name].detach().cpu().contiguous() for name in names}
            save_file(part, folder / f".{file}", metadata={"format": "pt"})
            (folder / f".{file}").replace(folder / file)
            weight_map |= dict.fromkeys(names, file)
        for old in set(folder.glob("model*.safetensors")) - {folder / file for file in weight_map.values()}:
            old.unlink()
        (folder / INDEX).unlink(missing_ok=True)
        if len(shards) > 1:
            size = sum(tensor.nbytes for tensor in tensors.values())
            index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
            _replace(folder / INDEX, json.dumps(index, indent=2).encode())
        _replace(folder / CONFIG, (json.dumps(config, indent=2) + "\n").encode())
    except (OSError, SafetensorError) as error:
        raise StoreError(f"checkpoint {folder} could not be written: {error}") from error


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write small files by relative path, each at once."""
    for path, data in files.items():
        _replace(folder / path, data)


def _shards(tensors: Mapping[str, Tensor]) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if size + tensor.nbytes > _SHARD_BYTES and shards[-1]:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    return shards


def _replace(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}")
    draft.write_bytes(data)
    draft.replace(path)
