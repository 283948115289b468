"""The files of the Batch API: one JSON object a line, written and read piece by piece."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, Final

from pydantic import BaseModel, ValidationError

from core.errors import RowError
from core.expert.dialect import Dialect
from core.expert.estimate import Use, most_of
from core.expert.pictures import fit_image
from core.expert.progress import LoadBytes
from core.expert.request import ExpertRequest
from core.expert.settings import ExpertSettings

MAX_REQUESTS = 50_000
MAX_BYTES = 200_000_000
URL: Final = "/v1/chat/completions"


class _Response(BaseModel):
    status_code: int
    body: Any = None


class _Error(BaseModel):
    code: str | None = None
    message: str | None = None


class Result(BaseModel):
    """A line of an output or an error file. `response` is missing if the request was not executed."""

    custom_id: str
    response: _Response | None = None
    error: _Error | None = None


@dataclass(frozen=True, kw_only=True)
class Written:
    """A request in the file: the most that it may take, and the bytes of the file up to its end."""

    request: ExpertRequest
    most: Use
    end: int


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """What became of the first so many of some requests; the others did not fit."""

    written: list[Written]
    unusable: list[tuple[ExpertRequest, RowError]]


def write_requests(
    file: IO[bytes],
    requests: Sequence[ExpertRequest],
    settings: ExpertSettings,
    dialect: Dialect,
    load_image: LoadBytes,
) -> Parcel:
    """Write as many of the requests as one file may hold. One image is in memory at a time. Blocking.

    Unusable are those whose image is missing or broken, or that are too long for any file.
    """
    written: list[Written] = []
    unusable: list[tuple[ExpertRequest, RowError]] = []
    for request in requests:
        try:
            line, most = _line(request, settings, dialect, load_image)
            if len(line) > MAX_BYTES:
                raise RowError("request_too_large", f"{len(line)} bytes, and a file may have {MAX_BYTES}")
        except RowError as error:
            unusable.append((request, error))
            continue
        end = (written[-1].end if written else 0) + len(line)
        if end > MAX_BYTES:
            break
        file.write(line)
        written.append(Written(request=request, most=most, end=end))
    return Parcel(written=written, unusable=unusable)


def read_results(file: IO[bytes]) -> Iterator[Result]:
    """The lines of a file that can be read; a request whose line cannot has none. Blocking."""
    for line in file:  # bytes: a line of text would end at characters that JSON leaves alone, as U+2028
        try:
            yield Result.model_validate_json(line)
        except ValidationError:
            continue


def _line(
    request: ExpertRequest, settings: ExpertSettings, dialect: Dialect, load_image: LoadBytes
) -> tuple[bytes, Use]:
    image = read_image(request, settings, load_image)
    body = request.body(image)
    line = {"custom_id": request.key, "method": "POST", "url": URL, "body": dialect.write(body)}
    return json.dumps(line).encode() + b"\n", most_of(settings, body, image)


def read_image(request: ExpertRequest, settings: ExpertSettings, load_image: LoadBytes) -> bytes | None:
    """The request's image, as small as the settings want it. Raises RowError. Blocking."""
    if request.image_sha is None:
        return None
    try:
        return fit_image(load_image(request.image_sha), settings)
    except (KeyError, OSError) as error:
        raise RowError("image_missing", f"{request.image_sha}: {type(error).__name__}") from error
