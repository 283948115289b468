"""What `redraft estimate --train` foretells against the resident memory of real training steps.

python -m tests.benchmarks.bench_memory_planner --out tests/results/benchmarks/memory_planner.json

Each measurement is a process of its own (`tests.benchmarks.training_memory`): hidden 512, 8 layers, AdamW; all weights
in fp32, and adapters on weights in bf16 with activations computed again, two rows at once, these with the largest
vocabulary alone: with a small one, libraries take as much as such a training. Bounds say how far off the plan may be,
which knows of tensors alone. To what is planned the verb adds 20 % and 1 GB: what it says is needed is held against the
peak of the whole process, which must not be more. Images are in tests/core/training/test_memory.py.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from core.training.memory import MemoryPlan, RowSizes, plan_training
from flows.planning import needed
from tests.benchmarks.record import Ratio, record
from tests.benchmarks.training_memory import Memory, MemoryCase
from tests.benchmarks.training_step import Shape, denoiser


def planned(case: MemoryCase) -> MemoryPlan:
    """Of its settings and rows."""
    shape = Shape(vocabulary=case.vocabulary, hidden=case.hidden, layers=case.layers, intermediate=3 * case.hidden)
    length = case.prompt + case.response
    row = RowSizes(text=length, supervised=round(case.supervised * length))
    return plan_training(denoiser(shape, dtype=case.dtype), case.settings, row)


def measured(case: MemoryCase, threads: int) -> Memory:
    """In a fresh process."""
    command = [sys.executable, "-m", "tests.benchmarks.training_memory", json.dumps(asdict(case)), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Memory(**json.loads(done.stdout.splitlines()[-1]))


def main() -> int:
    """Run, write the JSON, and return 0 if every plan is near enough."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[2_048, 126_464])
    parser.add_argument("--rows", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    cases = [
        MemoryCase(way="redraft", vocabulary=vocabulary, rows=rows, adapted=adapted, at_once=2 if adapted else 0)
        for vocabulary in args.vocabularies
        for rows in args.rows
        for adapted in ((False, True) if vocabulary == max(args.vocabularies) else (False,))
    ]
    found: dict[str, Any] = {}
    ratios = []
    for case in cases:
        how = ", adapters, bf16, two rows at once" if case.adapted else ""
        name = f"vocabulary {case.vocabulary:,}, {case.rows} rows{how}"
        plan, real = planned(case), measured(case, args.threads)
        found[name] = {"planned": plan.total, "needed": needed(plan), "measured": real.step, **asdict(real)}
        for kind, bound in (("at least", 0.8), ("at most", 1.2)):
            value = plan.total / real.step
            ratios.append(Ratio(what=f"planned over measured, {name}", value=value, bound=bound, kind=kind))
        ratios.append(
            Ratio(what=f"needed as told over the process's peak, {name}", value=needed(plan) / real.peak, bound=1.0)
        )
    settings = {key: value for key, value in vars(args).items() if key != "out"}
    return record(args.out, "memory_planner", settings=settings, measured=found, ratios=ratios)


if __name__ == "__main__":
    sys.exit(main())
