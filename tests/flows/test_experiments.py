"""Tables over seeds, on results whose truth is known. That seeds are measured is tested with the loop."""

import json
from pathlib import Path

import numpy as np
import pytest

from core.config import RunConfig
from core.errors import ConfigError, InputError
from flows.experiments.catalogue import CATALOGUE, FROZEN
from flows.experiments.claims import CLAIMS
from flows.experiments.tables import BEGIN, END, load, report, write_tables
from flows.experiments.verb import decisive, run_experiments

SCENES = 40


def row(arm: str, setting: str, score: float, seed: int) -> dict[str, object]:
    shape, policy = setting.split()
    tokens, _, extra = shape.partition("+")
    noise = np.random.default_rng([seed, len(arm), len(setting)]).normal(0, 2, SCENES)
    scores = (score + noise - noise.mean()).round(6).tolist()
    return {
        "arm": arm, "setting": setting, "policy": policy, "tokens_per_step": int(tokens),
        "extra_steps": int(extra or 0), "train_steps": 100, "nfe": 48 / int(tokens) + int(extra or 0),
        "score": score, "scores": scores, "place_accuracy": 0.9, "place_accuracy_low": 0.85,
        "place_accuracy_high": 0.95, "place_chance": 0.111,
    }  # fmt: skip


def write_seed(out: Path, experiment: str, seed: int, rows: list[dict[str, object]], **about: object) -> Path:
    path = out / experiment / f"seed{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"experiment": experiment, "seed": seed, **about, "rows": rows}))
    return path


def rd2(seed: int, rediff_8: float = 80.0) -> list[dict[str, object]]:
    level = {"base": 60.0, "mask_predict": 40.0, "mask_predict_refine": 15.0, "rediff": 90.0, "rediff_freeze": 60.0}
    rows = []
    for arm, wanted in CATALOGUE["RD-2"].arms.items():
        for setting in wanted.settings:
            rows.append(row(arm, setting, rediff_8 if (arm, setting) == ("rediff", "8 refine") else level[arm], seed))
    return rows


def lines_of(text: str, part: str) -> list[str]:
    return [line for line in text.splitlines() if part in line]


def test_the_tables_give_the_means_over_seeds(tmp_path):
    for seed, score in ((1, 70.0), (2, 80.0), (3, 90.0)):
        write_seed(tmp_path, "RD-2", seed, rd2(seed, score))
    found = load(tmp_path, "RD-2")
    assert found is not None
    assert found.seeds == [1, 2, 3]
    assert found.mean("rediff", "8 refine") == pytest.approx(80.0)
    low, high = found.interval("rediff", "8 refine")
    assert 69 < low < 75 < 85 < high < 91, "the seeds differ, and the interval says so"
    text = report([found])
    assert lines_of(text, "| rediff | on |")[0].count("|") == 12
    assert "80.0 [" in text


def test_a_must_is_decided_on_the_means_and_an_aim_by_its_interval(tmp_path):
    for seed in (1, 2):
        write_seed(tmp_path, "RD-2", seed, rd2(seed, 55.0))
    found = load(tmp_path, "RD-2")
    judged = {claim.text: found.judge(claim) for claim in CLAIMS if claim.experiment == "RD-2"}
    fails = judged["8 tokens a step: ReDiff over mask-predict"]
    assert fails.value == pytest.approx(55 / 40)
    assert fails.verdict == "**fails**"
    holds = judged["4 tokens a step: ReDiff above mask-predict"]
    assert holds.value == pytest.approx(50.0)
    assert holds.verdict == "holds"
    assert holds.seeds == pytest.approx([50.0, 50.0], abs=1e-3)
    assert holds.p is None, "its p would be of another question"
    assert judged["retention of mask-predict"].verdict == "**fails**", "40 over 40 is no loss at all"
    aim = judged["ReDiff with 10 forwards above mask-predict with 48"]
    assert aim.verdict == "holds"
    assert aim.p is not None
    assert aim.p < 0.01


def test_an_aim_needs_every_seed(tmp_path):
    for seed, score in ((1, 99.0), (2, 99.0), (3, 79.0)):
        rows = [one | {"scores": [score] * SCENES} if one["setting"] == "8+4 refine" else one for one in rd2(seed)]
        rows = [one | {"scores": [80.0] * SCENES} if one["setting"] == "1 freeze" else one for one in rows]
        write_seed(tmp_path, "RD-2", seed, rows)
    found = load(tmp_path, "RD-2")
    (aim,) = [found.judge(claim) for claim in CLAIMS if claim.text.startswith("ReDiff with 10 forwards above")]
    assert aim.seeds == pytest.approx([19.0, 19.0, -1.0])
    assert aim.verdict == "on the mean alone"


def test_a_score_of_nothing_is_a_failed_claim_and_no_crash(tmp_path):
    write_seed(tmp_path, "RD-2", 1, [one | {"scores": [0.0] * SCENES, "score": 0.0} for one in rd2(1)])
    found = load(tmp_path, "RD-2")
    verdicts = [found.judge(claim).verdict for claim in CLAIMS if claim.experiment == "RD-2" and claim.kind == "must"]
    assert set(verdicts) == {"**fails**"}


def test_the_section_of_the_readme_is_replaced_between_its_marks(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nstale words\n{END}\nafter\n")
    write_seed(tmp_path / "out", "RD-2", 1, rd2(1))
    write_tables(tmp_path / "out", readme)
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "stale words" not in text
    assert "| must |" in text
    write_tables(tmp_path / "out", readme)
    assert readme.read_text() == text
    assert (tmp_path / "out" / "quality.svg").read_text().count("<svg") == 1
    with pytest.raises(InputError, match="has no lines"):
        write_tables(tmp_path / "out", tmp_path / "other.md")


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """What is measured, (seed, experiments) each; the protocol is 'frozen'."""
    found: list[tuple[int, list[str]]] = []
    monkeypatch.setenv("REDRAFT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("core.protocol.protocol_digest", lambda _: "frozen")
    note = lambda config, names, _: found.append((config.seed, list(names)))  # noqa: E731 - what is asked for
    monkeypatch.setattr("flows.experiments.verb._measure", note)
    return found


def test_a_seed_that_is_there_is_not_measured_again(tmp_path, asked):
    config = RunConfig(seed=1)
    for seed, protocol in ((1, "frozen"), (2, "another")):
        known = decisive(config.model_copy(update={"seed": seed}), "RD-2")
        write_seed(tmp_path, "RD-2", seed, rd2(seed), config=known, protocol=protocol)
    run_experiments(config, ["RD-2"], [1], tmp_path)
    assert asked == []
    run_experiments(config, ["RD-2", "RD-7"], [1], tmp_path)
    assert asked.pop() == (1, ["RD-7"])
    run_experiments(config, ["RD-2"], [2], tmp_path)
    assert asked.pop() == (2, ["RD-2"]), "measured under another protocol"
    longer = config.model_copy(update={"base": config.base.model_copy(update={"steps": 5})})
    run_experiments(longer, ["RD-2"], [1], tmp_path)
    assert asked.pop() == (1, ["RD-2"]), "measured after another training"


def test_a_result_outlives_keys_that_are_newer_than_it_and_those_that_its_arms_set(tmp_path, asked):
    config = RunConfig(seed=1)
    known = decisive(config, "RD-2")
    newer = known.pop("rounds.patience")
    write_seed(tmp_path, "RD-2", 1, rd2(1), config=known, protocol="frozen")
    write_seed(tmp_path, "trials", 1, rd2(1), config=decisive(config, "trials"), protocol="frozen")
    run_experiments(config, ["RD-2"], [1], tmp_path)
    assert asked == []
    patient = config.model_copy(update={"rounds": config.rounds.model_copy(update={"patience": int(newer) + 1})})
    run_experiments(patient, ["RD-2"], [1], tmp_path)
    assert asked.pop() == (1, ["RD-2"]), "the new key is no longer at its default"
    faster = config.model_copy(update={"control": config.control.model_copy(update={"lr": 0.5})})
    run_experiments(faster, ["trials"], [1], tmp_path)
    assert asked == []


def test_an_unknown_experiment_is_a_usage_error(tmp_path):
    with pytest.raises(ConfigError, match="RD-99"):
        run_experiments(RunConfig(), ["RD-99"], [1], tmp_path)


def test_base_is_never_asked_to_refine_and_every_claim_has_its_arms():
    for experiment in CATALOGUE.values():
        for arm in experiment.arms.values():
            assert arm.model != "base" or set(arm.settings) <= set(FROZEN)
    for claim in CLAIMS:
        asked: list[tuple[str, str]] = []
        claim.value(lambda arm, setting, asked=asked: asked.append((arm, setting)) or np.array([1.0]))
        arms = CATALOGUE[claim.experiment].arms
        assert asked
        assert all(setting in arms[arm].settings for arm, setting in asked), claim.text


def test_contrasts_are_differences_of_two_arms_with_their_intervals(tmp_path):
    for seed in (1, 2, 3):
        rows = [
            {**rd2(seed)[0], "arm": arm, "setting": "8 refine", "policy": "refine", "tokens_per_step": 8, "nfe": 6.0,
             "scores": [50.0 + gain + seed] * SCENES}
            for arm, gain in (("published", 0.0), ("all three", 7.5))
        ]  # fmt: skip
        write_seed(tmp_path, "RD-15", seed, rows)
    text = report([load(tmp_path, "RD-15")])
    assert "| all of it | +7.5 [+7.5, +7.5] |" in text
    assert "| loss over the whole response |  |" in text, "an arm that is missing leaves its cell empty"


def test_an_experiment_about_decoding_is_told_by_what_its_settings_cost(tmp_path):
    costs = {"nfe": 24.0, "seconds": 2.5, "tokens_per_step": 2, "policy": "refine", "scores": [40.0] * SCENES}
    settings = ("2 refine block_length=16", "2 refine block_length=16 cache=dual refresh=8", "1 refine threshold=0.9")
    rows = [{**rd2(1)[0], **costs, "arm": arm, "setting": name} for arm, name in zip("abc", settings, strict=True)]
    write_seed(tmp_path, "approximate-decoding", 1, rows)
    text = report([load(tmp_path, "approximate-decoding")])
    exact, stale, threshold = (lines_of(text, f"| {name} |")[0].split(" | ") for name in settings)
    assert exact[3:5] == stale[3:5] == ["24.0", "2.5"]
    assert [row[5].removesuffix(" |") for row in (exact, stale)] == [f"{24 * 3448:,}", f"{3 * 3448 + 21 * 16:,}"]
    assert threshold[5].strip(" |") == "", "how many steps a row takes is not known beforehand"
