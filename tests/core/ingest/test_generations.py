"""Texts that an evaluation script left become drafts that nobody has looked at, each with its truth."""

import json

import pytest

from core.errors import InputError
from core.ingest.formats import FORMATS, detect
from core.ingest.rows import BadRow

DRAFTS = [
    {"question": "2 + 3?", "generations": "\nIt is 5.<|eot_id|><|endoftext|><|endoftext|>", "ground_truth": 5},
    {"question": "Half?", "generations": "so \\boxed{1}", "ground_truth": "\\frac{1}{2}", "level": 3},
    {"question": "Numbers", "generations": "a<|endoftext|>b", "ground_truth": [[4, 5], 9]},
]


def rows(path):
    return list(FORMATS["generations"](path))


@pytest.mark.parametrize("form", ["object", "array", "lines", "lines without a telling name"])
def test_every_form_of_the_file_has_the_same_drafts(tmp_path, form):
    path = tmp_path / ("drafts.jsonl" if form == "lines" else "drafts.json")
    text = {
        "object": json.dumps({"model_path": "m", "generations": DRAFTS, "gen_length": 128}),
        "array": json.dumps(DRAFTS),
    }
    path.write_text(text.get(form) or "\n".join(map(json.dumps, DRAFTS)))
    assert detect(path) == "generations"
    found = [(row.prompt, row.reference, row.correction.draft, row.image) for row in rows(path)]
    assert found == [
        ("2 + 3?", "5", "\nIt is 5.", None),
        ("Half?", "\\frac{1}{2}", "so \\boxed{1}", None),
        ("Numbers", "[[4, 5], 9]", "a", None),
    ]
    assert [row.place for row in rows(path)] == [f"{path.name}:{i}" for i in range(3)]
    first, second, _ = (row.correction for row in rows(path))
    assert (first.verdict, first.extra, second.extra) == (None, None, '{"level": 3}')


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"question": "?", "generations": "<|endoftext|>", "ground_truth": 1}, "empty_draft"),
        ({"question": "?", "generations": "x", "ground_truth": None}, "no_answer"),
        ({"question": "?", "generations": "x"}, "no_answer"),
        ({"generations": "x", "ground_truth": 1}, "missing_text"),
        ({"question": "?", "generations": ["x"], "ground_truth": 1}, "text_not_a_string"),
        ({"question": "?", "generations": "x", "ground_truth": "\ud800"}, "invalid_unicode"),
        ("text", "not_a_record"),
    ],
)
def test_what_is_no_draft_is_a_reject_with_its_reason(tmp_path, record, reason):
    path = tmp_path / "drafts.json"
    path.write_text(json.dumps({"generations": [DRAFTS[0], record]}))
    good, bad = rows(path)
    assert good.correction.draft == "\nIt is 5."
    assert isinstance(bad, BadRow)
    assert (bad.place, bad.error.reason) == ("drafts.json:1", reason)


def test_a_damaged_file_is_an_error_that_says_where(tmp_path):
    path = tmp_path / "drafts.json"
    path.write_text(json.dumps({"generations": DRAFTS})[:-40])
    with pytest.raises(InputError, match=r"drafts.json is not valid JSON.*line 1 column"):
        rows(path)
