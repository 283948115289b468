"""What the expert is asked: chat messages, the schema of the reply, and the key under which it is never paid twice.

The user message is an image (base64 data URL) and one JSON object with the question, the reference answer and the
prediction. JSON, so that no draft can imitate another field: quotes and line breaks in it are escaped.
"""

import base64
import hashlib
import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from core.errors import ConfigError
from core.expert.settings import ExpertSettings

_MAGIC = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif", b"RIFF": "image/webp"}
_IMAGE = "image"
_QUOTED_IMAGE = b'"url":"image"'


class Task(BaseModel):
    """The text of the user message."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    question: str
    ground_truth: str
    prediction: str


class SegmentModel(BaseModel):
    """One correction, as the reply spells it."""

    model_config = ConfigDict(extra="forbid")

    org: str
    target: str


class AnswerModel(BaseModel):
    """The whole reply; no segments: the prediction is right."""

    model_config = ConfigDict(extra="forbid")

    segments: list[SegmentModel]


@dataclass(frozen=True)
class Prompt:
    """A version of the instructions; `version` is its name and the first 12 digits of its sha256."""

    version: str
    text: str


@dataclass(frozen=True, kw_only=True)
class ExpertRequest:
    """One request, without the image's bytes. `key`: sha256 over everything that can change the answer.

    `task` is the text of the user message: a Task, or what another prompt asks about.
    """

    key: str
    image_sha: str | None
    prompt_version: str
    instructions: str
    task: BaseModel
    parameters: dict[str, Any]

    def body(self, image: bytes | None) -> dict[str, Any]:
        """The arguments of a chat completion; `image` are the encoded bytes that `image_sha` names."""
        return self._body(data_url(image) if image is not None else None)

    def outline(self) -> dict[str, Any]:
        """`body` with a placeholder for the image, which `encode` puts in."""
        return self._body(_IMAGE if self.image_sha else None)

    def _body(self, url: str | None) -> dict[str, Any]:
        return {"messages": _messages(self.instructions, self.task, url), **self.parameters}


@cache
def load_prompt(name: str) -> Prompt:
    """The instructions called `name`, e.g. "revise-v1" -> version "revise-v1@0123456789ab".

    Raises:
        ConfigError: if there is no such file; it lists those that there are.
    """
    folder = files("core.expert") / "prompts"
    known = sorted(entry.name.removesuffix(".md") for entry in folder.iterdir() if entry.name.endswith(".md"))
    if name not in known:
        raise ConfigError(f"expert.prompt = {name!r}: no such version; there are {', '.join(known)}")
    text = (folder / f"{name}.md").read_text(encoding="utf-8").strip()
    return Prompt(f"{name}@{hashlib.sha256(text.encode()).hexdigest()[:12]}", text)


def build_request(
    settings: ExpertSettings, *, question: str, reference: str, prediction: str, image_sha: str | None
) -> ExpertRequest:
    """The request for one draft. The endpoint's address is no part of its key, nor is how often it may be tried."""
    task = Task(question=question, ground_truth=reference, prediction=prediction)
    return make_request(settings, settings.prompt, task, name="revision", answer=AnswerModel, image_sha=image_sha)


def make_request(
    settings: ExpertSettings,
    prompt_name: str,
    task: BaseModel,
    *,
    name: str,
    answer: type[BaseModel],
    image_sha: str | None,
) -> ExpertRequest:
    """A request with the instructions called `prompt_name`; the reply is to be an `answer`, a schema called `name`."""
    prompt = load_prompt(prompt_name)
    parameters = _parameters(settings, name, answer)
    placeholder = f"sha256:{image_sha}" if image_sha else None
    identity: dict[str, Any] = {
        "messages": _messages(prompt.text, task, placeholder),
        "parameters": parameters,
        "prompt": prompt.version,
    }
    if settings.structured == "auto":  # the endpoint decides what becomes of the schema
        identity["structured"] = "auto"
    limits = {"max_side": settings.image_max_side, "max_bytes": settings.image_max_bytes}
    if image_sha and any(limits.values()):  # the expert may see another picture than the one that the sha names
        identity["image"] = limits
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return ExpertRequest(
        key=hashlib.sha256(canonical.encode()).hexdigest(),
        image_sha=image_sha,
        prompt_version=prompt.version,
        instructions=prompt.text,
        task=task,
        parameters=parameters,
    )


def read_task(text: str) -> Task:
    """The inverse of the user message's text.

    Raises:
        ValueError: if it is not the JSON object that `build_request` writes.
    """
    try:
        return Task.model_validate_json(text)
    except ValidationError as error:
        raise ValueError("the user message must be a JSON object of question, ground_truth and prediction") from error


def encode(outline: dict[str, Any], image: bytes | None) -> bytes:
    """The JSON of a body. Base64 needs no escapes: megabytes of an image are put in as they are, not walked through."""
    text = json.dumps(outline, ensure_ascii=False, separators=(",", ":")).encode()
    if image is None:
        return text
    before, after = text.split(_QUOTED_IMAGE, 1)  # no text can imitate it: the quotes in a text are escaped
    return b"".join((before, b'"url":"', _url_head(image), base64.b64encode(image), b'"', after))


def data_url(image: bytes) -> str:
    """The image as a data URL; its media type is read from its first bytes."""
    return (_url_head(image) + base64.b64encode(image)).decode()


def _url_head(image: bytes) -> bytes:
    kind = next((kind for magic, kind in _MAGIC.items() if image.startswith(magic)), "application/octet-stream")
    return f"data:{kind};base64,".encode()


def _messages(instructions: str, task: BaseModel, url: str | None) -> list[dict[str, Any]]:
    text = {"type": "text", "text": json.dumps(task.model_dump(), ensure_ascii=False)}
    image = [{"type": "image_url", "image_url": {"url": url}}] if url else []
    return [{"role": "system", "content": instructions}, {"role": "user", "content": [*image, text]}]


def _parameters(settings: ExpertSettings, name: str, answer: type[BaseModel]) -> dict[str, Any]:
    """Everything of the request's body but the messages."""
    parameters: dict[str, Any] = {"model": settings.model, settings.max_tokens_field: settings.max_tokens}
    if settings.temperature is not None:
        parameters["temperature"] = settings.temperature
    if settings.structured in ("json_schema", "auto"):
        schema = {"name": name, "strict": True, "schema": answer.model_json_schema()}
        parameters["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif settings.structured == "json_object":
        parameters["response_format"] = {"type": "json_object"}
    return parameters
