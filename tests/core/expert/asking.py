"""What the tests of the client share: a picture, settings without patience, and requests about the picture."""

import hashlib
import io
import time
from collections.abc import Callable
from types import SimpleNamespace

from PIL import Image

from core.expert.request import build_request
from core.expert.settings import ExpertSettings


def png(colour=(200, 0, 0)) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(data, "png")
    return data.getvalue()


IMAGE = png()
SHA = hashlib.sha256(IMAGE).hexdigest()
IMAGES = {SHA: IMAGE}


def settings(url: str, **changes) -> ExpertSettings:
    return ExpertSettings(**({"base_url": url, "backoff_s": 0.01, "max_wait_s": 0.2, "timeout_s": 10} | changes))


def late_once(monkeypatch, true: Callable[[], bool]) -> dict[str, float]:
    """A deadline of half an hour that is over as soon as it is true: an hour passes then."""
    late = SimpleNamespace(time=lambda: time.time() + 3600 * true())
    monkeypatch.setattr("core.expert.limits.time", late)
    return {"deadline_s": 1800}


def late_after(monkeypatch, expert, n: int) -> dict[str, float]:
    """A deadline that is over as soon as the expert was asked n times."""
    return late_once(monkeypatch, lambda: expert.stats["requests"] >= n)


def requests(config: ExpertSettings, n: int, *, sha: str | None = SHA):
    return [
        build_request(
            config, question="what?", reference=f"item {i} is red", prediction=f"item {i} is blue", image_sha=sha
        )
        for i in range(n)
    ]
