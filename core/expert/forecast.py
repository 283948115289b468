"""What revising some drafts is going to take: requests, tokens and cost, before the first request is sent.

Prompts are there to be counted: with the expert's own tokenizer if it is at hand, at four characters a token if not.
Replies are not. One is taken to be as long as those about other drafts of the same lot were on average; where there are
too few, as the segments that the rule of the reference expert finds, in as many tokens a character as the model has
taken before. Second questions are taken to be as frequent as they were.
"""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from core.expert.estimate import cost_of, image_tokens
from core.expert.ledger import Ledger, Usage
from core.expert.pictures import fit_image
from core.expert.reask_request import PROMPT as REASK_PROMPT
from core.expert.request import ExpertRequest, load_prompt
from core.expert.rules import revise_by_rule
from core.expert.settings import ExpertSettings
from core.models.tokenizer import load_tokenizer
from core.revising import request_for

_CHARS_A_TOKEN = 4
_A_MESSAGE = 4
"""Tokens that a chat template puts around a message."""
_ENOUGH = 20
"""Replies from which an average is taken."""
_LOOKED_AT = 400
"""Drafts whose reply is guessed by the rule, and images that are measured; the others are taken to be like them."""

CountTokens = Callable[[str], int]


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """drafts = empty + repeated (the same request as another) + from_ledger + requests, which are to be sent.

    reasks: second questions among further requests, as far as the ledger tells how many there are; their tokens are in
    the sums. cost_usd: None without prices. basis: how the numbers came about, for people.
    """

    drafts: int
    empty: int
    repeated: int
    from_ledger: int
    requests: int
    reasks: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None
    basis: tuple[str, ...]


@dataclass
class _Sums:
    drafts: int = 0
    empty: int = 0
    from_ledger: int = 0
    prompt_tokens: int = 0
    seen: set[str] = field(default_factory=set)
    sent: list[ExpertRequest] = field(default_factory=list)
    known: list[float] = field(default_factory=list)
    """Of requests that were answered: prompt tokens that the endpoint counted, as a multiple of ours."""
    said: list[int] = field(default_factory=list)
    """And the tokens of their replies."""


def forecast(
    drafts: Iterable[pl.DataFrame], settings: ExpertSettings, ledger: Ledger, load_image: Callable[[str], bytes]
) -> Forecast:
    """Look at every draft (frames of Drafts). Nothing is sent, nothing is written.

    Raises:
        InputError: expert.tokenizer names a folder without a tokenizer.
    """
    count, counted_by = _counter(settings)
    instructions = count(load_prompt(settings.prompt).text) + 2 * _A_MESSAGE
    sums = _Sums()
    for frame in drafts:
        _add(sums, frame, settings, ledger, count, instructions)
    basis = [counted_by]
    images, prompt_tokens = _image_tokens(sums.sent, settings, load_image), sums.prompt_tokens
    if len(sums.known) >= _ENOUGH and not images:
        prompt_tokens = round(prompt_tokens * sum(sums.known) / len(sums.known))
        basis.append(f"prompts: corrected by {len(sums.known)} of these drafts that were answered before")
    prompt_tokens += images
    completion_tokens, said = _replies(sums, settings, ledger, count)
    again, said_again = _second_questions(len(sums.sent), settings, ledger)
    prompt_tokens += round(again.replies * again.prompt_tokens)
    completion_tokens += round(again.replies * again.completion_tokens)
    return Forecast(
        drafts=sums.drafts,
        empty=sums.empty,
        repeated=sums.drafts - sums.empty - len(sums.seen),
        from_ledger=sums.from_ledger,
        requests=len(sums.sent),
        reasks=again.replies,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        cost_usd=cost_of(settings, prompt_tokens, completion_tokens),
        basis=(*basis, said, *said_again),
    )


def _counter(settings: ExpertSettings) -> tuple[CountTokens, str]:
    if not settings.tokenizer:
        return lambda text: math.ceil(len(text) / _CHARS_A_TOKEN), "prompts: four characters a token"
    tokenizer = load_tokenizer(Path(settings.tokenizer))
    return (
        lambda text: len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]),
        f"prompts: counted with the tokenizer in {settings.tokenizer}",
    )


def _add(
    sums: _Sums,
    frame: pl.DataFrame,
    settings: ExpertSettings,
    ledger: Ledger,
    count: CountTokens,
    instructions: int,
) -> None:
    written = frame.filter(pl.col("text").str.strip_chars() != "")
    sums.drafts += frame.height
    sums.empty += frame.height - written.height
    requests = {one.key: one for row in written.iter_rows(named=True) if (one := request_for(row, settings))}
    fresh = {key: request for key, request in requests.items() if key not in sums.seen}
    sums.seen |= fresh.keys()
    replies = ledger.find(list(fresh))
    for key, request in fresh.items():
        tokens = instructions + count(_text(request))
        reply = replies.get(key)
        if reply is None or reply.status != "answered":
            sums.sent.append(request)
            sums.prompt_tokens += tokens
            continue
        sums.from_ledger += 1
        if reply.prompt_tokens and reply.completion_tokens is not None:
            sums.known.append(reply.prompt_tokens / tokens)
            sums.said.append(reply.completion_tokens)


def _text(request: ExpertRequest) -> str:
    return json.dumps(request.task.model_dump(), ensure_ascii=False)


def _image_tokens(
    requests: Sequence[ExpertRequest], settings: ExpertSettings, load_image: Callable[[str], bytes]
) -> int:
    """Tokens of all images; an endpoint counts them in its own way, this is but the order of magnitude."""
    shas = [request.image_sha for request in requests if request.image_sha]
    some = _spread(sorted(set(shas)))
    if not some:
        return 0
    return round(len(shas) * _mean([image_tokens(fit_image(load_image(sha), settings)) for sha in some]))


def _replies(sums: _Sums, settings: ExpertSettings, ledger: Ledger, count: CountTokens) -> tuple[int, str]:
    """Tokens of all replies, and how that is known."""
    requests = sums.sent
    if len(sums.said) >= _ENOUGH:
        tokens = round(len(requests) * _mean(sums.said))
        return tokens, f"replies: as long as those to {len(sums.said):,} of these drafts on average"
    guessed = [_reply_by_rule(request) for request in _spread(requests)]
    said = "replies: as long as the segments that a rule finds"
    before = ledger.usage(settings.model, load_prompt(settings.prompt).version)
    if before.replies >= _ENOUGH and before.characters:
        rate = before.completion_tokens / before.characters
        tokens_each = [rate * len(text) for text in guessed]
        said += f", in tokens as {before.replies:,} earlier replies of {settings.model} were"
    else:
        tokens_each = [float(count(text)) for text in guessed]
        said += "; a model that thinks aloud takes more"
    return round(len(requests) * _mean([min(tokens, settings.max_tokens) for tokens in tokens_each])), said


def _reply_by_rule(request: ExpertRequest) -> str:
    task: Any = request.task
    segments = revise_by_rule(task.question, task.ground_truth, task.prediction)
    return json.dumps({"segments": [{"org": one.org, "target": one.target} for one in segments]}, ensure_ascii=False)


def _second_questions(requests: int, settings: ExpertSettings, ledger: Ledger) -> tuple[Usage, tuple[str, ...]]:
    """How many second questions there will be, and their average tokens."""
    none = Usage(replies=0, prompt_tokens=0.0, completion_tokens=0.0, characters=0.0)
    if not settings.reask:
        return none, ()
    usage = partial(ledger.usage, settings.model)
    first, second = usage(load_prompt(settings.prompt).version), usage(load_prompt(REASK_PROMPT).version)
    if first.replies < _ENOUGH:
        return none, ("second questions, at most one a draft, are not in it: nothing tells yet how many there will be",)
    share = min(1.0, second.replies / first.replies)
    expected = Usage(
        replies=round(share * requests),
        prompt_tokens=second.prompt_tokens,
        completion_tokens=second.completion_tokens,
        characters=second.characters,
    )
    return expected, (f"second questions: about {share:.0%} of the drafts, as before",)


def _spread(items: Sequence[Any]) -> list[Any]:
    """Some of the items, evenly spread over all."""
    step = max(1, -(-len(items) // _LOOKED_AT))
    return list(items[::step])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
