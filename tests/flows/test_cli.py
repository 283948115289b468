"""The command line: answers at once, takes every key, and turns a user's mistake into one clear message."""

import errno
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel
from rich.console import Console

from core.config import PRESETS, RunConfig, config_path, parse_config, read_toml
from core.errors import ConfigError
from flows import cli, running
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
        "ingest",
        "pair",
        "compose",
        "draft",
        "export",
        "tokens",
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
    "data.source": "llava", "pair.by": "expert", "model.tokenizer": "bpe",
    "vision.optimizer": "adamw", "base.optimizer": "adamw", "stage1.optimizer": "adamw",
    "stage2.optimizer": "adamw", "control.optimizer": "adamw", "mask.t_sampling": "iid", "revision.t_sampling": "iid",
    "mask.fill": "ignore", "revision.fill": "ignore", "revision.syntax_schedule": "dynamic",
    "revision.replacement": "ordinary", "revision.pair_noise": "none", "objective.noise_weight": "elbo",
    "objective.kind_count": "batch", "objective.pair_loss": "span", "objective.refine_scope": "full",
    "refine.input": "trajectory", "expert.structured": "none", "expert.max_tokens_field": "max_tokens",
    "expert.mode": "batch",
    "expert.max_tokens_total": 9, "expert.max_requests": 9, "expert.image_max_side": 99, "expert.image_max_bytes": 9999,
    "rounds.promote_on": "3 refine", "pair.kinds": ["place"],
    "draft.settings": ["3 refine"], "evaluate.settings": ["3 freeze"],
    "model.prompt_attention": "prefix", "model.system": "other", "draft.dtype": "bf16", "compute.devices": ["cpu"],
    "base.precision": "bf16", "stage1.precision": "bf16", "stage2.precision": "bf16", "control.precision": "bf16",
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
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").touch()  # what data.path and model.checkpoint name; else they may be names in the store
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
    paths = "data.path", "data.images", "model.checkpoint", "place.store"
    assert taken == wanted | {key: str(Path("other").resolve()) for key in paths}


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
        (["run", "--limit", "0"], 2, "--limit"),
        (["run", "--limit", "-1"], 2, "--limit"),
        (["init", "no-such-folder/my.toml"], 2, "no-such-folder"),
        (["run", "--expert.api_key_env", "MY KEY"], 2, "expert.api_key_env"),
    ],
)
def test_a_users_mistake_is_one_clear_message(arguments, code, message, tmp_path):
    result = redraft(*arguments, home=tmp_path)
    assert result.returncode == code
    assert message in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr


SECRET = "Hunter2-s3cr3t"


@pytest.fixture
def tell(monkeypatch, capsys):
    """The command in this process: its exit code, and all that it says."""

    def call(*arguments: str, home: Path) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["redraft", *arguments])
        monkeypatch.setenv("REDRAFT_HOME", str(home))
        with pytest.raises(SystemExit) as caught:
            cli.main()
        said = capsys.readouterr()
        return caught.value.code, said.err + said.out

    return call


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["--place.database", f"postgresql://u:{SECRET}@h/db"], "place.database"),
        (["--place.prefect_url", f"http://u:{SECRET}@h/api"], "place.prefect_url"),
        (["--expert.base_url", f"https://h/v1?api-key={SECRET}"], "expert.base_url"),
        (["--expert.api_key_env", SECRET], "expert.api_key_env"),
    ],
)
@pytest.mark.parametrize("verb", ["run", "doctor"])
def test_a_secret_in_the_configuration_is_refused_and_neither_shown_nor_stored(verb, arguments, key, tmp_path, tell):
    code, said = tell(verb, *arguments, home=tmp_path)
    assert code == 2
    assert key in said
    assert SECRET not in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        f'[place]\ndatabase = "postgresql://u:{SECRET}@h/db"',
        f'[expert]\napi_key = "{SECRET}"',
        f'[expert]\napi_key_env = ["{SECRET}"]',
        f'[expert]\ntimeout_s = "{SECRET}"',
        f'expert = "{SECRET}"',
    ],
)
def test_what_is_wrong_with_a_file_is_said_without_its_values(text, tmp_path, tell):
    file = tmp_path / "wrong.toml"
    file.write_text(text)
    code, said = tell("run", "--config", str(file), home=tmp_path / "home")
    assert code == 2
    assert "expert" in said or "place.database" in said
    assert SECRET not in said


@pytest.mark.parametrize("verb", [["run"], ["status"], ["rerun", "x"], ["lineage", "x"], ["ui"]])
def test_a_home_that_is_a_file_is_one_clear_message(verb, tmp_path, tell):
    home = tmp_path / "home"
    home.touch()
    code, said = tell(*verb, home=home)
    assert code == 2
    assert said.startswith(f"redraft: REDRAFT_HOME is to be a folder, but {home} is a file")


@pytest.mark.parametrize("verb", [["run"], ["status"]])
def test_a_home_that_cannot_be_made_is_one_clear_message(verb, tmp_path, tell):
    (tmp_path / "file").touch()
    code, said = tell(*verb, home=tmp_path / "file" / "home")
    assert code == 1
    assert said.startswith(f"redraft: {tmp_path / 'file' / 'home'}")
    assert "Not a directory" in said


@pytest.mark.parametrize("named", [(), ("/elsewhere/runs/x.json",)])
def test_a_full_disk_is_one_clear_message(named, tmp_path, monkeypatch, tell):
    def fail(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", *named)

    monkeypatch.setattr("flows.running.run_loop", fail)
    code, said = tell("run", home=tmp_path)
    assert code == 1
    assert said.startswith(f"redraft: {named[0] if named else tmp_path}: No space left on device. Make room")


MARKUP = "a prompt [/INST] of [type=x] [bold] :smile: \\[red]"


def test_people_are_told_an_error_as_it_is(capsys, monkeypatch):
    monkeypatch.setattr(running, "_console", Console(stderr=True, width=20))
    running.say(MARKUP, style="red")
    assert capsys.readouterr().err == MARKUP + "\n"


class Failed:
    """As much of a flow's state as the end of a run looks at."""

    message, name = "", "Failed"

    def __init__(self, error: Exception) -> None:
        self.error = error

    def is_completed(self) -> bool:
        return False

    def result(self, raise_on_failure: bool = True) -> Exception:
        if raise_on_failure:
            raise self.error
        return self.error


@pytest.mark.parametrize("text", [MARKUP, "bytes \udce9 of another encoding"])
def test_a_failed_run_says_why_whatever_the_error_quotes(text, capsys, monkeypatch):
    monkeypatch.setattr(running, "_console", Console(file=io.StringIO()))
    assert running.conclude("run", "r[/]1", Failed(ValueError(text)), 0.0, json=True) == 1
    assert f"r[/]1 failed: {text}" in running._console.file.getvalue()
    assert json.loads(capsys.readouterr().out)["error"] == text


def test_doctor_says_an_error_as_it_is():
    from flows.doctor import line

    console = Console(file=io.StringIO(), width=20)
    console.print(line("✗", "red", "expert", MARKUP), soft_wrap=True)
    assert console.file.getvalue() == f"✗ expert  {MARKUP}\n"


def test_init_names_a_file_with_brackets_as_it_is(tmp_path, capsys):
    file = tmp_path / "[red]mine.toml"
    write_config(file, "smoke")
    assert f"wrote {file}: redraft run --config '{file}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("verb", "target"),
    [
        ("run", "flows.running.run_loop"),
        ("serve", "flows.running.serve_schedule"),
        ("ui", "flows.running.show_servers"),
        ("status", "flows.inspecting.show_status"),
        ("lineage x", "flows.inspecting.show_lineage"),
        ("doctor", "flows.doctor.examine"),
        ("experiment RD-2", "flows.experiments.verb.run_experiments"),
        ("pair x", "flows.stages.run_pair"),
        ("export x --format llava --out y", "flows.exporting.run_export"),
        ("tokens x --tokenizers y", "flows.token_shares.show_token_shares"),
    ],
)
def test_every_verb_gets_absolute_paths(verb, target, tmp_path, monkeypatch):
    seen: list[RunConfig] = []
    monkeypatch.setattr(target, lambda config, *_, **__: seen.append(config) or 0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.json").touch()  # what is no file or folder may be a name in the store
    (tmp_path / "model").mkdir()
    given = {
        "data.path": ("rows.json", f"{tmp_path}/rows.json"),
        "data.images": ("../pictures", f"{tmp_path.parent}/pictures"),
        "model.checkpoint": ("model", f"{tmp_path}/model"),
        "place.store": ("store", f"{tmp_path}/store"),
        "place.database": ("sqlite:///state.db?timeout=9", f"sqlite:///{tmp_path}/state.db?timeout=9"),
    }
    options = [word for key, (value, _) in given.items() for word in (f"--{key}", value)]
    assert cli.app.meta([*verb.split(), *options], exit_on_error=False, result_action="return_value") == 0
    taken = dict(leaves(seen[0]))
    assert {key: taken[key] for key in given} == {key: wanted for key, (_, wanted) in given.items()}


@pytest.mark.parametrize("store", ["", "s3://bucket/prefix", "file:///data", "/data"])
@pytest.mark.parametrize("database", ["", "postgresql://u@h/db", "sqlite://", "sqlite:///:memory:", "sqlite:////a/b"])
def test_addresses_and_absolute_paths_stay_as_they_are(store, database, monkeypatch):
    seen: list[RunConfig] = []
    monkeypatch.setattr("flows.running.run_loop", lambda config, **_: seen.append(config) or 0)
    arguments = ["run", f"--place.store={store}", f"--place.database={database}"]
    cli.app.meta(arguments, exit_on_error=False, result_action="return_value")
    assert (seen[0].place.store, seen[0].place.database) == (store, database)


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
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.json").touch()
    seen: list[RunConfig] = []
    monkeypatch.setattr("flows.running.run_loop", lambda config, **_: seen.append(config) or 0)
    arguments = ["run", "--config", "real", "--data", "rows.json", "--images", str(tmp_path), "--limit", "7"]
    cli.app.meta(arguments, exit_on_error=False, result_action="return_value")
    data = seen[0].data
    assert (data.source, data.images, data.train, data.dev, data.test) == ("auto", str(tmp_path), 7, 7, 7)
    assert data.path == str(Path("rows.json").resolve())
    assert seen[0].rounds.samples == 7
