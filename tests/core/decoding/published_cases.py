"""The recorded decodings of the published codes, each as settings of ours."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from core.decoding.schedule import OriginSchedule
from core.decoding.settings import DecodeSettings
from core.decoding.state import View
from core.decoding.strategies import strategies
from tests.core.models.checkpoints import DATA, cases, golden

NAMES = ("llada_v_tiny", "llada_tiny", "dream_tiny")
SUPPRESSED = "<|startoftext|>,<|endoftext|>,<|start_header_id|>,<|end_header_id|>"
"""What LLaDA-V's decoder never writes: the end of text and three marks of the chat."""
PUBLISHED = {"softmax": "all", "grid_bits": 24}
"""What the published codes leave out: our rules about the mask, and our grid."""


@dataclass(frozen=True, kw_only=True)
class RecordedDraws:
    """The numbers that torch.rand gave the published code, one for each mask in row-major order."""

    steps: tuple[np.ndarray, ...]

    def of(self, view: View) -> Tensor:
        drawn = torch.from_numpy(self.steps[view.step.index]).double()
        return torch.ones(view.masked_BL.shape, dtype=torch.float64).masked_scatter(view.masked_BL, drawn)


def all_cases() -> list[tuple[str, dict[str, Any]]]:
    """(checkpoint, case)."""
    return [(name, case) for name in NAMES for case in cases(name)["decode_cases"]]


def settings_of(name: str, case: dict[str, Any]) -> DecodeSettings:
    """The user's settings for a case."""
    return {"llada_v_tiny": _llada_v, "llada_tiny": _llada, "dream_tiny": _dream}[name](case)


def _llada_v(case: dict[str, Any]) -> DecodeSettings:
    params = case["params"]
    words = params.get("token_map", {})
    options: dict[str, Any] = {"suppress": SUPPRESSED}
    if params["revise"]:
        options |= {"start": params.get("revise_start", 1.0), "topk": params.get("revise_topk", 1.0)}
    if "stopping_criteria" in params:
        options["stop"] = [token for word in params["stopping_criteria"] for token in words[word]]
    if "generation_suffix" in params:
        options["suffix"] = words[params["generation_suffix"]]
    if case["name"] == "maskpred_rev_st8":
        options["predict_mask"] = True
    return DecodeSettings(
        steps=params["steps"],
        block_length=params["block_length"],
        policy="refine" if params["revise"] else "freeze",
        cfg_scale=params.get("cfg_scale", 0.0),
        beginning=params.get("fake_ans", ()),
        **PUBLISHED | options,
    )


def _llada(case: dict[str, Any]) -> DecodeSettings:
    params = case["params"]
    dllm = case["kind"] == "dllm_MDLMSampler"
    return DecodeSettings(
        steps=params["steps"],
        block_length=params["block_size" if dllm else "block_length"],
        policy="freeze",
        schedule="linear" if dllm else "even",
        cfg_scale=params.get("cfg_scale", case.get("cfg_scale", 0.0)),
        suppress=params.get("suppress_tokens", ()),
        late=params.get("begin_suppress_tokens", ()),
        **PUBLISHED,
    )


def _dream(case: dict[str, Any]) -> DecodeSettings:
    params = case["params"]
    confidence = {"maskgit_plus": "probability", "topk_margin": "margin", "entropy": "entropy"}
    options: dict[str, Any] = {"schedule": "origin"}
    if params["alg"] != "origin":
        options = {"schedule": "dream", "confidence": confidence[params["alg"]]}
    return DecodeSettings(steps=params["steps"], policy="freeze", **PUBLISHED | options)


def prompts_of(arrays: dict[str, np.ndarray], name: str) -> list[list[int]]:
    """Without their padding on the left."""
    if name == "ragged":
        return [arrays[f"prompt/ragged_{index}"].tolist() for index in range(3)]
    ids = np.atleast_2d(arrays[f"prompt/{name}"])
    valid = arrays.get(f"prompt/{name}_mask", np.ones_like(ids)).astype(bool)
    return [row[keep].tolist() for row, keep in zip(ids, valid, strict=True)]


def outputs_of(name: str, case: dict[str, Any], prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """The published responses; a stopped one ends there."""
    output = np.atleast_2d(golden(name)[f"decode/{case['name']}/output"]).tolist()
    if case.get("kind") == "dllm_MDLMSampler":
        length = case["params"]["max_new_tokens"]
        return [row[len(prompt) : len(prompt) + length] for row, prompt in zip(output, prompts, strict=True)]
    return output


def features_of(model: Any, case: dict[str, Any]) -> Any:
    """What the model sees of the case's image."""
    if not case.get("image"):
        return None
    image = np.asarray(Image.open(DATA / "llada_v_tiny" / f"image_{case['image']}.png").convert("RGB"))
    return model.image_features(model.pixels([image]))


def decode_case(model: Any, name: str, case: dict[str, Any], settings: DecodeSettings) -> list[list[int]]:
    """Our responses, whole."""
    arrays, params = golden(name), case["params"]
    chosen = strategies(settings, model)
    if isinstance(chosen.schedule, OriginSchedule):
        sizes = arrays[f"decode/{case['name']}/rand_sizes"]
        draws = np.split(arrays[f"decode/{case['name']}/rand_flat"], np.cumsum(sizes)[:-1])
        chosen = replace(chosen, schedule=replace(chosen.schedule, draws=RecordedDraws(steps=tuple(draws))))
    length = params["gen_length" if "gen_length" in params else "max_new_tokens"] + len(chosen.suffix)
    canvas = chosen.canvas(model, prompts_of(arrays, case["prompt"]), response_length=length)
    decoded = chosen.decode(
        chosen.reader(model, features_of(model, case), response_length=length), canvas, response_length=length
    )
    return decoded.token_ids_BR.tolist()
