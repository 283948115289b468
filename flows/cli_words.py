"""The words of a command line before they are read: short forms, and the configuration if none is named.

Import-light: --help answers at once.
"""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

_LENGTH = ("--model.response_length",)
_SHORT = {
    "--data": ("--data.source", "auto", "--data.path"),
    "--images": ("--data.images",),
    "--model": ("--model.checkpoint",),
    "--device": ("--compute.devices",),
    "--dtype": ("--draft.dtype",),
    # what the published codes call it
    **dict.fromkeys(("--gen_length", "--gen-length", "--max_new_tokens", "--max-new-tokens"), _LENGTH),
}


def expanded(tokens: tuple[str, ...]) -> list[str]:
    """The tokens with the short forms written out, also in `--name=value`."""
    written: list[str] = []
    for token in tokens:
        name, equals, value = token.partition("=")
        written += [*_SHORT[name], *([value] if equals else [])] if name in _SHORT else [token]
    return written


def preset(tokens: Sequence[str]) -> str:
    """What a published model drafts as in: the preset `checkpoint`. All else has its scenes."""
    words = [part for word in expanded(tuple(tokens)) for part in word.split("=", 1)]
    named = [Path(value) for name, value in pairwise(words) if name == "--model.checkpoint"]
    published = any(_model_type(folder) not in (None, "scene_denoiser") for folder in named)
    return "checkpoint" if published and words[0] == "draft" else "scenes"


def _model_type(folder: Path) -> str | None:
    """As config.json of a checkpoint has it; None if there is none."""
    try:
        found = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return None
    return found.get("model_type") if isinstance(found, dict) else None
