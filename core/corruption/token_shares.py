"""How many hallucination pairs keep their number of tokens: what a rule about lengths costs, by tokenizer.

Three rules, each wider than the one before:
- published   caption and changed caption have equally many tokens, and so have the two spans, each encoded by itself
              (how ReDiff filters ViCrit);
- in_context  the tokens that cover the change, in the caption, are equally many;
- re_diff     a change of length may be cancelled by the end-of-text fill, within a window (see core.alignment).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from core.errors import InputError
from core.rediff import Edit, TextCodec, compatible, runs_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class TokenShares:
    """Numbers of pairs: in all, and kept by each rule."""

    pairs: int
    published: int
    in_context: int
    re_diff: int

    def __add__(self, other: "TokenShares") -> "TokenShares":
        return TokenShares(
            pairs=self.pairs + other.pairs,
            published=self.published + other.published,
            in_context=self.in_context + other.in_context,
            re_diff=self.re_diff + other.re_diff,
        )


def token_shares(pairs: pl.DataFrame, tokenizer: "PreTrainedTokenizerBase", *, window: int) -> TokenShares:
    """Count HallucinationPairs rows, correcting the changed caption back into the original.

    Raises:
        InputError: the tokenizer gives no char offsets.
    """
    if not tokenizer.is_fast:
        raise InputError("counting tokens in context needs a fast tokenizer (tokenizer.json)")
    codec = TextCodec(tokenizer, eos_id=-1, forbidden_ids=frozenset(), forbidden_texts=())
    columns = ("original_caption", "changed_caption", "solution_original", "solution_target", "start")
    published = in_context = re_diff = 0
    for original, changed, was, became, start in pairs.select(columns).iter_rows():
        changed_ids, spans = codec.encode(changed)
        lengths = [len(codec.encode(text)[0]) for text in (original, was, became)]
        published += lengths[0] == len(changed_ids) and lengths[1] == lengths[2]
        edit = Edit(0, start, start + len(became), was)
        runs = runs_of(changed, spans, [edit], codec)
        equal = all(run.growth == 0 for run in runs)
        in_context += equal
        re_diff += equal or bool(compatible(runs, changed_ids, room=window, window=window))
    return TokenShares(pairs=pairs.height, published=published, in_context=in_context, re_diff=re_diff)
