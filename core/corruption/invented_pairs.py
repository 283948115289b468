"""ViCrit-style pairs by an expert: it proposes one wrong change of each caption, the checker judges the proposal.

The same client and ledger as for revisions: a request is paid for once, and its reply is stored before it is used.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import polars as pl

from core.corruption.hallucination import KINDS, PairKind
from core.corruption.pair_check import check_pair, classify
from core.corruption.rows import reject_frame
from core.errors import ConfigError, RowError
from core.expert.client import ExpertClient
from core.expert.ledger import Reply
from core.expert.pair_request import PROMPT, PairTask, build_pair_request
from core.expert.progress import LoadBytes, Progress
from core.expert.reply import parse_reply
from core.seeds import rng
from data_contracts import HallucinationPairs

_KIND = re.compile(rf'"?kind"?\s*:\s*"?({"|".join(KINDS)})\b', re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class InventedPairs:
    """`pairs` (HallucinationPairs), and one row of `rejects` a sample without one.

    Usage is that of all replies, those from the ledger included; None: the endpoint or the price is not known.
    """

    pairs: pl.DataFrame
    rejects: pl.DataFrame
    prompt_tokens: int | None
    completion_tokens: int | None
    cost_usd: float | None


def invent_pairs(
    samples: pl.DataFrame,
    *,
    client: ExpertClient,
    load_image: LoadBytes,
    seed: int,
    kinds: Sequence[PairKind] = KINDS,
    prompt: str = PROMPT,
    elsewhere: pl.DataFrame | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> InventedPairs:
    """At most one pair of each of the Samples rows, proposed by the expert; captions of one image share `image_sha`.

    `elsewhere` (image_sha, reference): captions of the same images that are not among the samples.

    Each sample's request names one of `kinds`, drawn from the seed and its id. A pair's kind is what the lexicon says
    it is, else what the expert says.

    Reasons of rejects: those of `check_pair`; `not_found`, `ambiguous` (the words to change occur never, or more than
    once), `several_changes`, `declined`, `wrong_kind` (none of `kinds`), `parse_error`. Outcome `failed`: no usable
    reply (length, http_400, no_json, ...).

    Raises:
        ConfigError: if `kinds` is empty or names an unknown kind, or if there is no such prompt.
        ExpertUnavailable, BudgetExceeded: see ExpertClient; a later call asks only what is not answered yet.
    """
    if not kinds or set(kinds) - set(KINDS):
        raise ConfigError(f"pair kinds must be some of {', '.join(KINDS)}; got {list(kinds)}")
    rows = samples.select("sample_id", "image_sha", "reference").rows()
    captions: dict[str, list[str]] = {}
    others = [] if elsewhere is None else elsewhere.select("image_sha", "reference").rows()
    for sha, text in [*((sha, text) for _, sha, text in rows), *others]:
        captions.setdefault(sha or "", []).append(text)
    tasks = [_task(row, captions, kinds, seed) for row in rows]
    requests = [
        build_pair_request(client.settings, task, image_sha=sha, prompt=prompt)
        for task, (_, sha, _) in zip(tasks, rows, strict=True)
    ]
    replies = client.ask(requests, load_image, on_progress=on_progress) if requests else []
    pairs, failed, rejected = [], [], []
    for (sample_id, _, _), task, reply in zip(rows, tasks, replies, strict=True):
        if reply.status == "failed":
            failed.append((sample_id, (reply.error or "no_json").partition(":")[0], reply.error or ""))
            continue
        try:
            pairs.append(_row(sample_id, task.caption, *read_proposal(reply.raw, task, kinds)))
        except RowError as error:
            rejected.append((sample_id, error.reason, error.detail))
    frames = [_rejects(rejected, "rejected"), _rejects(failed, "failed")]
    distinct = list({reply.key: reply for reply in replies}.values())
    return InventedPairs(
        pairs=pl.DataFrame(pairs, schema=HallucinationPairs.create_empty().schema, orient="row"),
        rejects=pl.concat(frames),
        prompt_tokens=_total([reply.prompt_tokens for reply in distinct]),
        completion_tokens=_total([reply.completion_tokens for reply in distinct]),
        cost_usd=_cost(distinct),
    )


def read_proposal(
    raw: str | None, task: PairTask, kinds: Sequence[PairKind] = KINDS
) -> tuple[PairKind | None, int, int, str]:
    """Kind, chars [start, end) of the caption and their replacement.

    Example: '{"org": "dog", "target": "cat", "kind": "object"}' about "A dog." -> ("object", 2, 5, "cat").

    Raises:
        RowError: the proposal is not usable; see `invent_pairs`.
    """
    parsed = parse_reply(raw)
    if len(parsed.segments) > 1:
        raise RowError("several_changes", f"{len(parsed.segments)} changes")
    org, target = next(iter(parsed.segments), ("", ""))
    if not isinstance(org, str) or not isinstance(target, str):
        raise RowError("parse_error", f"org {org!r}, target {target!r}")
    org, target = org.strip(), target.strip()
    if not org:
        raise RowError("declined", "the expert names no change")
    found = list(re.finditer(rf"(?<!\w){re.escape(org)}(?!\w)", task.caption))
    if len(found) != 1:
        raise RowError("ambiguous" if found else "not_found", f"{org!r} occurs {len(found)} times")
    start, end = found[0].span()
    changed = task.caption[:start] + target + task.caption[end:]
    reason = check_pair(task.caption, changed, start=start, end=end, target=target, others=task.other_captions)
    if reason is not None:
        raise RowError(reason, f"{org!r} -> {target!r}")
    kind = classify(org, target, task.caption) or _stated_kind(raw)
    if kind is not None and kind not in kinds:
        raise RowError("wrong_kind", f"{org!r} -> {target!r}: {kind}")
    return kind, start, end, target


def _task(
    row: tuple[str, str | None, str], captions: dict[str, list[str]], kinds: Sequence[PairKind], seed: int
) -> PairTask:
    sample_id, sha, text = row
    others = list(captions[sha]) if sha is not None else [text]
    others.remove(text)
    kind = kinds[int(rng(seed, "invented pair", sample_id).integers(len(kinds)))]
    return PairTask(caption=text, other_captions=sorted(others), kind=kind)


def _stated_kind(raw: str | None) -> PairKind | None:
    match = _KIND.search(raw or "")
    return next((kind for kind in KINDS if match and kind == match.group(1).lower()), None)


def _row(
    sample_id: str, caption: str, kind: PairKind | None, start: int, end: int, target: str
) -> tuple[str | int | None, ...]:
    changed = caption[:start] + target + caption[end:]
    return (f"{sample_id}-e0", sample_id, kind, caption, changed, caption[start:end], target, start, end)


def _rejects(rows: Sequence[tuple[str, str, str]], outcome: str) -> pl.DataFrame:
    return reject_frame(*([row[i] for row in rows] for i in range(3)), outcome=outcome)


def _total(counts: Sequence[int | None]) -> int | None:
    return None if None in counts else sum(count or 0 for count in counts)


def _cost(replies: Sequence[Reply]) -> float | None:
    known = [reply.cost_usd for reply in replies if reply.cost_usd is not None]
    return sum(known) if known else None
