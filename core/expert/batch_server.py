"""The reference expert's Batch API: files, and batches of chat completions that are answered as single ones are.

Routes: POST, GET and DELETE /v1/files, POST, GET and cancel of /v1/batches, in OpenAI's shapes. Files live in a
temporary folder for as long as the server runs.
"""

import asyncio
import json
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import FileResponse
from pydantic import BaseModel, ValidationError
from werkzeug.http import parse_options_header
from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder, NeedData

from core.expert.answering import ApiError, ChatRequest
from core.expert.settings import ReferenceSettings

Answer = Callable[[ChatRequest], Awaitable[dict[str, Any]]]
_URL = "/v1/chat/completions"
_AT_ONCE = 32
_UNFINISHED = ("validating", "in_progress", "finalizing", "cancelling")


class _NewBatch(BaseModel):
    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None


class _Line(BaseModel):
    custom_id: str
    method: str
    url: str
    body: dict[str, Any]


class Batches:
    """The files and batches of one server. `answer` is what a single chat completion gets."""

    def __init__(self, settings: ReferenceSettings, answer: Answer) -> None:
        self.count = 0
        self._settings = settings
        self._answer = answer
        self._folder = tempfile.TemporaryDirectory(prefix="redraft-expert-", ignore_cleanup_errors=True)
        self._files: dict[str, dict[str, Any]] = {}
        self._batches: dict[str, dict[str, Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Stop what is running and remove the files."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._folder.cleanup()

    def new_file(self, filename: str, purpose: str) -> dict[str, Any]:
        """An empty file; its bytes go where `path` says."""
        name = f"file-{uuid.uuid4().hex}"
        about = {"id": name, "object": "file", "created_at": int(time.time()), "status": "processed"}
        self._files[name] = about | {"filename": filename, "purpose": purpose}
        self.path(name).touch()
        return self._files[name]

    def file(self, name: str) -> dict[str, Any]:
        """What is known of a file, with its size. Raises ApiError."""
        if name not in self._files:
            raise ApiError(404, f"No such File object: {name}", param="id")
        return self._files[name] | {"bytes": self.path(name).stat().st_size}

    def content(self, name: str) -> Path:
        """Where its bytes are, for who asks for them. Raises ApiError."""
        self.file(name)
        return self.path(name)

    def path(self, name: str) -> Path:
        """Where its bytes are."""
        return Path(self._folder.name) / name

    def delete(self, name: str) -> dict[str, Any]:
        """Remove a file. Raises ApiError."""
        self.file(name)
        del self._files[name]
        self.path(name).unlink()
        return {"id": name, "object": "file", "deleted": True}

    def create(self, new: _NewBatch) -> dict[str, Any]:
        """A batch, that begins to run. Raises ApiError."""
        self.file(new.input_file_id)
        if new.endpoint != _URL or new.completion_window != "24h":
            raise ApiError(400, f"a batch needs endpoint {_URL} and completion_window 24h", param="endpoint")
        now = int(time.time())
        batch: dict[str, Any] = {"id": f"batch_{uuid.uuid4().hex}", "object": "batch", "errors": None}
        batch |= new.model_dump() | {"status": "validating", "created_at": now, "expires_at": now + 24 * 3600}
        batch |= {"output_file_id": None, "error_file_id": None}
        batch["request_counts"] = {"total": 0, "completed": 0, "failed": 0}
        self._batches[batch["id"]] = batch
        self.count += 1
        task = asyncio.create_task(self._run(batch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return batch

    def batch(self, name: str) -> dict[str, Any]:
        """A batch as it is now. Raises ApiError."""
        if name not in self._batches:
            raise ApiError(404, f"No batch found with id {name!r}", param="id")
        return self._batches[name]

    def page(self, after: str | None, limit: int) -> dict[str, Any]:
        """Batches, the newest first, that come after the one called `after`."""
        names = list(reversed(self._batches))
        start = names.index(after) + 1 if after in names else 0
        chosen = names[start : start + limit]
        ends = {"first_id": chosen[0], "last_id": chosen[-1]} if chosen else {"first_id": None, "last_id": None}
        data = [self._batches[name] for name in chosen]
        return {"object": "list", "data": data, "has_more": start + limit < len(names), **ends}

    def cancel(self, name: str) -> dict[str, Any]:
        """Answer no more of its requests. Raises ApiError."""
        batch = self.batch(name)
        if batch["status"] not in _UNFINISHED:
            raise ApiError(409, f"a batch that has {batch['status']} cannot be cancelled")
        batch["status"] = "cancelling"
        return batch

    async def _run(self, batch: dict[str, Any]) -> None:
        wait_until = time.monotonic() + self._settings.batch_delay_s
        while time.monotonic() < wait_until and batch["status"] != "cancelling":
            await asyncio.sleep(min(0.02, self._settings.batch_delay_s))
        lines = self._validated(batch)
        if lines is None:
            return _end(batch, "failed")
        batch["request_counts"]["total"] = len(lines)
        if batch["status"] == "validating":
            batch["status"] = "in_progress"
        most = len(lines) if self._settings.batch_answers is None else self._settings.batch_answers
        with self._open(batch, "output") as output, self._open(batch, "error") as errors:
            for start in range(0, min(most, len(lines)), _AT_ONCE):
                if batch["status"] == "cancelling":
                    break
                some = lines[start : min(start + _AT_ONCE, most)]
                for result in await asyncio.gather(*[self._result(line) for line in some]):
                    good = result["response"]["status_code"] == 200
                    (output if good else errors).write(json.dumps(result, ensure_ascii=False) + "\n")
                    batch["request_counts"]["completed" if good else "failed"] += 1
            done = sum(batch["request_counts"][name] for name in ("completed", "failed"))
            cancelled = batch["status"] == "cancelling"
            code = "batch_cancelled" if cancelled else "batch_expired"
            for line in lines[done:]:
                error = {"code": code, "message": "This request was not executed before the batch ended."}
                errors.write(json.dumps({"custom_id": line.custom_id, "response": None, "error": error}) + "\n")
        self._close_files(batch)
        return _end(batch, "cancelled" if cancelled else "expired" if done < len(lines) else "completed")

    def _validated(self, batch: dict[str, Any]) -> list[_Line] | None:
        """The requests of the input file; None if there is something wrong with it, which the batch then says."""
        lines: list[_Line] = []
        errors: list[dict[str, Any]] = []
        seen: set[str] = set()
        with self.path(batch["input_file_id"]).open(encoding="utf-8", newline="\n") as file:
            for number, text in enumerate(file, 1):
                try:
                    line = _Line.model_validate_json(text)
                except ValidationError:
                    errors.append(_error("invalid_json_line", "This line is not a request.", number))
                    continue
                if line.custom_id in seen:
                    errors.append(_error("duplicate_custom_id", "The custom_id of this line is not unique.", number))
                if line.url != _URL or line.method != "POST":
                    errors.append(_error("mismatched_endpoint", "The url is not that of the batch.", number))
                seen.add(line.custom_id)
                lines.append(line)
        if not lines and not errors:
            errors.append(_error("empty_file", "The input file holds no requests.", None))
        queue = self._settings.batch_queue
        if queue is not None and len(lines) > queue:
            errors.append(_error("token_limit_exceeded", f"Enqueued token limit reached. Limit: {queue}.", None))
        batch["errors"] = {"object": "list", "data": errors} if errors else None
        return None if errors else lines

    async def _result(self, line: _Line) -> dict[str, Any]:
        try:
            status, body = 200, await self._answer(ChatRequest.model_validate(line.body))
        except ApiError as error:
            status, body = error.status, json.loads(bytes(error.response().body))
        except ValidationError as error:
            status, body = 400, json.loads(bytes(ApiError(400, str(error)[:500]).response().body))
        name = uuid.uuid4().hex
        response = {"status_code": status, "request_id": name, "body": body}
        return {"id": f"batch_req_{name}", "custom_id": line.custom_id, "response": response, "error": None}

    def _open(self, batch: dict[str, Any], kind: str) -> IO[str]:
        entry = self.new_file(f"{batch['id']}_{kind}.jsonl", "batch_output")
        batch[f"{kind}_file_id"] = entry["id"]
        return self.path(entry["id"]).open("w", encoding="utf-8")

    def _close_files(self, batch: dict[str, Any]) -> None:
        """A file without a line does not exist."""
        for kind in ("output_file_id", "error_file_id"):
            if not self.path(batch[kind]).stat().st_size:
                self.delete(batch[kind])
                batch[kind] = None


def batch_routes(batches: Batches, check: Callable[[Request], None]) -> APIRouter:
    """The routes; `check` refuses who has not the key."""
    router = APIRouter(prefix="/v1", dependencies=[Depends(check)])

    @router.post("/files")
    async def upload(request: Request) -> dict[str, Any]:
        return await _receive(request, batches)

    @router.get("/files/{name}")
    async def file(name: str) -> dict[str, Any]:
        return batches.file(name)

    @router.get("/files/{name}/content")
    async def content(name: str) -> FileResponse:
        return FileResponse(batches.content(name), media_type="application/octet-stream")

    @router.delete("/files/{name}")
    async def delete(name: str) -> dict[str, Any]:
        return batches.delete(name)

    @router.post("/batches")
    async def create(body: _NewBatch) -> dict[str, Any]:
        return batches.create(body)

    @router.get("/batches")
    async def page(after: str | None = None, limit: int = 20) -> dict[str, Any]:
        return batches.page(after, limit)

    @router.get("/batches/{name}")
    async def batch(name: str) -> dict[str, Any]:
        return batches.batch(name)

    @router.post("/batches/{name}/cancel")
    async def cancel(name: str) -> dict[str, Any]:
        return batches.cancel(name)

    return router


async def _receive(request: Request, batches: Batches) -> dict[str, Any]:
    """The file of a multipart form, written as it arrives. Raises ApiError."""
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != "multipart/form-data" or "boundary" not in options:
        raise ApiError(400, "expected multipart/form-data with a file and its purpose")
    decoder = MultipartDecoder(options["boundary"].encode(), max_parts=8)
    entry, fields, part = batches.new_file("", ""), {"purpose": b""}, ""
    with batches.path(entry["id"]).open("wb") as file, suppress(StopAsyncIteration):
        chunks = request.stream()
        while not isinstance(event := decoder.next_event(), Epilogue):
            match event:
                case NeedData():
                    decoder.receive_data(await anext(chunks) or None)
                case File():
                    part, entry["filename"] = "", event.filename or ""
                case Field():
                    part = event.name
                case Data() if part:
                    fields[part] = fields.get(part, b"") + event.data
                case Data():
                    file.write(event.data)
    entry["purpose"] = fields["purpose"].decode()
    if entry["purpose"] != "batch" or not entry["filename"]:
        batches.delete(entry["id"])
        raise ApiError(400, "expected a file with the purpose 'batch'", param="purpose")
    return batches.file(entry["id"])


def _error(code: str, message: str, line: int | None) -> dict[str, Any]:
    return {"code": code, "message": message, "line": line, "param": None}


def _end(batch: dict[str, Any], status: str) -> None:
    batch |= {"status": status, f"{status}_at": int(time.time())}
