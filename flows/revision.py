"""What `redraft revise` and `redraft estimate` do with drafts that lie about: into the store, and to the expert."""

from functools import partial

from core.config import RunConfig
from core.errors import ConfigError, InputError
from core.manifest import Ref, has_table, read_manifest
from data_contracts import Corrections, Drafts
from flows.foundation import ingest_file
from flows.gathering import only, shards_of
from flows.self_correction import revise_shards
from tasks.adopt import AdoptConfig, adopt, keep_tokenizer
from tasks.workplace import Workplace


def drafts_of(config: RunConfig, place: Workplace, sources: list[Ref], tokenizer: str, parent: str) -> list[Ref]:
    """Datasets of drafts: those among `sources`, or shards made of corrections; without sources, of the user's file.

    Raises:
        InputError: a dataset holds neither drafts nor corrections.
        ConfigError: texts are to become drafts, and no tokenizer is named.
    """
    found: list[Ref] = []
    for source in sources or [ingest_file(config, place, parent)]:
        if has_table(place.store, source, Drafts):
            found.append(source)
        elif has_table(place.store, source, Corrections):
            found += _adopted(config, place, source, tokenizer, parent)
        else:
            raise InputError(
                f"{source.uri} holds no drafts: give a dataset of drafts, or a file of texts that a model wrote "
                "(ReDiff's {img, ques, ans, pred}, or {question, generations, ground_truth})"
            )
    return found


def revised(config: RunConfig, place: Workplace, drafts: list[Ref], parent: str) -> list[Ref]:
    """The expert's revisions, shard by shard."""
    by_tokenizer: dict[Ref, list[Ref]] = {}
    for shard in drafts:
        by_tokenizer.setdefault(_tokenizer_of(place, shard), []).append(shard)
    asked = {}
    for tokenizer, shards in by_tokenizer.items():
        asked |= dict(zip(shards, revise_shards(config, place, tokenizer, shards, parent), strict=True))
    return [asked[shard] for shard in drafts]


def _adopted(config: RunConfig, place: Workplace, corrections: Ref, folder: str, parent: str) -> list[Ref]:
    if not folder:
        raise ConfigError("corrections become drafts in a model's tokens: name the tokenizer's folder with --tokenizer")
    tokenizer = only(keep_tokenizer.submit(place, folder, parent=parent), "tokenizer")
    parts = read_manifest(place.store, corrections.uri).parts
    rows = sum(part.rows or 0 for part in parts if part.table == Corrections.table)
    size = config.draft.shard_size
    shards = [
        AdoptConfig(offset=at, length=min(size, rows - at), response_length=config.model.response_length)
        for at in range(0, rows, size)
    ]
    tasks = [partial(adopt.submit, place, shard, tokenizer, corrections, parent=parent) for shard in shards]
    return shards_of(place, "adopted shards", config.compute.threads, tasks)


def _tokenizer_of(place: Workplace, drafts: Ref) -> Ref:
    """What holds the tokenizer of a dataset of drafts: the model that wrote them, or what was kept with them."""
    parents = read_manifest(place.store, drafts.uri).parents
    known = [*parents.get("tokenizer", ()), *parents.get("model", ())]
    if not known:
        raise InputError(f"the manifest of {drafts.uri} names no model: whose tokens its drafts are is not known")
    return known[0]
