"""The README's table of benchmarks, made from their JSON files.

python -m tests.benchmarks.table --readme README.md

Replaces what stands between the markers. Files of another form than `tests.benchmarks.record` writes are left to the
README's prose.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results" / "benchmarks"
BEGIN, END = "<!-- benchmark-table:begin -->", "<!-- benchmark-table:end -->"


def table(folder: Path) -> str:
    """Markdown: what was measured, the figure, its bound, whether it is kept, and on which machine; a line a ratio."""
    lines = ["| what | measured | bound | met | machine |", "|---|--:|--:|---|---|"]
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        lines += [_line(ratio, _machine(result["machine"])) for ratio in result.get("ratios", [])]
    return "\n".join(lines)


def replaced(page: str, folder: Path) -> str:
    """The page with the table between its markers.

    Raises:
        ValueError: the page has not exactly one pair of markers.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ValueError(f"the page needs one line {BEGIN} and, after it, one line {END}")
    head, rest = page.split(BEGIN)
    return f"{head}{BEGIN}\n{table(folder)}\n{END}{rest.split(END)[1]}"


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
    """Write the table into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readme", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    args.readme.write_text(replaced(args.readme.read_text(), args.results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
