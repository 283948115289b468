"""A small flow to serve: it notes when it begins and ends, as the pipeline does."""

import os
import sys
import time
from datetime import timedelta
from pathlib import Path

from prefect import flow

from flows.lost_runs import note_process


@flow
def tick(file: str, seconds: float) -> None:
    """Note the start with what the environment says, sleep, note the end."""
    note_process()
    facts = [os.environ["PREFECT_API_URL"], os.environ["MLFLOW_TRACKING_URI"], os.environ["PREFECT_HOME"]]
    with Path(file).open("a") as notes:
        notes.write(f"start {' '.join(facts)}\n")
    time.sleep(seconds)
    with Path(file).open("a") as notes:
        notes.write("end\n")


def main(home: str, file: str) -> None:
    """Serve `tick` every two seconds with the servers of `home`; each run would take ten minutes."""
    from prefect.schedules import Interval

    from flows.serve import serve_loop
    from flows.servers import servers

    with servers(Path(home)):
        serve_loop(
            tick,
            name="ticks",
            schedule=Interval(timedelta(seconds=2)),
            parameters={"file": file, "seconds": 600.0},
            on_ready=lambda: print("ready", flush=True),  # noqa: T201  (the test waits for it)
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
