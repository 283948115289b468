"""The reference expert: an OpenAI-compatible server that sees what a hosted model would see and answers by rule.

Routes: GET /v1/models, POST /v1/chat/completions, GET /stats. Bad requests get OpenAI's error format. It can be told to
show faults (see ReferenceSettings), so that clients meet them over real HTTP.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import io
import json
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from PIL import Image
from pydantic import BaseModel, SecretStr
from starlette.exceptions import HTTPException

from core.expert.pair_request import PairTask, read_pair_task
from core.expert.pair_rules import invent_by_rule
from core.expert.request import Task, read_task
from core.expert.rules import revise_by_rule
from core.expert.settings import ReferenceSettings
from core.seeds import rng

_THREADS = 2  # the rules hold the interpreter; more threads would only queue inside it
_MAX_PIXELS = 64_000_000
_SHARES = ("429", "500", "malformed", "truncated")


class ChatRequest(BaseModel):
    """What is read of a chat completion request; its other fields are ignored."""

    model: str
    messages: list[dict[str, Any]]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    response_format: dict[str, Any] | None = None
    stream: bool = False


class ApiError(Exception):
    """An answer in OpenAI's error format."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(status, message)
        self.status, self.message, self.headers = status, message, headers

    def response(self) -> JSONResponse:
        """{"error": {"message", "type", "param", "code"}} with its HTTP status."""
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status, "invalid_request_error")
        kind = "server_error" if self.status >= 500 else kind
        error = {"message": self.message, "type": kind, "param": None, "code": None}
        return JSONResponse({"error": error}, self.status, self.headers)


def serve(
    settings: ReferenceSettings | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    api_key: SecretStr | None = None,
) -> None:
    """Serve until interrupted, in the thread or process of the caller."""
    make_server(settings, host=host, port=port, api_key=api_key).run()


def make_server(
    settings: ReferenceSettings | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    api_key: SecretStr | None = None,
) -> uvicorn.Server:
    """A server that `run()` starts and `should_exit = True` stops; port 0: any free one, see `servers`' sockets."""
    app = create_app(settings or ReferenceSettings(), api_key)
    return uvicorn.Server(uvicorn.Config(app, host=host, port=port, log_level="warning", access_log=False))


def create_app(settings: ReferenceSettings, api_key: SecretStr | None = None) -> FastAPI:
    """The application. With an `api_key` every route but /stats asks for it."""
    expert = _Expert(settings)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        expert.threads.shutdown(cancel_futures=True)

    app = FastAPI(title="Redraft reference expert", lifespan=lifespan)

    @app.exception_handler(ApiError)
    async def on_api_error(_request: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def on_malformed(_request: Request, error: RequestValidationError) -> JSONResponse:
        faults = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        return ApiError(400, "; ".join(faults)[:500]).response()

    @app.exception_handler(HTTPException)
    async def on_http(_request: Request, error: HTTPException) -> JSONResponse:
        return ApiError(error.status_code, str(error.detail)).response()

    @app.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        _check_key(request, api_key)
        return {"object": "list", "data": [{"id": settings.model, "object": "model", "owned_by": "redraft"}]}

    @app.post("/v1/chat/completions")
    async def completions(request: Request, body: ChatRequest) -> dict[str, Any]:
        _check_key(request, api_key)
        return await expert.answer(body)

    @app.get("/stats")
    async def stats() -> dict[str, int]:
        return dict(expert.stats)

    return app


def _check_key(request: Request, api_key: SecretStr | None) -> None:
    if api_key is None:
        return
    given = request.headers.get("authorization", "").encode()
    if not hmac.compare_digest(given, f"Bearer {api_key.get_secret_value()}".encode()):
        raise ApiError(401, "the API key is missing or wrong")


class _Expert:
    """Answers, faults and counters of one server.

    stats: requests (all), answered (with the right reply), one counter a fault, repeated (answered before already).
    """

    def __init__(self, settings: ReferenceSettings) -> None:
        self.threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="expert")
        self.stats = Counter(requests=0, answered=0, repeated=0, **{f"fault_{name}": 0 for name in _SHARES})
        self._settings = settings
        self._seen: set[str] = set()

    async def answer(self, body: ChatRequest) -> dict[str, Any]:
        """The chat completion. Raises ApiError."""
        fault = self._next_fault()
        if self._settings.latency_s:
            await asyncio.sleep(self._settings.latency_s)
        if fault is not None:
            self.stats[f"fault_{fault}"] += 1
        if fault == "429":
            raise ApiError(429, "rate limited", {"Retry-After": f"{self._settings.retry_after_s:g}"})
        if fault == "500":
            raise ApiError(500, "internal error")
        if body.stream:
            raise ApiError(400, "stream: not supported")
        omits = _omitted_share(body.model, self._settings.model)
        content = await asyncio.get_running_loop().run_in_executor(self.threads, _content, body, omits)
        if fault is None:
            self._count(body)
        return _completion(body, content, fault)

    def _next_fault(self) -> str | None:
        """The fault that the next request meets: it depends on the seed and how many came before."""
        number = self.stats["requests"]
        self.stats["requests"] += 1
        settings = self._settings
        shares = (settings.share_429, settings.share_500, settings.share_malformed, settings.share_truncated)
        if not any(shares):
            return None
        draw = rng("fault", settings.seed, number).random()
        for name, share in zip(_SHARES, shares, strict=True):
            if draw < share:
                return name
            draw -= share
        return None

    def _count(self, body: ChatRequest) -> None:
        digest = hashlib.sha256(json.dumps(body.messages, sort_keys=True).encode()).hexdigest()
        self.stats["answered"] += 1
        self.stats["repeated"] += digest in self._seen
        self._seen.add(digest)


def _omitted_share(asked: str, served: str) -> float:
    """0 for the model that is served; .3 for "<served>-omits-0.3", which says nothing of so many of the mistakes.

    Answering for any other model would fill a ledger with wrong replies.
    """
    name, _, share = asked.partition("-omits-")
    try:
        omits = float(share or 0)
    except ValueError:
        omits = -1.0
    if name != served or not 0 <= omits <= 1:
        raise ApiError(404, f"no model {asked!r}; this server has {served!r} and {served}-omits-SHARE")
    return omits


def _content(body: ChatRequest, omits: float) -> str:
    """The reply's text: the JSON of the schema if one was asked for, else `right` or a bare list."""
    task = _read_messages(body.messages)
    if isinstance(task, PairTask):
        return invent_by_rule(task).model_dump_json()
    segments = [
        {"org": org, "target": target}
        for org, target in revise_by_rule(task.question, task.ground_truth, task.prediction)
        if rng("omitted", task.prediction, org).random() >= omits
    ]
    if (body.response_format or {}).get("type") in ("json_schema", "json_object"):
        return json.dumps({"segments": segments}, ensure_ascii=False)
    return json.dumps(segments, ensure_ascii=False) if segments else "right"


def _read_messages(messages: list[dict[str, Any]]) -> Task | PairTask:
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
        return read_pair_task(text) or read_task(text)
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


def _completion(body: ChatRequest, content: str, fault: str | None) -> dict[str, Any]:
    """OpenAI's chat.completion. A token is counted as four chars."""
    limit = body.max_completion_tokens or body.max_tokens
    if fault == "malformed":
        content = f"I am sorry, I cannot say that as JSON: {content[: len(content) // 2].replace('{', '(')}"
    cut = len(content) // 2 if fault == "truncated" else 4 * limit if limit else len(content)
    finish = "length" if cut < len(content) or fault == "truncated" else "stop"
    content = content[:cut]
    prompt_tokens = sum(len(json.dumps(message)) for message in body.messages) // 4
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
