"""The report of a run: summary.json for machines, report.html (one file, nothing fetched) for people, a table for the
terminal.

What comes from data is escaped by jinja2 and, should that ever fail, kept inert by a content security policy.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import JsonValue
from rich import box
from rich.table import Table
from rich.text import Text

from flows.figures import SERIES, curve_figures, quality_figures
from flows.formats import count, duration, interval, total, visible
from flows.gallery import card_of
from flows.summary import ArmResult, GalleryItem, RunSummary, StageRecord

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

METRICS = {
    "strict_precision": "Strict precision",
    "fact_recall": "Fact recall",
    "fact_f1": "Fact F1",
    "place_accuracy": "Place accuracy",
    "binding_error": "Binding error",
    "validity": "Validity",
    "repeat_rate": "Repeat rate",
    "overlap_f1": "Overlap F1",
}


def write_report(summary: RunSummary, gallery: Sequence[GalleryItem], out_dir: Path) -> Path:
    """Write `out_dir`/summary.json and `out_dir`/report.html; returns the path of the latter."""
    out_dir.mkdir(parents=True, exist_ok=True)
    _write(out_dir / "summary.json", summary.model_dump_json(indent=1) + "\n")
    report = out_dir / "report.html"
    _write(report, render(summary, gallery))
    return report


def render(summary: RunSummary, gallery: Sequence[GalleryItem]) -> str:
    """The report's HTML."""
    environment = Environment(
        loader=PackageLoader("flows"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"duration": duration, "count": count, "visible": visible, "total": total}
    arms = arms_of(summary)
    return environment.get_template("report.html.j2").render(
        policy=POLICY,
        s=summary,
        arms={arm: number % SERIES for number, arm in enumerate(arms)},
        settings=settings_of(summary.results),
        rows=rows_of(summary),
        best=best_of(summary.results),
        metrics={
            name: label for name, label in METRICS.items() if any(getattr(r, name) is not None for r in summary.results)
        },
        headlines=headlines(summary),
        figures=quality_figures(summary.results, arms, summary.metric),
        curves=curve_figures(summary.curves),
        cards=[card_of(item) for item in gallery],
        config=flatten(summary.config),
        stage_names={stage.digest: name_of(stage) for stage in summary.stages},
        slowest=max((stage.seconds for stage in summary.stages), default=0.0) or 1.0,
        name_of=name_of,
    )


def results_table(summary: RunSummary) -> Table:
    """The results for the terminal: a row for each (arm, refining), a column for each setting."""
    settings = settings_of(summary.results)
    title = f"{summary.metric} by tokens a step, ± half of the 95 % interval"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("arm", no_wrap=True)
    table.add_column("refining")
    table.add_column("train\nsteps", justify="right")
    for setting in settings:
        table.add_column(setting, justify="right", no_wrap=True)
    for row in rows_of(summary):
        cells = [_cell(row.cells.get(setting)) for setting in settings]
        table.add_row(Text(row.arm), "on" if row.refining else "off", f"{row.train_steps:,}", *cells)
    return table


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the results table: one arm with refining on or off, and its result in each setting."""

    arm: str
    refining: bool
    train_steps: int
    cells: dict[str, ArmResult]


@dataclass(frozen=True, kw_only=True)
class Headline:
    """A number on top of the report."""

    label: str
    value: str
    note: str = ""


def arms_of(summary: RunSummary) -> list[str]:
    """The arms in their order of appearance."""
    return list(dict.fromkeys(result.arm for result in summary.results))


def settings_of(results: Sequence[ArmResult]) -> list[str]:
    """The settings, slowest first: '1', '2', '4', '4+4', '8', '8+4'."""
    keys = sorted({(result.tokens_per_step, result.extra_steps, result.setting) for result in results})
    return [setting for _, _, setting in keys]


def best_of(results: Sequence[ArmResult]) -> dict[str, float]:
    """The best score in each setting."""
    ranked = sorted(results, key=lambda result: result.score)
    return {result.setting: result.score for result in ranked}


def rows_of(summary: RunSummary) -> list[Row]:
    """The rows of the results table, refining first within an arm."""
    rows = []
    for arm in arms_of(summary):
        for refining in (True, False):
            found = [result for result in summary.results if result.arm == arm and result.refining == refining]
            if found:
                steps = max(result.train_steps for result in found)
                cells = {result.setting: result for result in found}
                rows.append(Row(arm=arm, refining=refining, train_steps=steps, cells=cells))
    return rows


def headlines(summary: RunSummary) -> list[Headline]:
    """The numbers on top: quality at the fastest setting against the baseline, the expert's bill, rows, time."""
    tiles = _quality_headlines(summary)
    drafts = sum(expert.drafts for expert in summary.experts)
    if drafts:
        costs = [expert.cost_usd for expert in summary.experts]
        known = [cost for cost in costs if cost is not None]
        price = f"${sum(known):,.2f}" if len(known) == len(costs) else "no price known"
        tiles.append(Headline(label="Drafts revised", value=f"{drafts:,}", note=price))
    counted = [stage for stage in summary.stages if stage.rows_in is not None]
    if counted:
        lost = sum(total(stage.rejected) + total(stage.failed) for stage in counted)
        rows = sum(stage.rows_in or 0 for stage in counted)
        tiles.append(Headline(label="Rows through the stages", value=f"{rows:,}", note=f"{lost:,} rejected or failed"))
    cached = sum(stage.cached for stage in summary.stages)
    note = f"{cached} of {len(summary.stages)} stages reused" if cached else f"{len(summary.stages)} stages"
    tiles.append(Headline(label="Wall time", value=duration(summary.seconds), note=note))
    return tiles


def _quality_headlines(summary: RunSummary) -> list[Headline]:
    rows = {(row.arm, row.refining): row.cells for row in rows_of(summary)}
    others = [arm for arm in arms_of(summary) if arm != summary.baseline_arm]
    main = summary.main_arm or (others[-1] if others else None)
    if main is None or not (cells := rows.get((main, True)) or rows.get((main, False))):
        return []
    fast = max(cells.values(), key=lambda result: (result.tokens_per_step, -result.extra_steps))
    extra = [result for result in cells.values() if result.extra_steps]
    tiles = []
    for result in [fast, *sorted(extra, key=lambda result: -result.tokens_per_step)[:1]]:
        against = _best_rival(summary, result)
        note = f"{against.arm}, {against.nfe:g} forwards: {against.score:.1f}" if against else interval(result)
        if against and against.score > 0:
            note += f" (×{result.score / against.score:.2f})"
        label = f"{main}, {result.setting} tokens a step"
        tiles.append(Headline(label=label, value=f"{result.score:.1f}", note=note))
    off = rows.get((main, False), {}).get(fast.setting)
    if off and fast.refining:
        tiles.append(
            Headline(
                label=f"{main}, {fast.setting} tokens a step, refining off",
                value=f"{off.score:.1f}",
                note=interval(off),
            )
        )
    return tiles


def _best_rival(summary: RunSummary, result: ArmResult) -> ArmResult | None:
    """The baseline's best result with no more forwards, refining or not."""
    rivals = [other for other in summary.results if other.arm == summary.baseline_arm and other.nfe <= result.nfe]
    return max(rivals, key=lambda other: other.score, default=None)


def flatten(config: dict[str, JsonValue], prefix: str = "") -> list[tuple[str, str]]:
    """A nested configuration as dotted keys: {"rounds": {"n": 2}} -> [("rounds.n", "2")]."""
    pairs: list[tuple[str, str]] = []
    for key, value in config.items():
        if isinstance(value, dict) and value:
            pairs += flatten(value, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", value if isinstance(value, str) else str(value)))
    return pairs


def name_of(stage: StageRecord) -> str:
    """'finetune · stage 1'."""
    return f"{stage.stage} · {stage.label}" if stage.label else stage.stage


def _cell(result: ArmResult | None) -> Text:
    if result is None:
        return Text("–", style="dim")
    cell = Text(f"{result.score:.1f}", style="bold")
    if result.low is None or result.high is None:
        return cell
    return cell.append(f"\n±{(result.high - result.low) / 2:.1f}", style="dim")


def _write(path: Path, text: str) -> None:
    """A reader never sees half a file."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8", errors="replace")
    partial.replace(path)
