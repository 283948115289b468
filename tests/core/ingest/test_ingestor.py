"""Rows to samples: what is resumed, what runs side by side, and what several rows share."""

import hashlib
import threading
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.ingest.notebook import ImageFate, Notebook
from core.ingest.rows import RawCorrection, RawPair, RawRow
from core.ingest.samples import IngestBatch, Ingestor
from core.ingest.settings import IngestSettings
from core.ingest.sources import FolderImages
from data_contracts import Corrections, HallucinationPairs, Samples

IMAGES = Path(__file__).parents[2] / "data" / "ingest" / "images"
NAMES = sorted(path.name for path in IMAGES.iterdir())
ROWS = [RawRow(place=f"f:{i}", image=NAMES[i % len(NAMES)], prompt="What?", reference=f"It is {i}.") for i in range(60)]
ASCII = st.text(st.characters(min_codepoint=32, max_codepoint=126))
UTF_8 = st.text(st.characters(codec="utf-8"))


class CountingImages(FolderImages):
    """A folder that knows what was read, and is lost after `lives` reads."""

    def __init__(self, root, lives=10**9):
        super().__init__(root)
        self.reads = Counter()
        self._left, self._lock = lives, threading.Lock()

    def read(self, relative, **options):
        with self._lock:
            self._left -= 1
            if self._left < 0:
                raise KeyboardInterrupt
            self.reads[relative] += 1
        return super().read(relative, **options)


def put(data):
    return hashlib.sha256(data).hexdigest()


def ingest(rows, *, images=None, notebook=None, threads=2, **options) -> IngestBatch:
    ingestor = Ingestor(
        images=images or FolderImages(IMAGES),
        put_image=put,
        settings=IngestSettings(**options),
        notebook=notebook,
        threads=threads,
    )
    batches = list(ingestor.batches(rows))
    names = ("samples", "pairs", "corrections", "rejects")
    tables = {name: pl.concat([getattr(batch, name) for batch in batches]) for name in names}
    return IngestBatch(**tables, rows_in=sum(batch.rows_in for batch in batches))


def equal(one: IngestBatch, other: IngestBatch) -> bool:
    return one.samples.equals(other.samples) and one.rejects.equals(other.rejects)


def test_an_image_is_read_once_however_many_rows_name_it():
    images = CountingImages(IMAGES)
    found = ingest(ROWS, images=images, batch_rows=7)
    assert set(images.reads.values()) == {1}
    assert found.rows_in == len(ROWS) == found.ok + found.rejects.height
    assert found.ok > len(ROWS) // 2


def test_neither_threads_nor_batches_change_anything():
    assert equal(ingest(ROWS, threads=1, batch_rows=1), ingest(ROWS, threads=4, batch_rows=1000))


def test_what_was_looked_at_before_a_kill_is_not_looked_at_again(tmp_path):
    whole = ingest(ROWS)
    images = CountingImages(IMAGES, lives=len(NAMES) // 2)
    with pytest.raises(KeyboardInterrupt):
        ingest(ROWS, images=images, notebook=Notebook(tmp_path / "notes.db"), batch_rows=1, threads=1)
    again = CountingImages(IMAGES)
    resumed = ingest(ROWS, images=again, notebook=Notebook(tmp_path / "notes.db"), batch_rows=1)
    assert equal(whole, resumed)
    assert len(images.reads) == len(NAMES) // 2
    assert images.reads.keys().isdisjoint(again.reads)


def test_image_bytes_inside_the_file_are_used():
    data = (IMAGES / "dev-1021-0-0.png").read_bytes()
    rows = [RawRow(place="f:0", image="some name", image_bytes=data, prompt="What?", reference="A thing.")]
    rows += [RawRow(place="f:1", image=None, image_bytes=b"no image", prompt="What?", reference="Nothing.")]
    found = ingest(rows)
    assert found.samples["image_sha"].to_list() == [hashlib.sha256(data).hexdigest()]
    assert found.rejects["reason"].to_list() == ["not_an_image"]


def test_without_an_image_folder_text_alone_can_be_had():
    rows = [RawRow(place=f"f:{i}", image=f"{i // 2}.png", prompt="What?", reference=f"It is {i}.") for i in range(400)]
    ingestor = Ingestor(images=None, put_image=put, settings=IngestSettings(text_only=True, train=0.5, dev=0.25))
    samples = next(ingestor.batches(rows)).samples
    assert samples["image_sha"].null_count() == samples.height == 400
    assert samples["split"].unique().len() == 3
    of_one_image = (
        samples.with_columns(image=pl.int_range(pl.len()) // 2).group_by("image").agg(pl.col("split").n_unique())
    )
    assert of_one_image["split"].to_list() == [1] * 200
    strict = Ingestor(images=None, put_image=put, settings=IngestSettings())
    assert set(next(strict.batches(rows)).rejects["reason"]) == {"missing_image"}


def pair_row(place, changed="a blue ring", target="blue"):
    pair = RawPair(changed=changed, start=2, end=5, target=target, kind="attribute")
    return RawRow(place=place, image=None, prompt="What?", reference="a red ring", pair=pair)


def test_a_sample_that_pairs_share_is_written_once():
    rows = [pair_row("f:0"), pair_row("f:1", "a pink ring", "pink"), pair_row("f:2")]
    for size in (1, 3):
        found = ingest(rows, text_only=True, batch_rows=size)
        assert found.samples["reference"].to_list() == ["a red ring"]
        assert found.pairs["solution_target"].to_list() == ["blue", "pink"]
        assert set(found.pairs["sample_id"]) == set(found.samples["sample_id"])
        assert found.pairs["solution_original"].to_list() == ["red", "red"]
        assert found.rejects["reason"].to_list() == ["duplicate"]
        assert (found.ok, found.rows_in) == (2, 3)
        HallucinationPairs.validate(found.pairs)
        Samples.validate(found.samples)


def test_corrections_are_kept_to_the_letter():
    correction = RawCorrection(
        layout="conversations",
        question="<image>\n What? ",
        answer=None,
        draft=" a red red ring\n",
        verdict="revised",
        segments=(("red red", "red"),),
        extra='{"id": 7}',
    )
    row = RawRow(place="f:0", image=None, prompt="What?", reference="a red ring", correction=correction)
    unknown = row._replace(reference="")
    found = ingest([row, row, unknown], text_only=True)
    assert found.samples["reference"].to_list() == ["a red ring"]
    assert found.corrections["sample_id"].to_list() == [found.samples["sample_id"][0], None]
    Corrections.validate(found.corrections)
    kept = found.corrections.row(0, named=True)
    assert (kept["question"], kept["draft"], kept["extra"]) == ("<image>\n What? ", " a red red ring\n", '{"id": 7}')
    assert kept["segments"] == [{"org": "red red", "target": "red"}]
    assert found.rejects["reason"].to_list() == ["duplicate"]


@given(batches=st.lists(st.lists(st.integers(0, 2**63 - 1) | st.integers(0, 5), max_size=6), max_size=6))
def test_the_notebook_tells_what_is_new(batches):
    notebook, seen = Notebook(), set()
    for batch in batches:
        assert notebook.unseen(batch) == set(batch) - seen
        seen |= set(batch)


@given(fates=st.dictionaries(ASCII, st.tuples(st.none() | ASCII, ASCII, UTF_8)))
def test_the_notebook_keeps_fates(fates):
    notebook = Notebook()
    kept = {image: ImageFate(*fate) for image, fate in fates.items()}
    notebook.note(kept)
    assert notebook.fates([*kept, "another one"]) == kept


@pytest.mark.parametrize("name", ["a\0b.png", "\udcff.png", "a\\0b.png", "x" * 5000])
def test_names_that_break_software_are_missing_images(name):
    rows = [RawRow(place=f"f:{i}", image=image, prompt="What?", reference="x") for i, image in enumerate([name, "a"])]
    assert ingest(rows).rejects["reason"].to_list() == ["missing_image"] * 2


def test_a_url_is_a_remote_image_even_without_an_image_folder():
    row = RawRow(place="f:0", image="https://example.com/a.png", prompt="What?", reference="x")
    ingestor = Ingestor(images=None, put_image=put, settings=IngestSettings())
    assert next(ingestor.batches([row])).rejects["reason"].to_list() == ["remote_image"]


def test_image_bytes_have_a_limit():
    data = (IMAGES / "dev-1021-0-0.png").read_bytes()
    row = RawRow(place="f:0", image=None, image_bytes=data, prompt="What?", reference="x")
    assert ingest([row], max_bytes=len(data) - 1).rejects["reason"].to_list() == ["image_too_large"]


def test_texts_of_one_prompt_are_spread_over_the_splits():
    rows = [RawRow(place=f"f:{i}", image=None, prompt="What?", reference=f"It is {i}.") for i in range(300)]
    found = ingest(rows, text_only=True, train=0.5, dev=0.25)
    assert set(found.samples["split"]) == {"train", "dev", "test"}


@pytest.mark.parametrize("token", ["</s>", "[gMASK]", "<|image_pad|>"])
def test_control_tokens_of_the_common_models_are_rejected(token):
    row = RawRow(place="f:0", image=NAMES[0], prompt="What?", reference=f"a {token} b")
    assert ingest([row]).rejects["reason"].to_list() == ["control_token"]
