"""Corruption (masks, one hallucination, syntax noise): tokens a second, against row by row and against bare draws.

python -m tests.benchmarks.bench_corruption --out tests/results/benchmarks/corruption.json

Counted are the response's tokens of the rows written: samples x draws x response length, prompts left out. From encoded
captions and pairs to a TrainingExamples frame in memory; the same from text to a committed dataset on disk, through
tokenizer, contract, Parquet and checksums, is reported beside it. Against
(a) plain: each row on its own with torch's random numbers, as the published training code does when it collates, of
    which a part of the rows is enough;
(b) the limit: three numpy uniforms for each token, and the writing of input, target and kinds, on the same threads.
Fails below 20 million tokens a second.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import torch
from transformers import PreTrainedTokenizerBase

from core.corruption.blocks import over_blocks
from core.corruption.captions import Captions, encode_captions
from core.corruption.mask import mask_captions
from core.corruption.pairs import Injections, encode_pairs
from core.corruption.responses import Vocabulary, vocabulary
from core.corruption.revision import revise_captions, revision_rows
from core.corruption.settings import MaskSettings, RevisionSettings
from core.stage import Output, Stage
from core.store import LocalStore
from data_contracts import TokenKind, TrainingExamples
from tests.benchmarks.paragraphs import large_tokenizer, samples_and_pairs
from tests.benchmarks.record import Ratio, alternate, record

TARGET = 20.0
_PLAIN_SAMPLES = 500


def plain(captions: Captions, injections: Injections, vocab: Vocabulary, draws: int, rate: float) -> int:
    """Rows one at a time, on a part of the samples. Returns their number."""
    ordinary = torch.from_numpy(vocab.ordinary_K)
    rows = []
    for sample in range(min(_PLAIN_SAMPLES, len(captions.clean_NL))):
        clean = torch.from_numpy(captions.clean_NL[sample])
        first, count = int(injections.first_N[sample]), int(injections.count_N[sample])
        for _ in range(draws):
            t = torch.rand(()) * (1 - 1e-3) + 1e-3
            masked = torch.rand(clean.shape) < t
            inputs, kinds = clean.clone(), torch.full(clean.shape, int(TokenKind.CLEAN), dtype=torch.int8)
            if count:
                changed = torch.from_numpy(injections.changed_PL[first + int(torch.randint(count, ()))])
                differs = (changed != clean) & ~masked
                inputs[differs], kinds[differs] = changed[differs], int(TokenKind.HALLUCINATION)
            noise = ordinary[torch.randint(len(ordinary), clean.shape)]
            hit = (torch.rand(clean.shape) < rate) & ~masked & (kinds == TokenKind.CLEAN) & (noise != clean)
            inputs[hit], kinds[hit] = noise[hit], int(TokenKind.SYNTAX)
            inputs[masked], kinds[masked] = vocab.mask, int(TokenKind.MASK)
            rows.append((inputs, clean, kinds, t))
    return len(rows)


def limit(clean_NL: np.ndarray, draws: int) -> None:
    """The random numbers and the writes alone: what no corruption of these rows can do without."""
    count, length = clean_NL.shape
    inputs, targets = (np.empty((count, draws, length), dtype=np.int32) for _ in range(2))
    kinds = np.empty((count, draws, length), dtype=np.int8)

    def block(rows: slice) -> None:
        generator = np.random.Generator(np.random.SFC64(rows.start))
        for draw in range(draws):
            for _ in range(3):
                generator.random((rows.stop - rows.start, length))
            inputs[rows, draw] = clean_NL[rows]
            targets[rows, draw] = clean_NL[rows]
            kinds[rows, draw] = 0

    over_blocks(count, length, block)


def whole_stage(
    samples: pl.DataFrame,
    pairs: pl.DataFrame,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    settings: RevisionSettings,
) -> None:
    """From text to a committed dataset in a folder."""
    with tempfile.TemporaryDirectory() as folder:
        output = Output(LocalStore(Path(folder)), Stage(name="corrupt", version=1, config=settings), Path(folder))
        corrupted = revision_rows(samples, pairs, tokenizer, response_length=length, seed=0, settings=settings)
        output.write(TrainingExamples, corrupted.examples, counted=False)
        output.reject_frame(corrupted.rejects)
        output.commit(rows_in=corrupted.rows_in, ok=corrupted.rows_ok)


def main() -> int:
    """Run, write the JSON, and return 0 if the target is reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--length", type=int, default=128, help="tokens of a response")
    parser.add_argument("--vocabulary", type=int, default=126_464)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()

    torch.set_num_threads(1)  # a row is too small to share: more threads make the plain way slower
    tokenizer = large_tokenizer(args.vocabulary)
    samples, pairs = samples_and_pairs(args.samples)
    captions, vocab = encode_captions(samples, tokenizer, args.length), vocabulary(tokenizer)
    injections = encode_pairs(captions, pairs, tokenizer)
    settings, masking = RevisionSettings(draws=args.draws), MaskSettings(draws=args.draws)
    of_part = plain(captions, injections, vocab, args.draws, settings.syntax_rate)
    timings = alternate(
        {
            "redraft": lambda: revise_captions(captions, injections, vocab, seed=0, settings=settings),
            "masks alone": lambda: mask_captions(captions, vocab, seed=0, settings=masking),
            "plain, a part": lambda: plain(captions, injections, vocab, args.draws, settings.syntax_rate),
            "limit": lambda: limit(captions.clean_NL, args.draws),
        },
        repeats=args.repeats,
    )
    stage = alternate(
        {"text to dataset": lambda: whole_stage(samples, pairs, tokenizer, args.length, settings)}, repeats=1, warm_up=0
    )
    rows = captions.samples.height * args.draws
    rate = {way: rows * args.length / timings.seconds(way) / 1e6 for way in ("redraft", "masks alone", "limit")}
    of_stage = rows * args.length / stage.seconds("text to dataset") / 1e6
    words = "masks, hallucinations and syntax noise"
    measured = {
        "rows": rows,
        "tokens": rows * args.length,
        "mean_text_tokens": round(float((captions.start_NL >= 0).sum(axis=1).mean()), 1),
        "samples_with_a_pair": int((injections.count_N > 0).sum()),
        "rows_of_the_plain_part": of_part,
        "threads": pl.thread_pool_size(),
        "million_tokens_per_second": {way: round(value, 2) for way, value in rate.items()},
        "seconds": {**timings.as_json, **stage.as_json},
    }
    ratios = [
        Ratio(what=f"Corruption: {words}", value=rate["redraft"], bound=TARGET, unit="M tokens/s"),
        Ratio(what="Corruption: masks alone", value=rate["masks alone"], unit="M tokens/s"),
        Ratio(
            what="Corruption against row by row",
            value=timings.ratio("plain, a part", "redraft") * rows / of_part,
        ),
        Ratio(
            what="Corruption: time over bare random numbers and writes",
            value=timings.ratio("redraft", "limit"),
            kind="at most",
        ),
        Ratio(what="Corruption from text to a dataset on disk, tokenizer included", value=of_stage, unit="M tokens/s"),
    ]
    sizes = {"samples": args.samples, "draws": args.draws, "length": args.length, "vocabulary": args.vocabulary}
    return record(
        args.out,
        "corruption",
        settings={**sizes, "repeats": args.repeats},
        measured=measured,
        ratios=ratios,
        packages=("numpy", "polars", "torch"),
    )


if __name__ == "__main__":
    sys.exit(main())
