"""Which model is trained. Import-light: the command line reads this."""

from typing import Literal

from pydantic import Field

from core.settings import Settings

Dtype = Literal["auto", "fp32", "bf16", "fp16"]

PromptAttention = Literal["full", "prefix"]
"""full: every position sees every other. prefix: prompt and images see nothing of the response, which sees all."""


class ModelSettings(Settings):
    """A checkpoint of the user's, or a small model made anew."""

    checkpoint: str = ""
    """Folder of a checkpoint to start from; empty: a new small model with the sizes below."""
    prompt_attention: PromptAttention | None = None
    """prefix: prompt and images do not attend to the response, so decoding reads them once; in training and decoding
    alike. full: they do. null: what the checkpoint says; a new model: full."""
    system: str | None = None
    """System turn in front of every prompt, "" for none; null: that of the checkpoint. LLaDA-V's and ReDiff's is that
    of their published code."""
    response_length: int = Field(default=48, ge=2)
    """Tokens of a response, end-of-text fill included."""
    tokenizer: Literal["scenes", "bpe"] = "scenes"
    """scenes: one token a word of the scene world. bpe: byte-level, learned from the samples; reads any text."""
    vocab_size: int = Field(default=2048, ge=260)
    """bpe: largest vocabulary."""
    prompt_length: int = Field(default=8, ge=1)
    """Room for the prompt, in tokens."""
    hidden_size: int = Field(default=128, ge=8)
    """Width of the model."""
    layers: int = Field(default=4, ge=1)
    """Transformer blocks."""
    heads: int = Field(default=4, ge=1)
    """Attention heads a block."""
    mlp_ratio: int = Field(default=2, ge=1)
    """Width of the feed-forward layer over hidden_size."""
    image_height: int = Field(default=48, ge=8)
    """Images are resized to this height."""
    image_width: int = Field(default=48, ge=8)
    """Images are resized to this width."""
    patch_size: int = Field(default=16, ge=4)
    """Side of the square patches that an image is cut into."""
