"""The command `redraft`. Heavy libraries are imported by the verbs, so that --help answers at once.

Exit codes: 0 done, 1 failed, 2 usage, 3 partial (some shards failed: `redraft rerun RUN` computes those alone), 130
interrupted.
"""

import errno
import os
import sys
from contextlib import suppress
from inspect import signature
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter
from cyclopts.config import Dict

from core.config import RunConfig, config_path, parse_config, read_toml
from core.errors import ConfigError, RedraftError
from flows.cli_data import compose, draft, estimate, export, ingest, pair, revise, tokens
from flows.cli_looking import lineage, report, status
from flows.cli_options import DEFAULTS, Config, Json, Limit
from flows.cli_words import expanded, preset

app = App(
    name="redraft",
    help="Teach diffusion (vision-)language models to correct their own mistakes.",
    version_flags=["--version"],
)
app.meta.suppress_keyboard_interrupt = False  # `main` has a word to say

for _verb in (ingest, pair, compose, draft, estimate, revise, export, tokens, status, report, lineage):
    app.command(_verb)


@app.command
def run(
    *,
    config: Config = DEFAULTS,
    limit: Limit = None,
    json: Json = False,
) -> int:
    """Run the whole loop: foundation, rounds of self-correction, evaluation, report.

    --data FILE and --images DIR are short for a file of any known format (data.source, data.path) and its images.

    Parameters
    ----------
    limit
        Use at most so many samples of each kind, for a quick look.
    json
        Print one line of JSON at the end, for machines.
    """
    from flows.running import run_loop

    return run_loop(_narrowed(config, limit), json=json)


@app.command
def rerun(
    run: str,
    *,
    max_cost_usd: float | None = None,
    max_tokens_total: int | None = None,
    max_requests: int | None = None,
    deadline_s: float | None = None,
    json: Json = False,
) -> int:
    """Take up a run that failed or was killed: what is finished is kept, the rest is computed.

    A run that a limit on the expert stopped goes on with a higher one; the sums count what it has spent so far.

    Parameters
    ----------
    run
        The run's name, as `redraft status` shows it.
    max_cost_usd
        The new expert.max_cost_usd.
    max_tokens_total
        The new expert.max_tokens_total.
    max_requests
        The new expert.max_requests.
    deadline_s
        The new expert.deadline_s, counted from now.
    json
        Print one line of JSON at the end, for machines.
    """
    from flows.running import rerun_loop

    limits = {
        "max_cost_usd": max_cost_usd,
        "max_tokens_total": max_tokens_total,
        "max_requests": max_requests,
        "deadline_s": deadline_s,
    }
    return rerun_loop(run, {name: limit for name, limit in limits.items() if limit is not None}, json=json)


@app.command
def serve(*, config: Config = DEFAULTS, cron: str = "0 2 * * *") -> int:
    """Keep the loop going on this machine: each firing is a run from the champion on the next unused samples.

    Parameters
    ----------
    cron
        When, in this machine's time zone, e.g. "0 2 * * *" for every night at two.
    """
    from flows.running import serve_schedule

    return serve_schedule(config, cron)


@app.command
def experiment(
    *names: str,
    config: Config = DEFAULTS,
    seeds: tuple[int, ...] = (1, 2, 3),
    out: Path = Path("results/experiments"),
    readme: Path | None = None,
) -> int:
    """Measure experiments seed by seed, and write tables and figures.

    They are trials, RD-2, RD-3, RD-5, RD-7, RD-15, prompt-attention and approximate-decoding.

    A seed that is there already, with the same configuration and protocol, is not measured again.

    Parameters
    ----------
    names
        Which experiments.
    seeds
        Which seeds.
    out
        Folder of the results: <ID>/seed<k>.json, README.md with all tables, quality.svg.
    readme
        A page that gets the short section, between its marks.
    """
    from flows.experiments.verb import run_experiments

    return run_experiments(config, names, seeds, out, readme)


@app.command
def ui(*, config: Config = DEFAULTS) -> int:
    """Start (or join) the Prefect and MLflow servers and show their addresses, until Ctrl-C."""
    from flows.running import show_servers

    return show_servers(config)


@app.command
def expert(*, host: str = "127.0.0.1", port: int = 8900, beside: int | None = None) -> int:
    """Serve the reference expert: an OpenAI-compatible endpoint that revises by rule.

    Parameters
    ----------
    host
        Address to listen on.
    port
        Port to listen on.
    beside
        The number of a process: end when it ends.
    """
    from core.expert.server import serve as serve_expert
    from core.expert.settings import ReferenceSettings

    if beside is not None:
        from flows.processes import end_beside

        end_beside(beside)
    with suppress(KeyboardInterrupt):  # how it is meant to be ended
        serve_expert(ReferenceSettings(), host=host, port=port)
    return 0


@app.command
def init(file: Path = Path("redraft.toml"), *, preset: str = "scenes") -> int:
    """Write a commented configuration file.

    Parameters
    ----------
    file
        Where; it must not exist yet.
    preset
        The shipped configuration to start from: scenes, smoke, real or checkpoint.
    """
    from flows.configuring import write_config

    return write_config(file, preset)


@app.command
def doctor(*, config: Config = DEFAULTS) -> int:
    """Try everything that a run needs: a forward, an expert call with image and schema, a store and an MLflow write."""
    from flows.doctor import examine

    return examine(config)


@app.meta.default
def with_config(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    config: Annotated[str | None, Parameter(name="--config")] = None,
) -> int:
    """Read the configuration, then the verb.

    Parameters
    ----------
    config
        A shipped configuration (scenes, smoke, real, checkpoint) or a TOML file. Left out: scenes, but checkpoint for
        drafts of a published model.
    """
    path = config_path(config or preset(tokens))
    if tokens and tokens[0] in _configured_verbs():
        # under the verb's name: at the top a table that is called like a verb (expert) would be passed over silently
        values = read_toml(path)
        parse_config(values, str(path))  # every wrong key at once, and no value: it may be a secret
        app.config = [Dict({tokens[0]: values}, source=str(path))]
    verb, given, _ = app.parse_args(expanded(tokens), exit_on_error=False)
    if "config" in given.arguments:
        given.arguments["config"] = _settled(given.arguments["config"])
    result = verb(*given.args, **given.kwargs)
    return result if isinstance(result, int) else 0


def _configured_verbs() -> set[str]:
    """The verbs that read the configuration."""
    return {name for name in app if (verb := app[name].default_command) and "config" in signature(verb).parameters}


def _settled(config: RunConfig) -> RunConfig:
    """The configuration with absolute paths: servers and tasks may work in other folders, and so may a rerun."""
    data, place = config.data, config.place
    paths = {"path": _absolute(data.path), "images": _absolute(data.images)}
    places = {"store": _absolute(place.store), "database": _absolute_sqlite(place.database)}
    return config.model_copy(
        update={
            "data": data.model_copy(update=paths),
            "model": config.model.model_copy(update={"checkpoint": _absolute(config.model.checkpoint)}),
            "place": place.model_copy(update=places),
        }
    )


def _absolute(path: str) -> str:
    """The path from the root on; what is empty or has a scheme (s3://bucket) stays as it is."""
    return path if not path or "://" in path else str(Path(path).resolve())


def _absolute_sqlite(url: str) -> str:
    """The URL with the path of a SQLite file from the root on; other databases are not files."""
    scheme, separator, path = url.partition(":///")
    is_file = scheme.startswith("sqlite") and path and not path.startswith((":memory:", "file:", "?"))
    return f"{scheme}{separator}{Path(path).resolve()}" if is_file else url


def _narrowed(config: RunConfig, limit: int | None) -> RunConfig:
    """The configuration with at most `limit` samples of each kind."""
    if limit is None:
        return config
    data, rounds = config.data, config.rounds
    counts = {name: min(limit, getattr(data, name)) for name in ("train", "dev", "test")}
    fewer = rounds.model_copy(update={"samples": min(limit, rounds.samples)})
    return config.model_copy(update={"data": data.model_copy(update=counts), "rounds": fewer})


def main() -> None:
    """Run the command; every error of the user's making is one clear message."""
    try:
        code = app.meta(exit_on_error=False, result_action="return_value")
    except CycloptsError:
        code = 2  # cyclopts has printed the message
    except ConfigError as error:
        sys.stderr.write(f"redraft: {error}\n")
        code = 2
    except RedraftError as error:
        sys.stderr.write(f"redraft: {error}\n")
        code = 1
    except OSError as error:
        sys.stderr.write(f"redraft: {_explained(error)}\n")
        code = 1
    except KeyboardInterrupt:
        sys.stderr.write("redraft: interrupted. What is finished is kept: give the command again\n")
        code = 130
    sys.exit(code if isinstance(code, int) else 0)


def _explained(error: OSError) -> str:
    """Which file or folder it is about, and what to do; writes to a full disk do not say where they went."""
    home = Path(os.environ.get("REDRAFT_HOME", ".redraft")).resolve()
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    advice = "make room on that disk" if full else "see to it that it can be read and written"
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename or home}: {reason}. {advice.capitalize()}, or let REDRAFT_HOME (now {home}) be elsewhere"


if __name__ == "__main__":
    main()
