"""Assembly: training rows a second from drafts, revisions and replayed rows, against row by row and against copying.

python -m tests.benchmarks.bench_assembly --out tests/results/benchmarks/assembly.json

From Drafts, Revisions and the rows to replay, all in memory, to the TrainingExamples frame that stage 2 trains on, by
the published input (the whole draft) and by trajectory states, with the scene world's grounding asked for as `redraft
run` does. The whole stage, which reads its inputs from a store and commits a dataset to it, is reported beside it.
Against
(a) plain: a dictionary of revisions and one Python loop over the rows, as the published code builds its JSON;
(b) the limit: copying the values of the same columns into a new frame.
Fails below 100,000 rows a second.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
from transformers import PreTrainedTokenizerBase

from core.corruption.refine import draft_columns, refine_rows
from core.corruption.replay import mix_replay
from core.corruption.revision import revision_rows
from core.corruption.rows import list_series
from core.corruption.settings import RefineSettings, RevisionSettings
from core.manifest import Ref, read_table
from core.stage import Output, Stage
from core.store import LocalStore, Store
from core.worlds.scenes_grounding import ground
from data_contracts import Contract, Drafts, Revisions, TokenKind, TrainingExamples
from tests.benchmarks.drafted import drafts_and_revisions
from tests.benchmarks.paragraphs import large_tokenizer, samples_and_pairs
from tests.benchmarks.record import Ratio, alternate, record

TARGET = 100.0
SHARE = 0.25
"""Of the rows, replayed."""
LISTS = ("input_ids", "target_ids", "kinds")


def assembled(
    drafts: pl.DataFrame,
    revisions: pl.DataFrame,
    replay: pl.DataFrame,
    tokenizer: PreTrainedTokenizerBase,
    settings: RefineSettings,
) -> pl.DataFrame:
    """What the stage computes."""
    refined = refine_rows(drafts, revisions, tokenizer, seed=0, scope="mistakes", settings=settings, ground=ground)
    return mix_replay(refined.examples, replay, share=SHARE, seed=0)


def plain(drafts: pl.DataFrame, revisions: pl.DataFrame, replay: pl.DataFrame, mask: int) -> pl.DataFrame:
    """The published input, one row at a time."""
    revised = {row["draft_id"]: row for row in revisions.iter_rows(named=True)}
    rows = []
    for draft in drafts.iter_rows(named=True):
        target = revised[draft["draft_id"]]["target_ids"]
        kinds = [
            TokenKind.MASK if one == mask else TokenKind.CLEAN if one == other else TokenKind.MISTAKE
            for one, other in zip(draft["token_ids"], target, strict=True)
        ]
        prompt = draft["prompt_ids"]
        rows.append(
            {
                "example_id": f"{draft['draft_id']}/refine/0",
                "sample_id": draft["sample_id"],
                "image_sha": draft["image_sha"],
                "input_ids": prompt + draft["token_ids"],
                "target_ids": prompt + target,
                "kinds": [int(TokenKind.PROMPT)] * len(prompt) + [int(kind) for kind in kinds],
                "t": sum(kind == TokenKind.MASK for kind in kinds) / len(kinds),
                "recipe": "refine",
                "origin": "draft",
                "round": draft["round"],
                "parents": [draft["draft_id"]],
            }
        )
    count = round(len(rows) * SHARE / (1 - SHARE))
    rows += replay.head(count).to_dicts()
    return pl.DataFrame(rows, schema=TrainingExamples.create_empty().schema)


def copied(frame: pl.DataFrame) -> pl.DataFrame:
    """The same frame of copied values."""
    offsets = np.concatenate([[0], frame["input_ids"].list.len().cum_sum().to_numpy()]).astype(np.int64)
    lists = {name: list_series(frame[name].explode().to_numpy().copy(), offsets) for name in LISTS}
    return frame.drop(LISTS).hstack([values.alias(name) for name, values in lists.items()])


def stored(store: Store, table: type[Contract], frame: pl.DataFrame, folder: Path) -> Ref:
    """A dataset of one table."""
    output = Output(store, Stage(name=table.table, version=1, config=RefineSettings()), folder)
    output.write(table, frame)
    return output.commit(rows_in=frame.height)


def whole_stage(
    store: Store, refs: tuple[Ref, Ref, Ref], tokenizer: PreTrainedTokenizerBase, settings: RefineSettings, folder: Path
) -> None:
    """From stored tables to a stored table."""
    drafts = read_table(store, refs[0], Drafts, columns=draft_columns(settings))
    revisions, replay = read_table(store, refs[1], Revisions), read_table(store, refs[2], TrainingExamples)
    frame = assembled(drafts, revisions, replay, tokenizer, settings)
    output = Output(store, Stage(name="assemble", version=1, config=settings), folder)
    output.write(TrainingExamples, frame)
    output.commit(rows_in=frame.height)


def main() -> int:
    """Run, write the JSON, and return 0 if the target is reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--drafts", type=int, default=20_000)
    parser.add_argument("--length", type=int, default=128, help="tokens of a response")
    parser.add_argument("--vocabulary", type=int, default=126_464)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()

    tokenizer = large_tokenizer(args.vocabulary)
    drafts, revisions = drafts_and_revisions(args.drafts, tokenizer, args.length)
    samples, pairs = samples_and_pairs(args.drafts // 2)
    replay = revision_rows(
        samples, pairs, tokenizer, response_length=args.length, seed=0, settings=RevisionSettings()
    ).examples
    published, trajectory = RefineSettings(), RefineSettings(input="trajectory")
    frame = assembled(drafts, revisions, replay, tokenizer, published)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = LocalStore(folder)
        tables = ((Drafts, drafts), (Revisions, revisions), (TrainingExamples, replay))
        refs = tuple(stored(store, table, one, folder) for table, one in tables)
        timings = alternate(
            {
                "published": lambda: assembled(drafts, revisions, replay, tokenizer, published),
                "trajectory": lambda: assembled(drafts, revisions, replay, tokenizer, trajectory),
                "plain": lambda: plain(drafts, revisions, replay, tokenizer.mask_token_id),
                "limit": lambda: copied(frame),
                "whole stage": lambda: whole_stage(store, refs, tokenizer, published, folder),
            },
            repeats=args.repeats,
        )
    rate = {way: frame.height / timings.seconds(way) / 1e3 for way in timings.of}
    measured = {
        "rows": frame.height,
        "replayed": frame.filter(pl.col("recipe") != "refine").height,
        "segments_a_draft": round(revisions["segments"].list.len().mean(), 2),
        "threads": pl.thread_pool_size(),
        "thousand_rows_per_second": {way: round(value, 2) for way, value in rate.items()},
        "seconds": timings.as_json,
    }
    unit = "k rows/s"
    ratios = [
        Ratio(what="Assembly of training rows from whole drafts", value=rate["published"], bound=TARGET, unit=unit),
        Ratio(what="Assembly from trajectory states", value=rate["trajectory"], bound=TARGET, unit=unit),
        Ratio(what="Assembly from a dataset on disk to one on disk", value=rate["whole stage"], unit=unit),
        Ratio(what="Assembly against row by row", value=timings.ratio("plain", "published")),
        Ratio(
            what="Assembly: time over copying the columns", value=timings.ratio("published", "limit"), kind="at most"
        ),
    ]
    sizes = {"drafts": args.drafts, "length": args.length, "vocabulary": args.vocabulary, "repeats": args.repeats}
    return record(
        args.out, "assembly", settings=sizes, measured=measured, ratios=ratios, packages=("numpy", "polars", "pyarrow")
    )


if __name__ == "__main__":
    sys.exit(main())
