"""The verbs about data and models: into the store, pairs made of it, answers and their revision, and out again."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from core.ingest.settings import ExportName, FormatName
from flows.cli_options import DEFAULTS, POSITIVE, Config, Json, Limit, in_blocks


def ingest(
    file: Path,
    *,
    format_: Annotated[FormatName, Parameter(name="--format")] = "auto",
    config: Config = DEFAULTS,
    json: Json = False,
) -> int:
    """Read a file of image-text rows into the store: every row is accepted, or rejected with a reason.

    --images DIR (or s3://bucket/prefix) is what the file's image paths are relative to.

    Parameters
    ----------
    file
        JSON, JSON lines or Parquet.
    format_
        Its format; auto: found out by its first rows.
    json
        Print one line of JSON at the end, for machines.
    """
    from flows.stages import from_file, run_ingest

    return run_ingest(from_file(config, file, format_), json=json)


def pair(samples: str, *, config: Config = DEFAULTS, json: Json = False) -> int:
    """Make hallucination pairs: captions with exactly one object, attribute, count, place or relation made wrong.

    Parameters
    ----------
    samples
        A dataset of samples: its folder in the store, or the beginning of its digest.
    json
        Print one line of JSON at the end, for machines.
    """
    from flows.stages import run_pair

    return run_pair(config, samples, json=json)


def export(
    *datasets: str,
    format_: Annotated[ExportName, Parameter(name="--format")],
    out: Path,
    config: Config = DEFAULTS,
    json: Json = False,
) -> int:
    """Write datasets of the store in a format that other tools read.

    Parameters
    ----------
    datasets
        Their folders in the store, or the beginnings of their digests. Drafts and their revisions go together.
    format_
        rediff, llava, vicrit: JSON, with images beside it. parquet: the tables as they are. hf: a folder that
        datasets.load_dataset opens, with its splits and images.
    out
        The folder to write, or the file of a JSON format.
    json
        Print one line of JSON at the end, for machines.
    """
    from flows.exporting import run_export

    return run_export(config, datasets, format_, out, json=json)


def tokens(dataset: str, *, tokenizers: tuple[Path, ...], config: Config = DEFAULTS, json: Json = False) -> int:
    """Show which share of a dataset's hallucination pairs keeps its number of tokens, by tokenizer and by rule.

    Parameters
    ----------
    dataset
        A dataset with pairs: its folder in the store, or the beginning of its digest.
    tokenizers
        Folders of checkpoints or tokenizers.
    json
        Print one line of JSON at the end, for machines.
    """
    from flows.token_shares import show_token_shares

    return show_token_shares(config, dataset, tokenizers, json=json)


def compose(
    vision: Path,
    decoder: Path,
    *,
    out: Path,
    seed: int = 0,
    max_pixels: Annotated[int | None, Parameter(validator=POSITIVE)] = None,
) -> int:
    """Make one checkpoint of a vision tower and a decoder, joined by a new adapter that is still to be trained.

    Parameters
    ----------
    vision
        Folder of a SigLIP or SigLIP2 (of fixed resolution), Qwen2-VL or Qwen2.5-VL checkpoint.
    decoder
        Folder of a LLaDA or Dream checkpoint, whose tokenizer the model takes over.
    out
        The folder to write.
    seed
        Of the adapter.
    max_pixels
        Of an image, for a Qwen-VL's tower: larger ones are scaled down. Left out: as its preprocessor_config.json says.
    """
    from flows.composing import write_composition

    return write_composition(vision, decoder, out, seed=seed, max_pixels=max_pixels)


def draft(
    *,
    block_length: Annotated[int | None, Parameter(name=["--block_length", "--block_size"], validator=POSITIVE)] = None,
    config: Config = DEFAULTS,
    limit: Limit = None,
    json: Json = False,
) -> int:
    """Have a model answer: each sample at each of draft.settings, shard by shard; what is finished is not repeated.

    --model FOLDER is a checkpoint as published (LLaDA-V, LLaDA, Dream, a masked language model, ...), or one of the
    store. --data FILE is what `redraft ingest` reads, with --images DIR; or a dataset of samples in the store.
    --gen_length N and --max_new_tokens N are model.response_length.

    Parameters
    ----------
    block_length
        Of all draft.settings: tokens decoded before the next block starts.
    limit
        Draft for the first samples alone, so many at most.
    json
        Print one line of JSON at the end, for machines.
    """
    from flows.stages import run_draft

    return run_draft(in_blocks(config, block_length), limit=limit, json=json)


def revise(
    *drafts: str,
    tokenizer: Path | None = None,
    config: Config = DEFAULTS,
    json: Json = False,
) -> int:
    """Have the expert revise drafts, and align what it says to their tokens. Nothing is asked twice.

    Exit code 3: it stopped in order (a limit, or an endpoint that fails); the same command goes on from there.

    Parameters
    ----------
    drafts
        Datasets of drafts in the store (or the beginnings of their digests), or one file: ReDiff's
        {img, ques, ans, pred}, or texts {question, generations, ground_truth}.
    tokenizer
        For a file: the folder of the tokenizer of the model that wrote them.
    json
        Print one line of JSON at the end, for machines.
    """
    from flows.stages import run_revise

    return run_revise(config, drafts, tokenizer, json=json)


def estimate(
    *drafts: str,
    train: Annotated[bool, Parameter(negative="")] = False,
    memory_gb: float | None = None,
    image: tuple[int, int] = (640, 480),
    tokenizer: Path | None = None,
    config: Config = DEFAULTS,
    json: Json = False,
) -> int:
    """Say what revising drafts would take, before the first request: calls, tokens, cost; or what training would.

    Parameters
    ----------
    drafts
        As for `redraft revise`.
    train
        Say whether the trainings of a run fit into memory, and what would make them fit. Exit code 1: one does not.
    memory_gb
        With --train: memory of a process in GB; left out, that of this machine's GPU, or its share of the main memory.
    image
        With --train: width and height of the images, where the positions that they take depend on it.
    tokenizer
        As for `redraft revise`.
    json
        Print one line of JSON at the end, for machines.
    """
    if train:
        from flows.planning import run_planning

        return run_planning(config, memory_gb=memory_gb, image=image, json=json)
    from flows.estimating import run_estimate

    return run_estimate(config, drafts, tokenizer, json=json)
