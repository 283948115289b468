"""A request made ready: its body but for the image, the image at its size, and the most that both may take."""

import asyncio
from typing import Any

from core.errors import RowError
from core.expert.estimate import Use, most_of
from core.expert.pictures import fit_image
from core.expert.progress import LoadBytes
from core.expert.request import ExpertRequest
from core.expert.settings import ExpertSettings

Ready = tuple[dict[str, Any], bytes | None, Use]


async def prepared(request: ExpertRequest, load_image: LoadBytes, settings: ExpertSettings) -> Ready:
    """Images are loaded and encoded in a thread. Raises RowError: image_missing, or what is wrong with the image."""
    if request.image_sha is None:
        return _weighed(request, None, settings)
    return await asyncio.to_thread(_with_image, request, request.image_sha, load_image, settings)


def _with_image(request: ExpertRequest, sha: str, load_image: LoadBytes, settings: ExpertSettings) -> Ready:
    try:
        return _weighed(request, fit_image(load_image(sha), settings), settings)
    except (KeyError, OSError) as error:
        raise RowError("image_missing", f"{sha}: {type(error).__name__}") from error


def _weighed(request: ExpertRequest, image: bytes | None, settings: ExpertSettings) -> Ready:
    outline = request.outline()
    return outline, image, most_of(settings, outline, image)
