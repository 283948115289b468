"""Committed results are of the present world, metrics and arms, and the README says what they say."""

import json
from pathlib import Path

import pytest

from core.protocol import protocol_digest
from flows.experiments.catalogue import CATALOGUE, declaration_of
from flows.experiments.tables import BEGIN, END, load, section

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "tests" / "results" / "experiments"
SEEDS = sorted(RESULTS.glob("*-*/seed*.json"))
"""The trials are a log: the learning rates were chosen by what was measured then."""


@pytest.mark.parametrize("path", SEEDS, ids=[f"{path.parent.name}-{path.stem}" for path in SEEDS])
def test_a_committed_seed_is_of_the_present_protocol_and_has_every_arm(path):
    result = json.loads(path.read_text())
    experiment = CATALOGUE[result["experiment"]]
    assert result["protocol"] == protocol_digest(declaration_of(result["experiment"]))
    wanted = [(arm, setting) for arm, one in experiment.arms.items() for setting in one.settings]
    assert [(row["arm"], row["setting"]) for row in result["rows"]] == wanted
    for row in result["rows"]:
        assert len(row["scores"]) == row["samples"]
        assert sum(row["scores"]) / len(row["scores"]) == pytest.approx(row["score"], abs=2e-3)


def test_the_readme_says_what_the_results_say():
    measured = [found for name in CATALOGUE if (found := load(RESULTS, name)) is not None]
    page = (ROOT / "README.md").read_text()
    assert page.split(BEGIN)[1].split(END)[0].strip() == section(measured).strip()
