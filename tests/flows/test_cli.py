"""The command line: answers at once, takes every key, and turns a user's mistake into one clear message."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from core.config import PRESETS, RunConfig, config_path, parse_config, read_toml
from core.errors import ConfigError
from flows import cli
from flows.configuring import write_config


def redraft(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={"REDRAFT_HOME": str(home), "PATH": "/usr/bin:/bin"}
    )


def test_help_needs_no_heavy_library():
    heavy = "torch", "transformers", "polars", "prefect", "mlflow", "openai", "numpy"
    code = f"import flows.cli, sys; print([name for name in {heavy!r} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_help_names_every_verb(tmp_path):
    shown = redraft("--help", home=tmp_path)
    assert shown.returncode == 0
    for verb in (
        "run",
        "rerun",
        "serve",
        "status",
        "report",
        "lineage",
        "experiment",
        "ui",
        "expert",
        "init",
        "doctor",
    ):
        assert f" {verb} " in shown.stdout


@pytest.mark.parametrize("preset", PRESETS)
def test_shipped_configurations_parse(preset):
    parse_config(read_toml(config_path(preset)), preset)


@pytest.mark.parametrize("preset", PRESETS)
def test_init_writes_a_file_that_means_the_same_and_explains_every_key(preset, tmp_path):
    file = tmp_path / "mine.toml"
    write_config(file, preset)
    written = parse_config(read_toml(file), str(file))
    assert written == parse_config(read_toml(config_path(preset)), preset)
    lines = file.read_text().splitlines()
    keys = [i for i, line in enumerate(lines) if " = " in line and not line.startswith("#")]
    unexplained = [lines[i] for i in keys if not lines[i - 1].startswith("#")]
    assert unexplained == []
    with pytest.raises(ConfigError, match="exists already"):
        write_config(file, preset)


def leaves(model: BaseModel, prefix: str = "") -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    for name in type(model).model_fields:
        value = getattr(model, name)
        found += leaves(value, f"{prefix}{name}.") if isinstance(value, BaseModel) else [(prefix + name, value)]
    return found


_CHOICES = {
    "data.source": "llava", "model.tokenizer": "bpe",
    "vision.optimizer": "adamw", "base.optimizer": "adamw", "stage1.optimizer": "adamw",
    "stage2.optimizer": "adamw", "control.optimizer": "adamw", "mask.t_sampling": "iid", "revision.t_sampling": "iid",
    "mask.fill": "ignore", "revision.fill": "ignore", "revision.syntax_schedule": "dynamic",
    "revision.replacement": "ordinary", "revision.pair_noise": "none", "objective.noise_weight": "elbo",
    "objective.kind_count": "batch", "objective.pair_loss": "span", "objective.refine_scope": "full",
    "refine.input": "trajectory", "expert.structured": "none", "expert.max_tokens_field": "max_tokens",
    "pair.kinds": ["place"], "draft.settings": ["3 refine"], "evaluate.settings": ["3 freeze"],
}  # fmt: skip


def changed(key: str, value: object) -> object:
    if key in _CHOICES:
        return _CHOICES[key]
    match value:
        case bool():
            return not value
        case int():
            return value + 4
        case float():
            return value / 2 if value else 0.5
        case None:
            return 1.5
        case tuple():
            return ["other"]
        case _:
            return "other"


def test_every_key_of_a_file_takes_effect(tmp_path, monkeypatch):
    wanted = {key: changed(key, value) for key, value in leaves(RunConfig())}
    tables: dict[str, list[str]] = {}
    for key, value in wanted.items():
        table, _, name = key.rpartition(".")
        literal = str(value).lower() if isinstance(value, bool) else repr(value)
        tables.setdefault(table, []).append(f"{name} = {literal}")
    file = tmp_path / "all.toml"
    file.write_text("\n".join((f"[{table}]\n" if table else "") + "\n".join(rows) for table, rows in tables.items()))
    seen: list[RunConfig] = []
    monkeypatch.setattr("flows.running.run_loop", lambda config, **_: seen.append(config) or 0)
    assert cli.app.meta(["run", "--config", str(file)], exit_on_error=False, result_action="return_value") == 0
    taken = {key: list(value) if isinstance(value, tuple) else value for key, value in leaves(seen[0])}
    assert taken == wanted | {key: str(Path("other").resolve()) for key in ("data.path", "data.images")}


@pytest.mark.parametrize(
    ("text", "message"),
    [("[rounds]\nnumber = 3\n", "number"), ("seeds = 1\n", "seeds"), ("[rounds]\nn = -1\n", "greater than or equal")],
)
def test_a_wrong_key_or_value_is_a_usage_error_that_names_it(text, message, tmp_path):
    file = tmp_path / "wrong.toml"
    file.write_text(text)
    result = redraft("run", "--config", str(file), home=tmp_path)
    assert result.returncode == 2
    assert message in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "--config", "nowhere.toml"], 2, "nowhere.toml"),
        (["rerun", "no-such-run"], 1, "redraft status"),
        (["report", "no-such-run"], 1, "no-such-run"),
        (["lineage", "deadbeef"], 1, "deadbeef"),
        (["dance"], 2, "dance"),
    ],
)
def test_a_users_mistake_is_one_clear_message(arguments, code, message, tmp_path):
    result = redraft(*arguments, home=tmp_path)
    assert result.returncode == code
    assert message in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr


@pytest.mark.parametrize(
    "spelling",
    [["--gen_length", "64"], ["--max-new-tokens", "64"], ["--max_new_tokens=64"], ["--model.response_length=64"]],
)
def test_the_length_of_a_response_may_be_called_as_the_published_codes_call_it(spelling, monkeypatch):
    seen: list[RunConfig] = []
    monkeypatch.setattr("flows.running.run_loop", lambda config, **_: seen.append(config) or 0)
    cli.app.meta(["run", *spelling], exit_on_error=False, result_action="return_value")
    assert seen[0].model.response_length == 64


def test_limit_and_data_shortcuts_change_the_configuration(tmp_path, monkeypatch):
    seen: list[RunConfig] = []
    monkeypatch.setattr("flows.running.run_loop", lambda config, **_: seen.append(config) or 0)
    arguments = ["run", "--config", "real", "--data", "rows.json", "--images", str(tmp_path), "--limit", "7"]
    cli.app.meta(arguments, exit_on_error=False, result_action="return_value")
    data = seen[0].data
    assert (data.source, data.images, data.train, data.dev, data.test) == ("llava", str(tmp_path), 7, 7, 7)
    assert data.path == str(Path("rows.json").resolve())
    assert seen[0].rounds.samples == 7
