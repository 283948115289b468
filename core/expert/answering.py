"""How the reference expert reads a chat completion request and words its answer; everything else is `ApiError`."""

import base64
import binascii
import io
import json
import time
import uuid
from typing import Any

from fastapi.responses import JSONResponse
from PIL import Image
from pydantic import BaseModel

from core.expert.estimate import image_tokens
from core.expert.noise import Noise, noise_of
from core.expert.pair_request import PairTask, read_pair_task
from core.expert.pair_rules import invent_by_rule
from core.expert.reask_request import ReaskTask, read_reask
from core.expert.request import Task, read_task
from core.expert.rules import revise_by_rule
from core.expert.settings import ReferenceSettings

_MAX_PIXELS = 64_000_000


class ChatRequest(BaseModel):
    """What is read of a chat completion request; its other fields are ignored."""

    model: str
    messages: list[dict[str, Any]]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    response_format: dict[str, Any] | None = None
    stream: bool = False


class ApiError(Exception):
    """An answer in OpenAI's error format."""

    def __init__(
        self, status: int, message: str, headers: dict[str, str] | None = None, *, param: str | None = None
    ) -> None:
        super().__init__(status, message)
        self.status, self.message, self.headers, self.param = status, message, headers, param

    def response(self) -> JSONResponse:
        """{"error": {"message", "type", "param", "code"}} with its HTTP status."""
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status, "invalid_request_error")
        kind = "server_error" if self.status >= 500 else kind
        error = {"message": self.message, "type": kind, "param": self.param, "code": None}
        return JSONResponse({"error": error}, self.status, self.headers)


def refuse(body: ChatRequest, settings: ReferenceSettings) -> None:
    """Raise ApiError for the first parameter of the request that the settings tell to refuse, in OpenAI's words."""
    form = (body.response_format or {}).get("type")
    for name in settings.refuses:
        if name == form:
            said = f"Invalid parameter: 'response_format' of type '{name}' is not supported with this model."
            raise ApiError(400, said, param="response_format")
        if getattr(body, name, None) is not None:
            raise ApiError(400, f"Unsupported parameter: '{name}' is not supported with this model.", param=name)


def asked_noise(asked: str, settings: ReferenceSettings) -> Noise:
    """How the model that is asked for differs from a flawless expert. Raises ApiError if it is not served."""
    noise = noise_of(asked, settings)
    if noise is None:
        others = "-errs-, -rewrites-, -resizes- and -complies-"
        known = f"{settings.model} and {settings.model}-omits-SHARE, with {others} alike"
        raise ApiError(404, f"no model {asked!r}; this server has {known}")
    return noise


def content_of(body: ChatRequest, noise: Noise) -> str:
    """The reply's text: the JSON of the schema if one was asked for, else `right` or a bare list."""
    task = _read_messages(body.messages)
    if isinstance(task, PairTask):
        return invent_by_rule(task).model_dump_json()
    if isinstance(task, ReaskTask):
        found = noise.apply_again(task)
    else:
        found = noise.apply(task, revise_by_rule(task.question, task.ground_truth, task.prediction))
    segments = [{"org": org, "target": target} for org, target in found]
    if (body.response_format or {}).get("type") in ("json_schema", "json_object"):
        return json.dumps({"segments": segments}, ensure_ascii=False)
    return json.dumps(segments, ensure_ascii=False) if segments else "right"


def _read_messages(messages: list[dict[str, Any]]) -> Task | ReaskTask | PairTask:
    """The task of the last user message. Its image is decoded as a model would, though the rules do not look at it."""
    content = next((message.get("content") for message in reversed(messages) if message.get("role") == "user"), None)
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise ApiError(400, "messages: expected a user message of text and image parts")
    for part in parts:
        if part.get("type") == "image_url":
            _decode_image(part.get("image_url"))
    texts = [part.get("text") for part in parts if part.get("type") == "text"]
    text = str(texts[0]) if len(texts) == 1 else ""
    try:
        return read_pair_task(text) or read_reask(text) or read_task(text)
    except ValueError as error:
        raise ApiError(400, f"messages: {error}") from error


def _decode_image(reference: Any) -> None:
    """Raises ApiError unless it is {"url": a base64 data URL of an image}; addresses are never fetched."""
    url = reference.get("url") if isinstance(reference, dict) else None
    head, _, data = url.partition(",") if isinstance(url, str) else ("", "", "")
    if not (head.startswith("data:image/") and head.endswith(";base64")):
        raise ApiError(400, "image_url: expected a data URL of a base64 image")
    try:
        image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
        if image.width * image.height > _MAX_PIXELS:
            raise ApiError(400, "image_url: the image is too large")
        image.load()
    except (binascii.Error, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ApiError(400, f"image_url: no readable image ({type(error).__name__})") from error


def completion(body: ChatRequest, content: str, fault: str | None) -> dict[str, Any]:
    """OpenAI's chat.completion. A token is counted as four chars, an image by its pixels."""
    limit = body.max_completion_tokens or body.max_tokens
    if fault == "malformed":
        content = f"I am sorry, I cannot say that as JSON: {content[: len(content) // 2].replace('{', '(')}"
    cut = len(content) // 2 if fault == "truncated" else 4 * limit if limit else len(content)
    finish = "length" if cut < len(content) or fault == "truncated" else "stop"
    content = content[:cut]
    prompt_tokens = sum(_tokens(part) for message in body.messages for part in _parts(message))
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": -(-len(content) // 4)}
    message = {"role": "assistant", "content": content, "refusal": None}
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body.model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}],
        "usage": {**usage, "total_tokens": sum(usage.values())},
    }


def _parts(message: dict[str, Any]) -> list[Any]:
    content = message.get("content")
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


def _tokens(part: Any) -> int:
    if part.get("type") == "image_url":
        return image_tokens(base64.b64decode(part["image_url"]["url"].partition(",")[2]))
    return -(-len(str(part.get("text") or "")) // 4)
