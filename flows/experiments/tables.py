"""Tables and figures of all seeds that there are: Markdown for people, an SVG of quality against speed.

Shapes: K seeds, S scenes, R resamples.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import NDArray

from core.errors import InputError
from core.metrics.bootstrap import RESAMPLES, NestedResamples, central, p_value
from flows.experiments.catalogue import CATALOGUE
from flows.experiments.claims import CLAIMS, PLACE_BOUND, Claim, scores_of

README, FIGURE, SECTION = "README.md", "quality.svg", "section.md"
BEGIN, END = "<!-- experiments: begin -->", "<!-- experiments: end -->"
_UNITS = {"times": "{:.2f} ×", "points": "{:+.1f}", "score": "{:.1f}", "share": "{:.2f}"}
_COLOURS = {
    "base": "#8a8f98", "mask_predict": "#d1495b", "mask_predict_refine": "#e6a1a9", "rediff": "#1f6f8b",
    "rediff_freeze": "#8fc1d4",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Measured:
    """An experiment over its seeds: rows by (arm, setting), one a seed, and the scores of their scenes."""

    name: str
    seeds: list[int]
    rows: dict[tuple[str, str], list[dict[str, Any]]]
    resamples: NestedResamples

    def scores(self, arm: str, setting: str) -> NDArray[np.float64]:
        """Score of every scene, (K, S)."""
        return np.array([row["scores"] for row in self.rows[arm, setting]])

    def mean(self, arm: str, setting: str, field: str = "score") -> float:
        """Mean over seeds."""
        return float(np.mean([row[field] for row in self.rows[arm, setting]]))

    def interval(self, arm: str, setting: str) -> tuple[float, float]:
        """95 % interval of the mean score over seeds and scenes."""
        return central(self.resamples.means(self.scores(arm, setting)))

    def judge(self, claim: Claim) -> "Judged":
        """The claim's value on the means, its interval, and the p of no difference where it is one."""
        means = {key: np.array([self.scores(*key).mean()]) for key in self.rows}
        resampled = {key: self.resamples.means(self.scores(*key)) for key in self.rows}
        with np.errstate(divide="ignore", invalid="ignore"):  # a score of 0 below gives no ratio, and fails
            value = float(claim.value(scores_of(means))[0])
            values_R = claim.value(scores_of(resampled))
            each = [
                float(claim.value(scores_of({key: self.scores(*key)[k : k + 1].mean(axis=1) for key in self.rows}))[0])
                for k in range(len(self.seeds))
            ]
        return Judged(
            claim=claim,
            value=value,
            seeds=each,
            interval=central(values_R),
            p=p_value(values_R) if claim.unit == "points" and not claim.bound else None,
        )


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A claim and what was measured."""

    claim: Claim
    value: float
    seeds: list[float]
    """Its value in each seed."""
    interval: tuple[float, float]
    p: float | None

    @property
    def verdict(self) -> str:
        """A must is decided on the means; an aim holds if its whole interval does, and every seed."""
        reached = self.claim.holds(self.value)
        if self.claim.kind == "must":
            return "holds" if reached else "**fails**"
        if all(self.claim.holds(value) for value in (*self.interval, *self.seeds)):
            return "holds"
        return "on the mean alone" if reached else "not reached"


def write_tables(out: Path, readme: Path | None = None) -> list[Path]:
    """Write what the seeds under `out` give; the section also between the marks of `readme`. Raises InputError."""
    measured = [found for name in CATALOGUE if (found := load(out, name)) is not None]
    if not measured:
        return []
    written = [_write(out / README, report(measured))]
    by_name = {one.name: one for one in measured}
    if "RD-2" in by_name:
        written.append(_write(out / FIGURE, figure(by_name["RD-2"])))
    text = section(measured)
    written.append(_write(out / SECTION, text))
    if readme is not None:
        page = readme.read_text() if readme.is_file() else ""
        if BEGIN not in page or END not in page:
            raise InputError(f"{readme} has no lines {BEGIN!r} and {END!r} to put the section between")
        before, rest = page.split(BEGIN, 1)
        written.append(_write(readme, f"{before}{BEGIN}\n{text}{END}{rest.split(END, 1)[1]}"))
    return written


def load(out: Path, name: str) -> Measured | None:
    """The experiment's seeds; None if there is none."""
    files = [json.loads(path.read_text()) for path in sorted((out / name).glob("seed*.json"))]
    if not files:
        return None
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for file in files:
        for row in file["rows"]:
            rows.setdefault((row["arm"], row["setting"]), []).append(row)
    complete = {key: found for key, found in rows.items() if len(found) == len(files)}
    scenes = min(len(row["scores"]) for found in complete.values() for row in found)
    return Measured(
        name=name,
        seeds=[file["seed"] for file in files],
        rows=complete,
        resamples=NestedResamples.draw(len(files), scenes),
    )


def report(measured: list[Measured]) -> str:
    """Every table, and every claim."""
    parts = [
        "# Experiments\n",
        "Written by `redraft experiment`; the numbers are in the seeds' JSON beside this file. Cells: mean `score` "
        "over seeds [the middle 95 % of a bootstrap over seeds and scenes: with three seeds that is too narrow, and "
        "holds the truth in fewer than nine of ten cases]. Columns: tokens a step, +4: with four extra refining steps; "
        "in brackets: forwards of the model. Training steps do not count the warm-up of the vision part, the same in "
        "all arms.\n",
    ]
    for one in measured:
        seeds = ", ".join(map(str, one.seeds))
        told = costs_table(one) if CATALOGUE[one.name].about == "decoding" else table(one, intervals=True)
        parts.append(f"## {one.name}: {CATALOGUE[one.name].title}\n\nSeeds {seeds}.\n\n{told}\n")
        if CATALOGUE[one.name].contrasts:
            parts.append(f"What each part adds, in points of score:\n\n{contrasts_table(one)}\n")
    parts.append(f"## Claims\n\n{claims_table(measured)}\n")
    return "\n".join(parts)


def section(measured: list[Measured]) -> str:
    """One screen for the project's README."""
    by_name = {one.name: one for one in measured}
    parts = []
    if (main := by_name.get("RD-2")) is not None:
        seeds = ", ".join(map(str, main.seeds))
        parts.append(f"`score` on the test scenes, mean of seeds {seeds}, by tokens a step (forwards of the model):\n")
        parts.append(f"{table(main, intervals=False)}\n")
    parts.append(f"{claims_table(measured)}\n")
    return "\n".join(parts)


def table(one: Measured, *, intervals: bool) -> str:
    """Arms by settings."""
    columns = sorted({_column(rows[0]) for rows in one.rows.values()})
    heads = [f"{label} ({forwards:g})" for _, _, label, forwards in columns]
    lines = ["| arm | refining | training steps | " + " | ".join(heads) + " |", "|---|---|--:|" + "--:|" * len(heads)]
    for arm, policy in dict.fromkeys((arm, rows[0]["policy"]) for (arm, _), rows in one.rows.items()):
        cells = {
            _column(rows[0]): key for key, rows in one.rows.items() if key[0] == arm and rows[0]["policy"] == policy
        }
        steps = one.rows[next(iter(cells.values()))][0]["train_steps"]
        texts = [_cell(one, cells[column], intervals=intervals) if column in cells else "" for column in columns]
        lines.append(f"| {arm} | {'off' if policy == 'freeze' else 'on'} | {steps:,} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def costs_table(one: Measured) -> str:
    """Arms and settings by what they cost.

    Positions are those that go through the network for a response of 48 tokens after a prompt of 3,400, by the plan;
    where a row may be done before its plan, they are not known beforehand.
    """
    from core.decoding.costs import positions_run  # loads torch
    from core.decoding.settings import DecodeSettings

    lines = [
        "| arm | setting | score | forwards | seconds | positions, after 3,400 |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for arm, setting in one.rows:
        settings = DecodeSettings.parse(setting)
        positions = "" if settings.threshold else f"{positions_run(settings, response_length=48, before=3400):,}"
        forwards, seconds = (one.mean(arm, setting, field) for field in ("nfe", "seconds"))
        score = _cell(one, (arm, setting), intervals=True)
        lines.append(f"| {arm} | {setting} | {score} | {forwards:.1f} | {seconds:.1f} | {positions} |")
    return "\n".join(lines)


def contrasts_table(one: Measured) -> str:
    """Differences between arms, paired by seed and scene, with intervals."""
    columns = sorted({(*_column(rows[0]), key[1]) for key, rows in one.rows.items() if rows[0]["policy"] != "freeze"})
    heads = [f"{label} ({forwards:g})" for _, _, label, forwards, _ in columns]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "--:|" * len(heads)]
    for text, (above, below) in CATALOGUE[one.name].contrasts.items():
        cells = []
        for *_, setting in columns:
            if (above, setting) in one.rows and (below, setting) in one.rows:
                gain = one.scores(above, setting) - one.scores(below, setting)
                low, high = central(one.resamples.means(gain))
                cells.append(f"{gain.mean():+.1f} [{low:+.1f}, {high:+.1f}]")
            else:
                cells.append("")
        lines.append(f"| {text} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _column(row: dict[str, Any]) -> tuple[int, int, str, float]:
    tokens, extra = row["tokens_per_step"], row["extra_steps"]
    return tokens, extra, f"{tokens}+{extra}" if extra else f"{tokens}", row["nfe"]


def _cell(one: Measured, key: tuple[str, str], *, intervals: bool) -> str:
    low, high = one.interval(*key)
    return f"{one.mean(*key):.1f}" + (f" [{low:.1f}, {high:.1f}]" if intervals else "")


def claims_table(measured: list[Measured]) -> str:
    """Each claim: what was asked, what was found, and whether it holds on the means over seeds."""
    lines = ["| | claim | asked | found [interval] | by seed | p | |", "|---|---|--:|--:|--:|--:|---|"]
    for one in measured:
        judged = [one.judge(claim) for claim in CLAIMS if claim.experiment == one.name]
        lines += [_claim_line(found) for found in judged]
        base = one.rows.get(("base", "1 freeze"), []) if one.name == "RD-2" else []
        if base and all(row["place_accuracy"] is not None for row in base):
            lines.append(_place_line(one))
    return "\n".join(lines)


def _claim_line(found: Judged) -> str:
    claim, unit = found.claim, _UNITS[found.claim.unit]
    asked = f"{'≤' if claim.at_most else '≥'} {unit.format(claim.bound).lstrip('+')}"
    low, high = (unit.format(bound) for bound in found.interval)
    least = 2 / (RESAMPLES + 1)
    p = "" if found.p is None else f"≤ {least:.3f}" if found.p <= least else f"{found.p:.3f}"
    value = f"{unit.format(found.value)} [{low}, {high}]"
    each = ", ".join(unit.format(one).removesuffix(" ×") for one in found.seeds)
    return f"| {claim.kind} | {claim.text} | {asked} | {value} | {each} | {p} | {found.verdict} |"


def _place_line(one: Measured) -> str:
    rows = one.rows["base", "1 freeze"]
    each = [row["place_accuracy"] for row in rows]
    place, chance = float(np.mean(each)), rows[0]["place_chance"]
    verdict = "holds" if place >= PLACE_BOUND else "**fails**"
    text = f"place accuracy of the base at 1 token a step (chance {chance:.3f})"
    seeds = ", ".join(f"{one:.3f}" for one in each)
    return f"| must | {text} | ≥ {PLACE_BOUND:.2f} | {place:.3f} | {seeds} | | {verdict} |"


def figure(one: Measured) -> str:
    """Quality against forwards, one line an arm; hollow marks have extra refining steps."""
    with mpl.rc_context({"svg.hashsalt": one.name, "svg.fonttype": "none", "font.size": 11, "axes.spines.top": False,
                         "axes.spines.right": False, "font.family": "sans-serif"}):  # fmt: skip
        drawing = Figure(figsize=(7.2, 4.2), layout="constrained", facecolor="white")
        FigureCanvasSVG(drawing)
        axes = drawing.add_subplot()
        for arm in CATALOGUE[one.name].arms:
            _draw(axes, one, arm)
        axes.set_xscale("log", base=2)
        axes.invert_xaxis()
        ticks = [48, 24, 16, 12, 10, 6]
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("forwards of the model for a caption of 48 tokens (fewer →)")
        axes.set_ylabel("score")
        axes.set_ylim(0, 100)
        axes.grid(axis="y", color="#e3e5e8")
        axes.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
        buffer = io.StringIO()
        drawing.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _draw(axes: Axes, one: Measured, arm: str) -> None:
    keys = [key for key in one.rows if key[0] == arm]
    for extra in (False, True):
        chosen = sorted(
            (key for key in keys if bool(one.rows[key][0]["extra_steps"]) is extra),
            key=lambda key: one.mean(*key, "nfe"),
        )
        if not chosen:
            continue
        means = np.array([one.mean(*key) for key in chosen])
        bounds = np.array([one.interval(*key) for key in chosen])
        axes.errorbar(
            [one.mean(*key, "nfe") for key in chosen], means, yerr=np.abs(bounds.T - means),
            color=_COLOURS[arm], marker="o", markersize=5, capsize=2, elinewidth=1,
            markerfacecolor="white" if extra else _COLOURS[arm], linestyle="none" if extra else "-",
            label=None if extra else arm.replace("_", " "),
        )  # fmt: skip


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path
