"""The verbs that run one stage of the line on its own, as tasks of a flow, as in a whole run."""

import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import orjson
from rich.console import Console
from rich.table import Table

from core.config import RunConfig
from core.errors import ConfigError, InputError
from core.expert.request import load_prompt
from core.ingest.formats import format_of
from core.ingest.settings import FormatName
from core.manifest import Kind, Manifest, Ref, read_manifest
from core.store import Store
from flows.inspecting import find_ref
from flows.running import DONE, FAILED, PARTIAL, emit, is_partial, reason_of, say
from flows.session import session, workplace
from tasks.workplace import Workplace

Verb = Literal["ingest", "pair", "draft", "adopt", "revise"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a stage's flow ended. `code`: the exit code; without outputs unless it is DONE."""

    run: str
    code: int
    place: Workplace
    outputs: tuple[Ref, ...] = ()


def run_ingest(config: RunConfig, *, json: bool) -> int:
    """The verb `ingest`."""
    if config.data.source == "scenes" or not config.data.path:
        raise ConfigError("name the file to ingest: redraft ingest FILE --images FOLDER")
    return _run("ingest", config, (), json=json)


def run_pair(config: RunConfig, samples: str, *, json: bool) -> int:
    """The verb `pair`."""
    return _run("pair", config, (find_ref(workplace(config.place).store, samples),), json=json)


def run_draft(config: RunConfig, *, limit: int | None = None, json: bool) -> int:
    """The verb `draft`: by the checkpoint `model.checkpoint`, for the data `data.path`; each may be in the store.

    limit: samples at most, the first ones; None: all.

    Raises:
        InputError: one of them is neither a file or folder nor in the store, or the checkpoint cannot be used.
        ConfigError: one of them is not named, there is no such device, or the model cannot read the images.
    """
    from flows.preflight import check_model
    from tasks.compute import device_names

    if not config.model.checkpoint or not config.data.path:
        raise ConfigError("name the model and the data: redraft draft --model FOLDER --data FILE --images FOLDER")
    place, known = workplace(config.place), config
    sources: list[Ref] = []
    if Path(config.model.checkpoint).is_dir():
        check_model(config)
    else:
        sources.append(_in_store(place.store, config.model.checkpoint, "checkpoint"))
        _tell_of_another_world(config, place.store, sources[0])
        if (config.model.system, config.model.prompt_attention) != (None, None):
            raise ConfigError(
                "model.system and model.prompt_attention are for a checkpoint that comes into the store; this one is "
                f"there as it is. To change them name its folder, {place.store.uri}/{sources[0].uri}"
            )
    device_names(config.compute.devices)
    if Path(config.data.path).is_file():
        known = from_file(config, Path(config.data.path), _format(config))
    else:
        sources.append(_in_store(place.store, config.data.path, "dataset"))
    return _run("draft", known, sources, json=json, limit=limit)


def _tell_of_another_world(config: RunConfig, store: Store, model: Ref) -> None:
    """The scenes' configuration has models answer shortly; for other models than theirs it may be nobody's choice."""
    if config.name != "scenes":
        return
    model_type = orjson.loads(store.read(f"{model.uri}/config.json"))["model_type"]
    if model_type != "scene_denoiser":
        say(
            f"{model.uri} is a {model_type}; the configuration {config.name} has it answer in "
            f"{config.model.response_length} tokens. For published models, and what was made of them, there is "
            "--config checkpoint"
        )


def _format(config: RunConfig) -> FormatName:
    return "auto" if config.data.source == "scenes" else config.data.source


def _in_store(store: Store, path: str, kind: Kind) -> Ref:
    """The output called `path`, of which the command line may have made a path from the root on."""
    name = os.path.relpath(path)
    try:
        found = find_ref(store, name)
    except InputError as error:
        what = "folder" if kind == "checkpoint" else "file"
        raise InputError(f"there is no {what} {name!r}, and {error}") from None
    if found.kind != kind:
        raise InputError(f"{found.uri} is a {found.kind}, but a {kind} is needed")
    return found


def run_revise(config: RunConfig, sources: Sequence[str], tokenizer: Path | None, *, json: bool) -> int:
    """The verb `revise`."""
    known, refs = drafts_named(config, sources, tokenizer)
    return _run("revise", known, refs, json=json, tokenizer=tokenizer)


def drafts_named(
    config: RunConfig, sources: Sequence[str], tokenizer: Path | None
) -> tuple[RunConfig, tuple[Ref, ...]]:
    """What the user calls drafts: datasets of the store, or one file, which the configuration then names.

    Raises:
        InputError: there is no such file or dataset, or a file among several sources.
        ConfigError: nothing is named, a file comes without a tokenizer, or there are no such instructions.
    """
    if not sources:
        raise ConfigError("name the drafts: a dataset of the store, or a file")
    load_prompt(config.expert.prompt)  # not after servers and ingestion
    if tokenizer is not None and not tokenizer.is_dir():
        raise ConfigError(f"--tokenizer {tokenizer} is no folder")
    files = [Path(source) for source in sources if Path(source).is_file()]
    if not files:
        return config, tuple(_in_store(workplace(config.place).store, source, "dataset") for source in sources)
    if len(sources) > 1:
        raise InputError(f"give one file, or several datasets of the store; {files[0]} is a file")
    if tokenizer is None:
        raise ConfigError("texts become drafts in a model's tokens: name the folder of its tokenizer with --tokenizer")
    return from_file(config, files[0], "auto"), ()


def from_file(config: RunConfig, file: Path, format_: FormatName) -> RunConfig:
    """The configuration with `file` as its data. Texts of a language model have no images, and need none."""
    data = config.data.model_copy(update={"source": format_, "path": str(file.resolve())})
    text_only = config.ingest.text_only or format_of(format_, file) == "generations"
    ingest = config.ingest.model_copy(update={"text_only": text_only})
    return config.model_copy(update={"data": data, "ingest": ingest})


def _run(
    verb: Verb,
    config: RunConfig,
    sources: Sequence[Ref],
    *,
    json: bool,
    tokenizer: Path | None = None,
    limit: int | None = None,
) -> int:
    started = time.monotonic()
    with staged(verb, config, sources, tokenizer, limit=limit, json=json) as outcome:
        if outcome.code != DONE:
            return outcome.code
        seconds = time.monotonic() - started
        return show_outputs(verb, outcome.run, outcome.place.store, outcome.outputs, seconds, json=json)


@contextmanager
def staged(
    verb: Verb,
    config: RunConfig,
    sources: Sequence[Ref],
    tokenizer: Path | None = None,
    *,
    limit: int | None = None,
    json: bool,
) -> Iterator[Outcome]:
    """Run a stage, with servers around it that stay until the block ends. A failure is told to the user here."""
    started, name = time.monotonic(), f"{verb}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    asks = verb == "revise" or (verb == "pair" and config.pair.by == "expert")
    with session(config, expert=asks) as place:
        from flows.lost_runs import mark_lost_runs
        from flows.one_stage import one_stage
        from flows.preflight import preflight
        from tasks.narration import narrated

        if asks:
            preflight(config, place)
        mark_lost_runs()
        with narrated():
            state = one_stage(
                config=config.model_dump(mode="json"),
                place=place.model_dump(mode="json"),
                run=name,
                verb=verb,
                sources=list(sources),
                command=shlex.join(["redraft", *sys.argv[1:]]),
                tokenizer=str(tokenizer.resolve()) if tokenizer else "",
                limit=limit,
                return_state=True,
            )
        if state.is_completed():
            yield Outcome(run=name, code=DONE, place=place, outputs=tuple(state.result()))
            return
        partial = is_partial(state)
        say(f"{name} {'stopped' if partial else 'failed'}: {reason_of(state)}", style="red")
        say("What is finished is kept. Mend the cause, then give the command again.")
        if json:
            seconds = round(time.monotonic() - started, 1)
            emit({"verb": verb, "run": name, "outputs": [], "error": reason_of(state), "seconds": seconds})
        yield Outcome(run=name, code=PARTIAL if partial else FAILED, place=place)


def show_outputs(verb: str, run: str, store: Store, refs: Sequence[Ref], seconds: float, *, json: bool) -> int:
    """The account of datasets, together, for people and, if asked, as one line of JSON."""
    manifests = [read_manifest(store, ref.uri) for ref in refs]
    counts = [manifest.counts for manifest in manifests]
    dropped = {
        outcome: dict(sum((Counter(getattr(one, outcome)) for one in counts), Counter[str]()))
        for outcome in ("rejected", "failed")
    }
    table = Table("rows", "outcome", box=None, pad_edge=False)
    table.columns[0].justify = "right"
    table.add_row(f"{sum(one.rows_in for one in counts):,}", "in")
    table.add_row(f"{sum(one.ok for one in counts):,}", "ok")
    for outcome, reasons in dropped.items():
        for reason, number in sorted(reasons.items(), key=lambda item: -item[1]):
            table.add_row(f"{number:,}", f"{outcome}: {reason}")
    console = Console()
    console.print(table)
    for ref, manifest in zip(refs, manifests, strict=True):
        held = ", ".join(f"{rows:,} {name}" for name, rows in _tables(manifest).items())
        console.print(f"{ref.uri}  ({ref.digest[:12]}): {held}", highlight=False, soft_wrap=True)
    facts = _facts(manifests)
    for line in [*_of_memory(facts), *_of_the_expert(facts)]:
        console.print(line, highlight=False)
    if verb == "draft":
        console.print(f"to have them corrected: redraft revise {' '.join(ref.uri for ref in refs)}", soft_wrap=True)
    if json:
        account = {"ok": sum(one.ok for one in counts), **dropped}
        outputs = [ref.model_dump() for ref in refs]
        line = {"verb": verb, "run": run, "outputs": outputs, "counts": account, "seconds": round(seconds, 1)}
        emit(line | {"cost_usd": facts.get("cost_usd")})
    return DONE


def _facts(manifests: Sequence[Manifest]) -> dict[str, float]:
    """The numeric facts of all manifests, added up; one that is unknown anywhere is left out."""
    known = [manifest.facts for manifest in manifests]
    names = set.intersection(*(set(facts) for facts in known)) if known else set[str]()
    usable = [name for name in names if all(isinstance(facts[name], int | float) for facts in known)]
    return {name: sum(facts[name] for facts in known) for name in usable}


def _of_memory(facts: dict[str, float]) -> list[str]:
    """Whether drafting ran out of it."""
    if not facts.get("batches_halved"):
        return []
    return [f"out of memory {facts['batches_halved']:,} times, each time going on with half the rows at a time"]


def _of_the_expert(facts: dict[str, float]) -> list[str]:
    """What the expert said and what it took, in words; nothing for a stage that did not ask it."""
    if "requests" not in facts:
        return []
    cost = f", ${facts['cost_usd']:.4f}" if "cost_usd" in facts else ""
    took = f"{facts['prompt_tokens']:,} + {facts['completion_tokens']:,} tokens" if "prompt_tokens" in facts else ""
    lines = [f"expert: {facts['requests']:,} requests sent, {facts['from_ledger']:,} from the ledger, {took}{cost}"]
    if facts.get("segments"):
        lines.append(
            f"segments: {facts['segments']:,}, of them of equal length {facts['segments_equal']:,} (the published "
            f"filter), aligned {facts['segments_usable_first']:,}, with {facts['reasked_drafts']:,} drafts asked "
            f"again {facts['segments_usable']:,}"
        )
    if facts.get("reasks_failed"):
        lines.append(f"{facts['reasks_failed']:,} second questions failed: their drafts keep what the first reply gave")
    return lines


def _tables(manifest: Manifest) -> dict[str, int]:
    rows: dict[str, int] = {}
    for part in manifest.parts:
        if part.table:
            rows[part.table] = rows.get(part.table, 0) + (part.rows or 0)
    return rows
