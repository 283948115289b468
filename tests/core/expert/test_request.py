"""What is asked, and when two requests are the same."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigError
from core.expert.request import Task, build_request, encode, load_prompt, read_task
from core.expert.settings import ExpertSettings

PNG = b"\x89PNG\r\n\x1a\nrest"
BASE = {"question": "what is it?", "reference": "a ring", "prediction": "a disc", "image_sha": "a" * 64}
SETTINGS = ExpertSettings(model="m")


def key(settings=SETTINGS, **changes):
    return build_request(settings, **(BASE | changes)).key


def test_the_body_is_a_chat_completion_with_image_schema_and_limits():
    body = build_request(SETTINGS, **BASE).body(PNG)
    system, user = body["messages"]
    assert system == {"role": "system", "content": load_prompt("revise-v1").text}
    image, text = user["content"]
    assert image == {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{base64.b64encode(PNG).decode()}"},
    }
    assert json.loads(text["text"]) == {"question": "what is it?", "ground_truth": "a ring", "prediction": "a disc"}
    assert body["model"] == "m"
    assert body["max_completion_tokens"] == 2048
    schema = body["response_format"]["json_schema"]
    assert schema["strict"]
    assert schema["schema"]["additionalProperties"] is False
    assert schema["schema"]["$defs"]["SegmentModel"]["additionalProperties"] is False
    assert "temperature" not in body


@pytest.mark.parametrize(
    "text", ["a disc", 'a "url":"image" of \\"url\\":\\"image\\" {"url":"image"}', "数 \n\t\x01 image"]
)
@pytest.mark.parametrize("image", [PNG, None])
def test_what_is_sent_is_the_json_of_the_body_whatever_the_texts_say(text, image):
    texts = dict.fromkeys(("question", "reference", "prediction"), text)
    request = build_request(SETTINGS, **texts, image_sha="a" * 64 if image else None)
    assert json.loads(encode(request.outline(), image)) == request.body(image)


@pytest.mark.parametrize(
    ("start", "kind"),
    [(b"\xff\xd8\xff\xe0", "image/jpeg"), (b"GIF89a", "image/gif"), (b"RIFF....WEBP", "image/webp")],
)
def test_the_media_type_is_read_from_the_bytes(start, kind):
    content = build_request(SETTINGS, **BASE).body(start)["messages"][1]["content"]
    assert content[0]["image_url"]["url"].startswith(f"data:{kind};base64,")


def test_a_sample_without_image_sends_text_alone():
    (part,) = build_request(SETTINGS, **(BASE | {"image_sha": None})).body(None)["messages"][1]["content"]
    assert part["type"] == "text"


def test_whatever_can_change_the_answer_changes_the_key():
    others = [
        key(question="?"),
        key(reference="x"),
        key(prediction="x"),
        key(image_sha="b" * 64),
        key(image_sha=None),
        key(SETTINGS.model_copy(update={"model": "n"})),
        key(SETTINGS.model_copy(update={"temperature": 0.0})),
        key(SETTINGS.model_copy(update={"max_tokens": 7})),
        key(SETTINGS.model_copy(update={"structured": "none"})),
    ]
    assert len({key(), *others}) == len(others) + 1


def test_who_is_asked_and_how_patiently_does_not_change_the_key():
    changed = SETTINGS.model_copy(
        update={"base_url": "http://x/v1", "concurrency": 1, "price_in": 1.0, "timeout_s": 1.0}
    )
    assert key(changed) == key()


def test_an_unknown_prompt_version_lists_the_known_ones():
    with pytest.raises(ConfigError, match="revise-v1"):
        load_prompt("../../secrets")


@given(st.text(), st.text(), st.text())
def test_no_text_can_imitate_another_field(question, reference, prediction):
    request = build_request(SETTINGS, question=question, reference=reference, prediction=prediction, image_sha=None)
    text = request.body(None)["messages"][1]["content"][0]["text"]
    assert read_task(text) == Task(question=question, ground_truth=reference, prediction=prediction)


@pytest.mark.parametrize("text", ["", "what is it?", "[]", '{"question": "a"}', '{"question": 1, "ground_truth": 2}'])
def test_any_other_text_is_no_task(text):
    with pytest.raises(ValueError, match="prediction"):
        read_task(text)
