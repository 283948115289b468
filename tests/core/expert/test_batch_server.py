"""The reference expert's Batch API: OpenAI's shapes, and its errors."""

import json
import time

import httpx
import pytest

from core.expert.request import build_request
from tests.core.expert.asking import settings

URL = "/v1/chat/completions"


@pytest.fixture(scope="module")
def http():
    with httpx.Client(trust_env=False, verify=False) as client:
        yield client


def lines(n, **changes):
    config = settings("")
    for i in range(n):
        request = build_request(
            config, question="?", reference=f"a red ring {i}", prediction=f"a blue ring {i}", image_sha=None
        )
        line = {"custom_id": str(i), "method": "POST", "url": URL, "body": request.body(None)} | changes
        yield json.dumps(line) + "\n"


def upload(http, expert, text):
    response = http.post(f"{expert.url}/files", data={"purpose": "batch"}, files={"file": ("my.jsonl", text.encode())})
    return response.json()


def create(http, expert, text, **changes):
    new = {"input_file_id": upload(http, expert, text)["id"], "endpoint": URL, "completion_window": "24h"} | changes
    return http.post(f"{expert.url}/batches", json=new)


def ended(http, expert, batch):
    while batch["status"] in ("validating", "in_progress", "finalizing", "cancelling"):
        time.sleep(0.02)
        batch = http.get(f"{expert.url}/batches/{batch['id']}").json()
    return batch


def test_a_file_comes_back_as_it_went_and_can_be_deleted(start_expert, http):
    expert, text = start_expert(), "ä\r\n--boundary\r\n" * 20_000
    file = upload(http, expert, text)
    assert (file["filename"], file["purpose"], file["bytes"]) == ("my.jsonl", "batch", len(text.encode()))
    place = f"{expert.url}/files/{file['id']}"
    assert http.get(place).json() == file
    assert http.get(f"{place}/content").content == text.encode()
    assert http.delete(place).json()["deleted"]
    assert http.get(place).status_code == http.get(f"{place}/content").status_code == 404


@pytest.mark.parametrize(
    "form", [{"data": {"purpose": "batch"}}, {"files": {"file": ("a.jsonl", b"x")}}, {"json": {"purpose": "batch"}}]
)
def test_a_form_without_a_file_or_its_purpose_is_refused(start_expert, http, form):
    response = http.post(f"{start_expert().url}/files", **form)
    assert response.status_code == 400
    assert response.json()["error"]["message"]


def test_a_batch_answers_each_line_by_its_id_with_errors_apart(start_expert, http):
    expert = start_expert()
    text = "".join([*lines(2), *lines(1, custom_id="bad", body={"model": "reference"})])
    batch = ended(http, expert, create(http, expert, text, metadata={"mine": "1"}).json())
    assert (batch["status"], batch["metadata"]) == ("completed", {"mine": "1"})
    assert batch["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    output, errors = (
        [json.loads(line) for line in http.get(f"{expert.url}/files/{batch[name]}/content").text.splitlines()]
        for name in ("output_file_id", "error_file_id")
    )
    assert [line["custom_id"] for line in output] == ["0", "1"]
    content = json.loads(output[0]["response"]["body"]["choices"][0]["message"]["content"])
    assert content == {"segments": [{"org": "blue", "target": "red"}]}
    assert [(line["custom_id"], line["response"]["status_code"]) for line in errors] == [("bad", 400)]
    assert (expert.stats["requests"], expert.stats["batches"]) == (2, 1)


@pytest.mark.parametrize(
    ("text", "code", "line"),
    [
        ("", "empty_file", None),
        ("{}\n", "invalid_json_line", 1),
        ("".join(lines(1)) * 2, "duplicate_custom_id", 2),
        ("".join(lines(1, url="/v1/embeddings")), "mismatched_endpoint", 1),
        ("".join(lines(4)), "token_limit_exceeded", None),
    ],
)
def test_a_file_that_is_no_batch_fails_with_a_code(start_expert, http, text, code, line):
    expert = start_expert(batch_queue=3)
    batch = ended(http, expert, create(http, expert, text).json())
    assert batch["status"] == "failed"
    assert [(error["code"], error["line"]) for error in batch["errors"]["data"]] == [(code, line)]
    assert expert.stats["requests"] == 0


def test_batches_are_listed_page_by_page_the_newest_first(start_expert, http):
    expert = start_expert()
    made = [create(http, expert, "".join(lines(1))).json()["id"] for _ in range(5)]
    seen, page = [], {"has_more": True, "last_id": None}
    while page["has_more"]:
        page = http.get(
            f"{expert.url}/batches", params={"limit": 2} | ({"after": page["last_id"]} if seen else {})
        ).json()
        seen += [batch["id"] for batch in page["data"]]
    assert seen == made[::-1]


def test_a_batch_that_has_ended_cannot_be_cancelled(start_expert, http):
    expert = start_expert(batch_delay_s=0.2)
    batch = create(http, expert, "".join(lines(3))).json()
    cancel = f"{expert.url}/batches/{batch['id']}/cancel"
    assert http.post(cancel).json()["status"] == "cancelling"
    assert ended(http, expert, batch)["status"] == "cancelled"
    assert http.post(cancel).status_code == 409
    assert expert.stats["requests"] == 0


def test_unknown_names_are_404_another_endpoint_is_400_and_the_key_is_asked_for(start_expert, http):
    expert = start_expert()
    assert http.get(f"{expert.url}/batches/batch_x").status_code == 404
    assert create(http, expert, "", input_file_id="file-x").status_code == 404
    assert create(http, expert, "", endpoint="/v1/embeddings").status_code == 400
    locked = start_expert(api_key="sk-right")
    for path in ("files/x", "files/x/content", "batches", "batches/x"):
        assert http.get(f"{locked.url}/{path}").status_code == 401
    for path in ("files", "batches", "batches/x/cancel"):
        assert http.post(f"{locked.url}/{path}").status_code == 401
