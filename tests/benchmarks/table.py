"""The README's tables of benchmarks, and of parity with the published codes, made from their JSON files.

python -m tests.benchmarks.table --readme README.md

Replaces what stands between the markers of each. Files of another form than `tests.benchmarks.record` writes are left
to the README's prose.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results" / "benchmarks"
PARITY = Path(__file__).parents[1] / "results" / "parity.json"
BEGIN, END = "<!-- benchmark-table:begin -->", "<!-- benchmark-table:end -->"
PARITY_BEGIN, PARITY_END = "<!-- parity-table:begin -->", "<!-- parity-table:end -->"


def table(folder: Path) -> str:
    """Markdown: what was measured, the figure, its bound, whether it is kept, and on which machine; a line a ratio."""
    lines = ["| what | measured | bound | met | machine |", "|---|--:|--:|---|---|"]
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        lines += [_line(ratio, _machine(result["machine"])) for ratio in result.get("ratios", [])]
    return "\n".join(lines)


def parity_table(path: Path) -> str:
    """Markdown: the largest error of each kind, and how many decodings give the published ids; a line a checkpoint."""
    found = json.loads(path.read_text())
    kinds = list(dict.fromkeys(row["of"] for row in found["errors"]))
    lines = [f"| checkpoint | {' | '.join(kinds)} | equal ids |", f"|---|{'--:|' * (len(kinds) + 1)}"]
    for name in dict.fromkeys(row["fixture"] for row in found["decodings"]):
        errors = [row for row in found["errors"] if row["fixture"].split()[0] == name]
        of_kind = [[row["max_error"] for row in errors if row["of"] == kind] for kind in kinds]
        equal = [row["equal"] for row in found["decodings"] if row["fixture"] == name]
        figures = [f"{max(values):.1e}" if values else "" for values in of_kind]
        lines.append(f"| {name} | {' | '.join(figures)} | {sum(equal)} of {len(equal)} |")
    return "\n".join(lines)


def replaced(page: str, begin: str, end: str, text: str) -> str:
    """The page with `text` between the markers.

    Raises:
        ValueError: the page has not exactly one pair of them.
    """
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise ValueError(f"the page needs one line {begin} and, after it, one line {end}")
    head, rest = page.split(begin)
    return f"{head}{begin}\n{text}\n{end}{rest.split(end)[1]}"


def with_tables(page: str, results: Path = RESULTS, parity: Path = PARITY) -> str:
    """The page with both tables."""
    page = replaced(page, BEGIN, END, table(results))
    return replaced(page, PARITY_BEGIN, PARITY_END, parity_table(parity))


def _line(ratio: Mapping[str, Any], machine: str) -> str:
    bound, unit = ratio["bound"], "×" if ratio["unit"] == "x" else ratio["unit"]
    wanted = "" if bound is None else f"{'≥' if ratio['kind'] == 'at least' else '≤'} {_figure(bound)}"
    kept = "" if bound is None else "yes" if _kept(ratio) else "**no**"
    return f"| {ratio['what']} | {_figure(ratio['value'])} {unit} | {wanted} | {kept} | {machine} |"


def _kept(ratio: Mapping[str, Any]) -> bool:
    value, bound = ratio["value"], ratio["bound"]
    return value >= bound if ratio["kind"] == "at least" else value <= bound


def _figure(value: float) -> str:
    """Three significant digits, no exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{float(f'{value:.3g}'):g}"


def _machine(machine: Mapping[str, Any]) -> str:
    return machine.get("accelerator") or f"{machine['processor']}, {machine['cores']} cores"


def main() -> int:
    """Write the tables into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readme", type=Path, required=True)
    args = parser.parse_args()
    args.readme.write_text(with_tables(args.readme.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
