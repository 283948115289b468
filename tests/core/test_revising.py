"""Every draft ends as right, revised, unusable or failed, and keeps the contract."""

import hashlib
import io

import polars as pl
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from core.claims import open_database
from core.expert.client import ExpertClient
from core.expert.ledger import Ledger, Reply
from core.expert.settings import ExpertSettings
from core.revising import request_for, revise
from data_contracts import Drafts, Revisions, split_rows

LENGTH = 16
WORDS = ["describe", "the", "image", "a", "red", "blue", "green", "ring", "square", "on", "left", "right", "is", "of"]


@pytest.fixture(scope="module")
def tokenizer():
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[EOS]", "[MASK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]", mask_token="[MASK]"
    )


@pytest.fixture
def ledger(tmp_path):
    return Ledger(open_database(f"sqlite:///{tmp_path / 'state.db'}"))


def png() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), (0, 0, 200)).save(data, "png")
    return data.getvalue()


IMAGE = png()
SHA = hashlib.sha256(IMAGE).hexdigest()


def drafts_of(tokenizer, *rows: tuple[str, str, str | None]) -> pl.DataFrame:
    """rows: (text, reference, image_sha)."""
    records = []
    for index, (text, reference, sha) in enumerate(rows):
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, spans = encoded["input_ids"], encoded["offset_mapping"]
        fill = LENGTH - len(ids)
        records.append(
            {
                "draft_id": f"draft-{index}",
                "sample_id": f"sample-{index}",
                "image_sha": sha,
                "prompt": "describe the image",
                "reference": reference,
                "prompt_ids": [4, 5, 6],
                "token_ids": ids + [tokenizer.eos_token_id] * fill,
                "text": text,
                "char_start": [start for start, _ in spans] + [-1] * fill,
                "char_end": [end for _, end in spans] + [-1] * fill,
                "writes": [],
                "setting": "8 refine",
                "tokens_per_step": 8,
                "extra_steps": 0,
                "policy": "refine",
                "nfe": 2,
                "model_digest": "0" * 64,
                "round": 1,
            }
        )
    return Drafts.validate(pl.DataFrame(records, schema=Drafts.create_empty().schema))


def revised(drafts, url, ledger, tokenizer, **changes):
    client = ExpertClient(ExpertSettings(base_url=url, backoff_s=0.01, **changes), ledger=ledger)
    return revise(drafts, client=client, tokenizer=tokenizer, load_image={SHA: IMAGE}.__getitem__).revisions


def test_every_draft_is_decided_and_keeps_the_contract(start_expert, ledger, tokenizer):
    expert = start_expert()
    drafts = drafts_of(
        tokenizer,
        ("a blue ring on the left", "a red ring on the left", SHA),
        ("a red ring on the left", "a red ring on the left", SHA),
        ("a red ring", "a zebra ring", SHA),  # a word that the model cannot write
        ("", "a red ring", SHA),
        ("a red ring", "a red square", "f" * 64),
        ("a red ring", "a red square", None),
    )
    frame = revised(drafts, expert.url, ledger, tokenizer)
    good, failures = split_rows(Revisions, frame)
    assert failures == []
    assert good["draft_id"].to_list() == drafts["draft_id"].to_list()
    assert good["verdict"].to_list() == ["revised", "right", "unusable", "failed", "failed", "revised"]
    assert [error and error.split(":")[0] for error in good["error"]] == [
        None,
        None,
        None,
        "empty_draft",
        "image_missing",
        None,
    ]
    assert good["segments"][2].to_list()[0]["reason"] == "special_token"
    assert good["refined_text"].to_list()[:2] == ["a red ring on the left"] * 2
    assert good["target_ids"][0].to_list() == drafts["token_ids"][1].to_list()
    assert good["target_ids"].is_null().to_list() == [False, False, False, True, True, False]
    assert expert.stats["requests"] == 4


def test_revising_again_gives_the_same_frame_and_asks_nothing(start_expert, ledger, tokenizer):
    expert = start_expert()
    drafts = drafts_of(tokenizer, ("a blue ring", "a red ring", SHA), ("a green ring on the left", "a red ring", SHA))
    first = revised(drafts, expert.url, ledger, tokenizer)
    assert revised(drafts, expert.url, ledger, tokenizer).equals(first)
    assert expert.stats["requests"] == 2


def test_equal_drafts_are_paid_for_once(start_expert, ledger, tokenizer):
    expert = start_expert()
    frame = revised(drafts_of(tokenizer, *[("a blue ring", "a red ring", SHA)] * 3), expert.url, ledger, tokenizer)
    assert frame["verdict"].to_list() == ["revised"] * 3
    assert expert.stats["requests"] == 1


def test_a_reply_that_is_no_json_fails_its_draft_and_keeps_the_raw_text(start_expert, ledger, tokenizer):
    expert = start_expert(share_malformed=1.0)
    frame = revised(drafts_of(tokenizer, ("a blue ring", "a red ring", SHA)), expert.url, ledger, tokenizer)
    assert frame.select("verdict", "error").row(0) == ("failed", "no_json")
    assert frame["raw_reply"][0].startswith("I am sorry")


@pytest.mark.parametrize(
    ("raw", "verdict", "text"),
    [
        (
            'Sure! ```json\n[{"org": "blue", "target": "red"}, {"org": "cat", "target": "dog"}]\n```',
            "revised",
            "a red ring",
        ),
        ('{"org": "ring", "target": "ring on the left"}', "revised", "a blue ring on the left"),
        ('{"org": "blue", "target": "[MASK]"}', "unusable", "a blue ring"),
        ('{"org": "image", "target": "ring"}', "unusable", "a blue ring"),
        ("Right.", "right", "a blue ring"),
    ],
)
def test_whatever_the_expert_replies_becomes_tokens_or_reasons(start_expert, ledger, tokenizer, raw, verdict, text):
    expert = start_expert()
    drafts = drafts_of(tokenizer, ("a blue ring", "a red ring", SHA))
    request = request_for(drafts.row(0, named=True), ExpertSettings(base_url=expert.url))
    ledger.session().record(
        [Reply(key=request.key, status="answered", model="reference", prompt_version=request.prompt_version, raw=raw)]
    )
    (row,) = revised(drafts, expert.url, ledger, tokenizer).rows(named=True)
    assert (row["verdict"], row["refined_text"]) == (verdict, text)
    ids = row["target_ids"]
    assert len(ids) == LENGTH
    assert tokenizer.decode(ids[: ids.index(tokenizer.eos_token_id)]) == text
    assert expert.stats["requests"] == 0


def test_drafts_that_are_all_empty_need_no_expert(ledger, tokenizer):
    frame = revised(drafts_of(tokenizer, ("", "a red ring", SHA)), "http://127.0.0.1:9/v1", ledger, tokenizer)
    assert frame["error"].to_list() == ["empty_draft"]
