import numpy as np
import polars as pl
from polars.testing import assert_frame_equal

from core.decoding.settings import DecodeSettings
from core.decoding.trace import replay
from core.drafting import ANSWER_COLUMNS, Drafted, answer, draft
from core.errors import RowError
from core.models.text import decode_response
from data_contracts import Drafts, Traces
from tests.core.decoding.tiny import WORDS, TinyDenoiser

LENGTH = 12
SETTINGS = tuple(DecodeSettings.parse(name) for name in ("4+3 refine", "3 freeze", "2 refine margin=0.1"))
N = 11


def samples_of(count: int = N) -> pl.DataFrame:
    generator = np.random.default_rng(0)
    prompts = [" ".join(generator.choice(WORDS, generator.integers(1, 6))) for _ in range(count)]
    return pl.DataFrame(
        {
            "sample_id": [f"s-{index}" for index in range(count)],
            "image_sha": [None if index % 4 == 3 else f"{index:064x}" for index in range(count)],
            "prompt": prompts,
            "reference": [f"{WORDS[0]} {WORDS[1]}"] * count,
        }
    )


def load_image(sha: str) -> np.ndarray:
    return np.random.default_rng(int(sha, 16)).integers(0, 256, (2, 2, 3), dtype=np.uint8)


def draft_all(samples: pl.DataFrame, *, batch_size: int = 4, load=load_image, model=None, traces: int = 3) -> Drafted:
    return draft(
        model or TinyDenoiser(),
        samples,
        SETTINGS,
        load_image=load,
        response_length=LENGTH,
        batch_size=batch_size,
        round_index=2,
        model_digest="digest",
        trace_samples=traces,
    )


def test_every_sample_is_drafted_at_every_setting_in_order() -> None:
    samples = samples_of()
    drafted = draft_all(samples)
    Drafts.validate(drafted.drafts)
    Traces.validate(drafted.traces)
    assert drafted.rejects.is_empty()
    assert list(drafted.drafts.select("sample_id", "setting").iter_rows()) == [
        (sample, setting.name) for sample in samples["sample_id"] for setting in SETTINGS
    ]
    assert drafted.drafts["nfe"].to_list() == [3 + 3, 4, 6] * N
    assert drafted.drafts["round"].unique().to_list() == [2]
    first = drafted.drafts.row(0, named=True)
    assert first["draft_id"] == "s-0/r2/4+3 refine"
    model = TinyDenoiser()
    assert first["prompt_ids"] == model.tokenizer(samples["prompt"][0])["input_ids"]
    assert (first["reference"], first["image_sha"]) == (samples["reference"][0], samples["image_sha"][0])


def test_replaying_the_writes_gives_the_token_ids_and_the_text() -> None:
    tokenizer = TinyDenoiser().tokenizer
    drafts = draft_all(samples_of()).drafts
    assert len(set(drafts["text"])) > N
    for row in drafts.iter_rows(named=True):
        order = [(write["step"], write["position"]) for write in row["writes"]]
        assert order == sorted(set(order))
        assert max(step for step, _ in order) < row["nfe"]
        ids = replay(row["writes"], response_length=LENGTH, mask_id=tokenizer.mask_token_id)
        assert ids.tolist() == row["token_ids"]
        response = decode_response(tokenizer, row["token_ids"])
        assert (response.text, response.char_start, response.char_end) == (
            row["text"],
            row["char_start"],
            row["char_end"],
        )


def test_batch_size_does_not_change_a_draft() -> None:
    samples = samples_of()
    assert_frame_equal(draft_all(samples, batch_size=1).drafts, draft_all(samples, batch_size=64).drafts)


def test_a_resumed_shard_repeats_its_drafts() -> None:
    shard = samples_of()[4:8]
    first, again = draft_all(shard), draft_all(shard)
    assert_frame_equal(first.drafts, again.drafts)
    assert_frame_equal(first.traces, again.traces)


def test_traces_are_the_writes_of_the_first_samples() -> None:
    drafted = draft_all(samples_of(), traces=3)
    traced = drafted.drafts.filter(pl.col("sample_id").is_in(["s-0", "s-1", "s-2"]))
    writes = traced.select("sample_id", "setting", "writes").explode("writes").unnest("writes")
    expected = writes.select("sample_id", "setting", "step", "position", pl.col("token").alias("new"))
    assert_frame_equal(drafted.traces.select(expected.columns), expected, check_dtypes=False)
    assert drafted.traces["confidence"].is_between(0, 1, closed="right").all()
    mask = TinyDenoiser().tokenizer.mask_token_id
    reveals = drafted.traces["action"] == "reveal"
    assert (reveals == (drafted.traces["old"] == mask)).all()
    assert reveals.sum() == 3 * len(SETTINGS) * LENGTH
    assert draft_all(samples_of(), traces=0).traces.is_empty()


def test_an_unusable_image_or_prompt_is_a_reject_and_changes_no_other_row() -> None:
    samples = samples_of()

    def load(sha: str) -> np.ndarray:
        if int(sha, 16) == 5:
            raise RowError("image_missing", sha)
        return load_image(sha)

    broken = samples.with_columns(
        pl.when(pl.col("sample_id") == "s-2").then(pl.lit("nowhere")).otherwise("prompt").alias("prompt")
    )
    drafted = draft_all(broken, load=load)
    assert drafted.drafts.height + drafted.rejects.height == N * len(SETTINGS)
    assert set(drafted.rejects.select("row_id", "reason").iter_rows()) == {
        (f"{sample}/r2/{setting.name}", reason)
        for setting in SETTINGS
        for sample, reason in (("s-2", "unknown_token"), ("s-5", "image_missing"))
    }
    good = draft_all(samples).drafts.filter(~pl.col("sample_id").is_in(["s-2", "s-5"]))
    assert_frame_equal(drafted.drafts, good)


def test_no_usable_row_gives_empty_frames_of_the_contract() -> None:
    def load(sha: str) -> np.ndarray:
        raise RowError("image_missing", sha)

    drafted = draft_all(samples_of().filter(pl.col("image_sha").is_not_null()), load=load)
    Drafts.validate(drafted.drafts)
    assert drafted.drafts.is_empty()
    assert drafted.traces.is_empty()


def test_an_image_is_encoded_once_for_all_steps_and_settings() -> None:
    model, samples = TinyDenoiser(), samples_of()
    draft_all(samples, model=model)
    assert model.images_seen == samples["image_sha"].count()


def test_answers_are_the_texts_of_the_drafts() -> None:
    samples = samples_of()
    answered = answer(TinyDenoiser(), samples, SETTINGS, load_image=load_image, response_length=LENGTH, batch_size=4)
    assert answered.answers.schema == ANSWER_COLUMNS
    assert_frame_equal(answered.answers, draft_all(samples).drafts.select(*ANSWER_COLUMNS))


def test_what_a_draft_was_given_and_how_many_forwards_it_took_are_told() -> None:
    early, given, guided = (
        DecodeSettings.parse(name)
        for name in ("1 freeze threshold=0.9", "4 refine beginning=w01,w02 suffix=w03", "5 freeze cfg_scale=1.0")
    )
    model = TinyDenoiser()
    drafted = draft(
        model, samples_of(), [early, given, guided], load_image=load_image, response_length=LENGTH, batch_size=4,
        round_index=0, model_digest="digest", trace_samples=2,
    )  # fmt: skip
    Traces.validate(drafted.traces)
    for row in Drafts.validate(drafted.drafts).to_dicts():
        start, end = (
            replay(row["writes"], response_length=LENGTH, mask_id=model.tokenizer.mask_token_id, steps=steps).tolist()
            for steps in (0, None)
        )
        assert end == row["token_ids"]
        blank = [model.tokenizer.mask_token_id] * LENGTH
        assert start == ([1, 2, *blank[3:], 3] if row["setting"] == given.name else blank)
    nfe = {name: part["nfe"] for (name,), part in drafted.drafts.partition_by("setting", as_dict=True).items()}
    assert nfe[guided.name].to_list() == [2 * 3] * N
    assert nfe[early.name].n_unique() > 1, "rows are done at their own time"
    assert nfe[early.name].max() <= LENGTH
