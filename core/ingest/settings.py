"""Settings of ingestion. Import-light: the command line reads them before it needs polars."""

from typing import Literal, Self

from pydantic import Field, model_validator

from core.settings import Settings

FormatName = Literal[
    "auto", "llava", "sharegpt", "messages", "vicrit", "rediff", "generations", "coco", "imagefolder", "parquet"
]  # fmt: skip
ExportName = Literal["rediff", "llava", "vicrit", "parquet", "hf"]
MAX_PIXELS = 50_000_000
MAX_BYTES = 64 * 2**20
CONTROL_TOKENS = (
    "<image>", "[MASK]", "[PAD]", "[EOS]", "[BOS]", "[UNK]", "[CLS]", "[SEP]", "[gMASK]",
    "<s>", "</s>", "<pad>", "<unk>", "<mask>", "<bos>", "<eos>",
    "<|mdm_mask|>", "<|mask|>", "<|endoftext|>", "<|startoftext|>", "<|begin_of_text|>", "<|end_of_text|>",
    "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|im_start|>", "<|im_end|>",
    "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
)  # fmt: skip


class IngestSettings(Settings):
    """How rows become samples."""

    train: float = Field(default=0.9, ge=0.0, le=1.0)
    """Share of the images that go to the train split."""
    dev: float = Field(default=0.05, ge=0.0, le=1.0)
    """Share of the images that go to the dev split; what train and dev leave is test."""
    text_only: bool = False
    """Accept rows that name no image; and where no image folder is given, leave out the images that rows name."""
    default_prompt: str = "Describe the image."
    """Prompt of rows whose prompt is nothing but the image placeholder; empty: such rows are rejected."""
    max_chars: int = Field(default=20_000, ge=1)
    """Longest prompt or reference, in characters."""
    control_tokens: tuple[str, ...] = CONTROL_TOKENS
    """A text that contains one of these is rejected: a tokenizer would read it as a control token."""
    max_pixels: int = Field(default=MAX_PIXELS, ge=1)
    """Largest image, in pixels."""
    max_bytes: int = Field(default=MAX_BYTES, ge=1)
    """Largest image file, in bytes."""
    batch_rows: int = Field(default=8192, ge=1)
    """Rows in a batch of the stream."""

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        if self.train + self.dev > 1.0 + 1e-9:
            raise ValueError(f"train + dev = {self.train + self.dev:g}, more than 1")
        return self
