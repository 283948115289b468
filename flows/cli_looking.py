"""The verbs that only look."""

from flows.cli_options import DEFAULTS, Config, Json


def status(*, config: Config = DEFAULTS, json: Json = False) -> int:
    """Show the runs and how they stand.

    Parameters
    ----------
    json
        Print one line of JSON at the end, for machines.
    """
    from flows.inspecting import show_status

    return show_status(config, json=json)


def report(run: str) -> int:
    """Print a run's results and where its report lies.

    Parameters
    ----------
    run
        The run's name, as `redraft status` shows it.
    """
    from flows.inspecting import show_report

    return show_report(run)


def lineage(ref: str, *, config: Config = DEFAULTS, json: Json = False) -> int:
    """Show what a dataset or checkpoint was made from, back to its first ancestors.

    Parameters
    ----------
    ref
        Folder in the store, e.g. datasets/draft-1f2e3d4c5b6a7980, or the beginning of a digest.
    json
        Print one line of JSON, for machines.
    """
    from flows.inspecting import show_lineage

    return show_lineage(config, ref, json=json)
