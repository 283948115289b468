"""The verb `estimate`."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from core.config import RunConfig
from core.expert.forecast import Forecast, forecast
from core.expert.ledger import Ledger
from core.manifest import read_parts
from data_contracts import Drafts
from flows.running import DONE, emit
from flows.stages import drafts_named, staged


def run_estimate(config: RunConfig, sources: Sequence[str], tokenizer: Path | None, *, json: bool) -> int:
    """Bring the drafts into the store, where they are not there yet, and count. The expert is not started."""
    started = time.monotonic()
    known, refs = drafts_named(config, sources, tokenizer)
    with staged("adopt", known, refs, tokenizer, json=json) as outcome:
        if outcome.code != DONE:
            return outcome.code
        place = outcome.place
        expected = forecast(
            read_parts(place.store, outcome.outputs, Drafts), known.expert, Ledger(place.engine), place.image_bytes
        )
        _print(expected)
        if json:
            line = {"verb": "estimate", "run": outcome.run, "outputs": [ref.model_dump() for ref in outcome.outputs]}
            emit(line | asdict(expected) | {"seconds": round(time.monotonic() - started, 1)})
    return DONE


def _print(expected: Forecast) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(justify="right")
    again = f", and about {expected.reasks:,} second questions" if expected.reasks else ""
    table.add_row(f"{expected.drafts:,}", "drafts")
    table.add_row(f"{expected.empty:,}", "empty: nothing is asked")
    table.add_row(f"{expected.repeated:,}", "the same as another: asked once")
    table.add_row(f"{expected.from_ledger:,}", "answered before: in the ledger")
    table.add_row(f"{expected.requests:,}", f"requests to send{again}")
    table.add_row(f"{expected.prompt_tokens:,}", "prompt tokens")
    table.add_row(f"{expected.completion_tokens:,}", "completion tokens")
    cost = "unknown" if expected.cost_usd is None else f"${expected.cost_usd:,.4f}"
    table.add_row(cost, "cost" if expected.cost_usd is not None else "cost: give expert.price_in and expert.price_out")
    console = Console()
    console.print(table)
    for line in expected.basis:
        console.print(line, style="dim", highlight=False)
