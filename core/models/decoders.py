"""The published decoders as transformers' own Llama and Qwen2: their sizes, and what they call their tensors.

LLaDA, LLaDA-V and ReDiff are Llamas, Dream is a Qwen2; all attend both ways.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import LlamaConfig, LlamaModel, PreTrainedConfig, PreTrainedModel, Qwen2Config, Qwen2Model

from core.errors import InputError
from core.models.checkpoint import NameOf
from core.models.pretrained import TiedHead

_LLADA_REQUIRED = {
    "block_type": "llama", "activation_type": "silu", "layer_norm_type": "rms", "rope": True, "alibi": False,
    "include_bias": False, "input_emb_norm": False, "attention_layer_norm": False, "scale_logits": False,
}  # fmt: skip
"""What a LLaDA config.json must say: the code around it knows more variants, which nobody published."""

_LLADA_NAMES = {
    "language.embed_tokens": "model.transformer.wte",
    "language.norm": "model.transformer.ln_f",
    "head": "model.transformer.ff_out",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ff_norm",
    "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj",
    "self_attn.o_proj": "attn_out",
    "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "ff_out",
}


@dataclass(frozen=True, kw_only=True)
class DecoderFamily:
    """A decoder's transformers configuration, its tensors' published names, and whether its logits are shifted."""

    config: PreTrainedConfig
    name_of: NameOf
    shifted: bool = False

    def build(self) -> tuple[PreTrainedModel, nn.Module]:
        """The language model and its head, without weights if the meta device is in force."""
        language = _MODELS[self.config.model_type](self.config)
        for layer in language.layers:
            layer.self_attn.is_causal = False
        if self.config.tie_word_embeddings:
            return language, TiedHead(language.embed_tokens)
        return language, nn.Linear(self.config.hidden_size, self.config.vocab_size, bias=False)


_MODELS = {"llama": LlamaModel, "qwen2": Qwen2Model}


def decoder_family(config: Mapping[str, Any]) -> DecoderFamily:
    """The family that a published config.json belongs to, by its model_type.

    Raises:
        InputError: unknown model_type, a size missing or sizes that contradict each other, an unpublished variant.
    """
    model_type = config["model_type"]
    if model_type not in _FAMILIES:
        raise InputError(f"no decoder is known for model_type {model_type!r}; known: {', '.join(sorted(_FAMILIES))}")
    try:
        return _FAMILIES[model_type](config)
    except KeyError as error:
        raise InputError(f"config.json of model_type {model_type!r} lacks {error}") from error
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise InputError(f"config.json of model_type {model_type!r}: {error}") from error


def _llada(config: Mapping[str, Any]) -> DecoderFamily:
    for key, expected in _LLADA_REQUIRED.items():
        if key in config and config[key] != expected:
            raise InputError(f"config.json: {key} = {config[key]!r} is not supported, {expected!r} is")
    vocabulary = config.get("embedding_size") or config["vocab_size"]
    made = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=config["d_model"],
        intermediate_size=config["mlp_hidden_size"],
        num_hidden_layers=config["n_layers"],
        num_attention_heads=config["n_heads"],
        num_key_value_heads=config.get("n_kv_heads") or config["n_heads"],
        max_position_embeddings=config["max_sequence_length"],
        rms_norm_eps=config["rms_norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": config["rope_theta"]},
        attention_bias=bool(config.get("include_qkv_bias")),
        tie_word_embeddings=bool(config.get("weight_tying")),
        **_COMMON,
    )
    return DecoderFamily(config=made, name_of=_llada_name)


def _llada_name(name: str) -> str:
    """E.g. language.layers.3.mlp.down_proj.weight -> model.transformer.blocks.3.ff_out.weight."""
    if match := re.fullmatch(r"language\.layers\.(\d+)\.(.+)\.(weight|bias)", name):
        return f"model.transformer.blocks.{match[1]}.{_LLADA_NAMES[match[2]]}.{match[3]}"
    module, _, kind = name.rpartition(".")
    return f"{_LLADA_NAMES[module]}.{kind}"


_COMMON: dict[str, Any] = {
    "attention_dropout": 0.0,  # a training step shall depend on its rows alone
    "pad_token_id": None,  # else the embedding of the padding, which is the end of text too, would not be trained
    "bos_token_id": None,
    "eos_token_id": None,
    "is_causal": False,
    "attn_implementation": "sdpa",
}


def _sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that Llama and Qwen2 share, from a config.json with transformers' own keys."""
    key = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    scaling = config.get(key) or {}
    if not isinstance(scaling, Mapping):
        example = '{"rope_type": "linear", "factor": 2.0}'
        raise InputError(f"config.json: {key} = {scaling!r} is not supported, an object as {example} is")
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    theta = config["rope_theta"] if "rope_theta" in config else scaling["rope_theta"]
    return {
        "vocab_size": config["vocab_size"],
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["intermediate_size"],
        "num_hidden_layers": config["num_hidden_layers"],
        "num_attention_heads": config["num_attention_heads"],
        "num_key_value_heads": config.get("num_key_value_heads") or config["num_attention_heads"],
        "hidden_act": config.get("hidden_act") or "silu",
        "max_position_embeddings": config["max_position_embeddings"],
        "rms_norm_eps": config["rms_norm_eps"],
        "rope_parameters": {**scaling, "rope_type": kind, "rope_theta": theta},
        "tie_word_embeddings": bool(config.get("tie_word_embeddings")),
        **_COMMON,
    }


def _llava_llada(config: Mapping[str, Any]) -> DecoderFamily:
    made = LlamaConfig(attention_bias=bool(config.get("attention_bias")), **_sizes(config))
    return DecoderFamily(config=made, name_of=_transformers_name)


def _dream(config: Mapping[str, Any]) -> DecoderFamily:
    if config.get("use_sliding_window"):
        raise InputError("config.json: use_sliding_window = true is not supported")
    return DecoderFamily(config=Qwen2Config(**_sizes(config)), name_of=_transformers_name, shifted=True)


def _transformers_name(name: str) -> str:
    """E.g. language.norm.weight -> model.norm.weight, head.weight -> lm_head.weight."""
    part, _, rest = name.partition(".")
    return f"{ {'language': 'model', 'head': 'lm_head'}[part] }.{rest}"


_FAMILIES = {"llada": _llada, "llava_llada": _llava_llada, "Dream": _dream}
