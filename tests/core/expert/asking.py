"""What the tests of the client share: a picture, settings without patience, and requests about the picture."""

import hashlib
import io

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


def requests(config: ExpertSettings, n: int, *, sha: str | None = SHA):
    return [
        build_request(
            config, question="what?", reference=f"item {i} is red", prediction=f"item {i} is blue", image_sha=sha
        )
        for i in range(n)
    ]
