"""What a request may take at most, before anybody has counted: for budgets and for limits of tokens a minute.

Text counts a token for every three bytes of its JSON: English has four, and a Chinese character is three. An image
counts 85 tokens and one more for every 750 pixels. The reply counts as long as it may get.
"""

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from core.expert.settings import ExpertSettings

_BYTES_A_TOKEN = 3
_IMAGE_TOKENS = 85
_PIXELS_A_TOKEN = 750


@dataclass(frozen=True, kw_only=True)
class Use:
    """What requests take, or took."""

    requests: int = 0
    tokens: int = 0
    cost_usd: float = 0.0

    def __add__(self, other: "Use") -> "Use":
        return Use(
            requests=self.requests + other.requests,
            tokens=self.tokens + other.tokens,
            cost_usd=self.cost_usd + other.cost_usd,
        )

    def __sub__(self, other: "Use") -> "Use":
        return Use(
            requests=self.requests - other.requests,
            tokens=self.tokens - other.tokens,
            cost_usd=self.cost_usd - other.cost_usd,
        )

    @staticmethod
    def total(uses: Sequence["Use"]) -> "Use":
        """All of them together."""
        return Use(
            requests=sum(use.requests for use in uses),
            tokens=sum(use.tokens for use in uses),
            cost_usd=math.fsum(use.cost_usd for use in uses),
        )


def most_of(settings: ExpertSettings, body: dict[str, Any], image: bytes | None) -> Use:
    """The most that the request with this body and image takes; costs nothing where a price is not known."""
    text = {**body, "messages": [_without_image(message) for message in body["messages"]]}
    prompt = math.ceil(len(json.dumps(text, ensure_ascii=False).encode()) / _BYTES_A_TOKEN)
    prompt += image_tokens(image) if image is not None else 0
    cost = cost_of(settings, prompt, settings.max_tokens)
    return Use(requests=1, tokens=prompt + settings.max_tokens, cost_usd=cost or 0.0)


def image_tokens(image: bytes) -> int:
    """Tokens of an encoded image, from its header; the least that there is for what is none."""
    try:
        with Image.open(io.BytesIO(image)) as header:
            return _IMAGE_TOKENS + math.ceil(header.width * header.height / _PIXELS_A_TOKEN)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return _IMAGE_TOKENS


def cost_of(settings: ExpertSettings, prompt_tokens: int | None, completion_tokens: int | None) -> float | None:
    """US dollars, or None if a price or the usage is unknown."""
    if settings.price_in is None or settings.price_out is None or prompt_tokens is None or completion_tokens is None:
        return None
    return (settings.price_in * prompt_tokens + settings.price_out * completion_tokens) / 1e6


def _without_image(message: dict[str, Any]) -> dict[str, Any]:
    content = message["content"]
    if isinstance(content, str):
        return message
    return {**message, "content": [part for part in content if part["type"] != "image_url"]}
