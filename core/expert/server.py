"""The reference expert: an OpenAI-compatible server that sees what a hosted model would see and answers by rule.

Routes: GET /v1/models, POST /v1/chat/completions, GET /stats, and those of core.expert.batch_server. Bad requests get
OpenAI's error format. It can be told to show faults (see ReferenceSettings), so that clients meet them over real HTTP.
"""

import asyncio
import hashlib
import hmac
import json
from collections import Counter
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import SecretStr
from starlette.exceptions import HTTPException

from core.expert.answering import ApiError, ChatRequest, asked_noise, completion, content_of, refuse
from core.expert.batch_server import Batches, batch_routes
from core.expert.settings import ReferenceSettings
from core.seeds import rng

_THREADS = 2  # the rules hold the interpreter; more threads would only queue inside it
_SHARES = ("429", "500", "malformed", "truncated")


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
    batches = Batches(settings, expert.answer)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await batches.close()
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
        return {**expert.stats, "batches": batches.count}

    def check(request: Request) -> None:
        _check_key(request, api_key)

    app.include_router(batch_routes(batches, check))
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
        refuse(body, self._settings)
        noise = asked_noise(body.model, self._settings)
        content = await asyncio.get_running_loop().run_in_executor(self.threads, content_of, body, noise)
        if fault is None:
            self._count(body)
        return completion(body, content, fault)

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
