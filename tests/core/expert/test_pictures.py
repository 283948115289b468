"""Images are made small enough, always in the same way, and left alone where they are."""

import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from core.claims import open_database
from core.errors import RowError
from core.expert.client import ExpertClient
from core.expert.estimate import image_tokens
from core.expert.ledger import Ledger
from core.expert.pictures import fit_image
from core.expert.request import build_request
from core.expert.settings import ExpertSettings
from tests.core.expert.asking import IMAGE, SHA, requests, settings


def noise(form: str, width=300, height=200) -> bytes:
    """The hardest image to compress."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, form)
    return data.getvalue()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_an_image_within_the_limits_is_sent_as_it_is(form):
    data = noise(form)
    assert fit_image(data, ExpertSettings()) == data
    assert fit_image(data, ExpertSettings(image_max_side=300, image_max_bytes=len(data))) == data


@pytest.mark.parametrize(("form", "becomes"), [("PNG", "PNG"), ("JPEG", "JPEG"), ("WEBP", "JPEG"), ("GIF", "JPEG")])
def test_a_side_that_is_too_long_is_scaled(form, becomes):
    small = opened(fit_image(noise(form), ExpertSettings(image_max_side=90)))
    assert (small.size, small.format) == ((90, 60), becomes)


@pytest.mark.parametrize("most", [50_000, 10_000, 2_000])
@pytest.mark.parametrize("side", [None, 150])
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_too_many_bytes_become_fewer_and_the_same_every_time(form, side, most):
    data, limits = noise(form), ExpertSettings(image_max_side=side, image_max_bytes=most)
    small = fit_image(data, limits)
    assert len(small) <= most
    assert max(opened(small).size) <= (side or 300)
    assert fit_image(data, limits) == small


def test_what_cannot_be_made_small_enough_or_read_is_a_reject():
    with pytest.raises(RowError, match="image_too_large"):
        fit_image(noise("PNG", 32, 32), ExpertSettings(image_max_bytes=1024))
    with pytest.raises(RowError, match="not_an_image"):
        fit_image(b"no image", ExpertSettings(image_max_side=90))


def test_the_expert_gets_the_small_image_and_a_broken_one_fails_alone(start_expert, tmp_path):
    large = noise("PNG")
    images = {SHA: IMAGE, hashlib.sha256(large).hexdigest(): large, "2" * 64: b"no image"}
    config = settings(start_expert().url, image_max_side=64)
    ledger = Ledger(open_database(f"sqlite:///{tmp_path / 'state.db'}"))
    batch = [requests(config, 1, sha=sha)[0] for sha in images]
    small, scaled, broken = ExpertClient(config, ledger=ledger).ask(batch, images.__getitem__)
    assert small.status == scaled.status == "answered"
    assert scaled.prompt_tokens < len(large) // 4  # the reference expert counts the data URL
    assert broken.error.startswith("not_an_image")
    assert image_tokens(fit_image(large, config)) < image_tokens(large)


def test_limits_on_images_are_part_of_what_is_asked_and_their_absence_is_not():
    plain = ExpertSettings()
    limited = ExpertSettings(image_max_side=512)

    def key(config, sha="a" * 64):
        return build_request(config, question="q", reference="r", prediction="p", image_sha=sha).key

    assert key(plain) == "9c863aed8ddbbf4ee94e2b00506106775d2986dd207f8007fd02f6b26507712c"
    assert len({key(plain), key(limited), key(ExpertSettings(image_max_bytes=2048))}) == 3
    assert key(plain, None) == key(limited, None)
