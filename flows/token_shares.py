"""The verb `tokens`: which share of the pairs keeps its number of tokens, by tokenizer and by rule."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from core.config import RunConfig
from core.corruption.token_shares import TokenShares, token_shares
from core.errors import InputError
from core.manifest import has_table, read_parts
from core.models.tokenizer import load_tokenizer
from data_contracts import HallucinationPairs
from flows.inspecting import find_ref
from flows.running import DONE, emit
from flows.session import workplace


def show_token_shares(config: RunConfig, dataset: str, tokenizers: Sequence[Path], *, json: bool) -> int:
    """Count the pairs of a dataset under each tokenizer."""
    store = workplace(config.place).store
    ref = find_ref(store, dataset)
    if not has_table(store, ref, HallucinationPairs):
        raise InputError(f"{ref.uri} holds no hallucination pairs: make some with `redraft pair`")
    window = config.expert.align.window
    found: dict[str, TokenShares] = {}
    for folder in tokenizers:
        tokenizer = load_tokenizer(folder)
        nothing = TokenShares(pairs=0, published=0, in_context=0, re_diff=0)
        parts = read_parts(store, ref, HallucinationPairs)
        found[str(folder)] = sum((token_shares(part, tokenizer, window=window) for part in parts), nothing)
    table = Table("tokenizer", "pairs", "published rule", "in context", f"re-diff, window {window}")
    for name, shares in found.items():
        kept = (f"{number / shares.pairs:.1%}" for number in (shares.published, shares.in_context, shares.re_diff))
        table.add_row(name, f"{shares.pairs:,}", *kept)
    Console().print(table)
    if json:
        emit({"verb": "tokens", "dataset": ref.uri, "tokenizers": {name: asdict(one) for name, one in found.items()}})
    return DONE
