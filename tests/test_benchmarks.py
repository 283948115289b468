"""Benchmarks share one form, and the README's table says what their files say."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.benchmarks.record import Ratio, Timings, alternate, in_turn, measured_before, record
from tests.benchmarks.table import BEGIN, END, RESULTS, replaced, table, with_tables
from tests.clock import Clock

ROOT = Path(__file__).parent.parent
KEYS = {"benchmark", "command", "machine", "versions", "settings", "measured", "ratios"}
OWN_FORM = {"drafting", "expert", "ingest", "pairs"}
"""Benchmarks that the README tells of in words."""


def written(folder: Path, name: str, *ratios: Ratio) -> int:
    return record(folder / f"{name}.json", name, settings={}, measured={}, ratios=ratios, packages=("numpy",))


def test_the_readme_says_what_the_benchmarks_say():
    page = (ROOT / "README.md").read_text()
    assert with_tables(page) == page, "python -m tests.benchmarks.table --readme README.md"


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_a_committed_benchmark_names_a_command_that_make_bench_has(path):
    result = json.loads(path.read_text())
    assert result["benchmark"] == path.stem
    command = result["command"].split(" --")[0]
    assert (
        f"{command.removeprefix('python ')} --out tests/results/benchmarks/{path.name}"
        in (ROOT / "Makefile").read_text()
    )
    assert set(result) == KEYS or path.stem in OWN_FORM


def test_computations_that_take_turns_run_one_at_a_time_and_none_always_follows_another(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("tests.benchmarks.record.time", clock)
    order: list[str] = []
    running: list[str] = []

    def steps(way: str, count: int):
        def work(pause) -> None:
            for step in range(count):
                running.append(way)
                assert running == [way], "another one is at work"
                order.append(way)
                clock.now += 5.0 if way == "slow" else 1.0
                running.clear()
                if step < count - 1:
                    pause()

        return work

    took = in_turn({"slow": steps("slow", 12), "quick": steps("quick", 12), "short": steps("short", 4)}, threads=1)
    assert [order.count(way) for way in ("slow", "quick", "short")] == [12, 12, 4]
    for turn in range(4):
        assert set(order[3 * turn : 3 * turn + 3]) == {"slow", "quick", "short"}
    turns = [tuple(order[3 * turn : 3 * turn + 3]) for turn in range(1, 4)]
    assert len(set(turns)) > 1, "drawn, and not always the same"
    assert took == {"slow": 60.0, "quick": 12.0, "short": 4.0}


def test_a_line_has_the_figure_its_bound_and_whether_it_is_kept(tmp_path):
    written(
        tmp_path,
        "b",
        Ratio(what="Quick", value=23.456, bound=20.0, unit="M tokens/s"),
        Ratio(what="Slow", value=1.3, bound=1.1, kind="at most"),
        Ratio(what="Known", value=1234.5),
    )
    (tmp_path / "a.json").write_text(json.dumps({"benchmark": "a", "machine": {}, "rows": []}))
    lines = [[cell.strip() for cell in line.split("|")[1:-2]] for line in table(tmp_path).splitlines()[2:]]
    assert lines == [
        ["Quick", "23.5 M tokens/s", "≥ 20", "yes"],
        ["Slow", "1.3 ×", "≤ 1.1", "**no**"],
        ["Known", "1,234 ×", "", ""],
    ]


def test_prose_around_the_table_stays_and_writing_it_twice_changes_nothing(tmp_path):
    written(tmp_path, "b", Ratio(what="Quick", value=2.0))
    once = replaced(f"before\n\n{BEGIN}\nold\n{END}\nafter\n", BEGIN, END, table(tmp_path))
    assert once == f"before\n\n{BEGIN}\n{table(tmp_path)}\n{END}\nafter\n"
    assert replaced(once, BEGIN, END, table(tmp_path)) == once


@pytest.mark.parametrize("page", ["", BEGIN, f"{END} {BEGIN}", f"{BEGIN} {END} {BEGIN} {END}"])
def test_a_page_without_its_markers_is_an_error(page):
    with pytest.raises(ValueError, match="benchmark-table"):
        replaced(page, BEGIN, END, "")


def test_a_bound_that_is_not_kept_is_an_exit_status(tmp_path):
    kept, missed = Ratio(what="a", value=2.0, bound=2.0), Ratio(what="b", value=2.1, bound=2.0, kind="at most")
    assert written(tmp_path, "good", kept, Ratio(what="c", value=0.1)) == 0
    assert written(tmp_path, "bad", kept, missed) == 1
    assert set(json.loads((tmp_path / "bad.json").read_text())) == KEYS


def test_ways_take_turns_and_a_ratio_is_the_median_of_the_repetitions():
    turns = []
    ways = {name: lambda name=name: turns.append(name) for name in "ab"}
    timings = alternate(ways, repeats=3, clock=iter(range(100)).__next__)
    assert "".join(turns) == "ba" + "ab" + "ba" + "ab"
    assert timings.of == {"a": [1, 1, 1], "b": [1, 1, 1]}
    assert Timings(of={"a": [2, 9, 8], "b": [1, 1, 2]}).ratio("a", "b") == 4


def test_the_peak_of_a_training_is_its_own_and_not_that_of_the_process_that_started_it():
    large = torch.ones(2**28)  # a GB: more than the training below takes with all libraries
    case = json.dumps(
        {"way": "redraft", "vocabulary": 64, "hidden": 16, "layers": 1, "rows": 2, "prompt": 4, "response": 4}
    )
    command = [sys.executable, "-m", "tests.benchmarks.training_memory", case, "1"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert found["before"] <= found["loaded"] <= found["peak"] < large.nbytes


def test_a_benchmark_goes_on_with_what_was_measured_alike_and_refuses_all_else(tmp_path):
    file = tmp_path / "one.json"
    assert measured_before(file, {"rows": 4}) is None
    record(file, "one", settings={"rows": 4}, measured={"seconds": 2}, ratios=[], packages=("numpy",))
    assert measured_before(file, {"rows": 4}) == {"seconds": 2}
    with pytest.raises(ValueError, match="begin anew"):
        measured_before(file, {"rows": 5})
    file.write_text(file.read_text().replace('"cores": ', '"cores": 1'))
    with pytest.raises(ValueError, match="begin anew"):
        measured_before(file, {"rows": 4})
