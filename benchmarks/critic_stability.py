"""Measure how the critic fares while returns grow, with and without what is to keep it steady.

    python benchmarks/critic_stability.py --json critic.json

Runs the PPO stage as `rlhf run` runs it, for each variant of `critic.toy.VARIANTS` and each seed,
with a Python reward that grows as the policy improves, and reads what it tells in `events.jsonl`.
Keys are `VARIANT.FIGURE`; `critic.figures` says how each is made. Two runs go side by side, each on
one core: OMP_NUM_THREADS is 1 for them, whatever it is here, since sums that threads share out
otherwise end otherwise. Courses are drawn beside the figures, and with --page the tables of
docs/critic.md and of the decision are made anew. Exit code 1: a goal of `critic.figures.GOALS` is
missed, or a full run (all variants, 5 seeds or more, 100 updates or more) has not measured it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path

import yaml
from critic.figures import (
    BROKEN,
    GOAL_SEEDS,
    SECONDS,
    Course,
    Runs,
    figures,
    missed,
    not_measured,
    rounded,
    table,
)
from critic.page import write_pages
from critic.plots import draw
from critic.toy import VARIANTS, job, write_data

from rlhf_api.names import GuardrailRule

METRICS = (
    "critic_loss",
    "critic_loss_of_mean",
    "explained_variance",
    "returns_abs_mean",
    "reward",
    "kl",
)
RUN_SECONDS = 900
GOAL_UPDATES = 100


class RunError(RuntimeError):
    """A run did not end well."""


def read_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--seeds", type=int, default=GOAL_SEEDS, help="runs of each variant (%(default)s)"
    )
    parser.add_argument(
        "--updates", type=int, default=GOAL_UPDATES, help="updates of each run (%(default)s)"
    )
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--workers", type=int, default=2, help="runs side by side (2)")
    parser.add_argument("--json", type=Path, required=True, help="file for the figures")
    parser.add_argument("--plot", type=Path, help="SVG file for the courses (beside --json)")
    parser.add_argument("--page", type=Path, nargs="*", default=[], help="Markdown with tables")
    parser.add_argument("--folder", type=Path, help="for the runs (a temporary one)")
    given = parser.parse_args(arguments)
    if given.plot is None:
        given.plot = given.json.with_suffix(".svg")
    return given


def run(name: str, variant: str, seed: int, updates: int, folder: Path) -> Course:
    """Train one variant with one seed.

    Raises:
        RunError: the stage failed, with the end of what it printed; or it took RUN_SECONDS.
    """
    begun = time.monotonic()
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(job(name, variant, seed, updates, folder / "data")))
    command = [sys.executable, "-m", "rlhf_cli", "run", str(path), "--workdir", str(folder)]
    try:
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    except subprocess.TimeoutExpired as error:
        raise RunError(
            f"{name} took longer than {RUN_SECONDS} s: ask for fewer --updates or --workers"
        ) from error
    if done.returncode:
        raise RunError(f"{name} ended with {done.returncode}: {done.stdout[-3000:]}{done.stderr}")
    sys.stderr.write(f"{name}: {time.monotonic() - begun:.0f} s\n")
    return read_course(next(folder.glob(f"{name}/*/ppo/attempt-1/events.jsonl")))


def read_course(path: Path) -> Course:
    """The metrics of each update that a run told, and whether its critic was judged diverging."""
    events = [json.loads(line) for line in path.read_text().splitlines()]
    steps = [event for event in events if event["type"] == "step"]
    turned = {
        event["step"]: float(event["broken"])
        for event in events
        if event["type"] == "verdict" and event["rule"] == GuardrailRule.CRITIC_LOSS_DIVERGING
    }
    # A verdict is told when it changes.
    broken = accumulate(
        (turned.get(event["step"]) for event in steps),
        lambda before, now: before if now is None else now,
        initial=0.0,
    )
    course = {metric: [event["metrics"][metric] for event in steps] for metric in METRICS}
    return course | {BROKEN: list(broken)[1:]}


def measure(given: argparse.Namespace, folder: Path) -> Runs:
    """All runs, by variant and seed."""
    write_data(folder / "data")
    wanted = [(variant, seed) for seed in range(given.seeds) for variant in given.variants]
    with ThreadPoolExecutor(given.workers) as pool:
        found = pool.map(
            lambda each: run(
                f"{each[0].lower()}-{each[1]}", each[0], each[1], given.updates, folder
            ),
            wanted,
        )
        courses = dict(zip(wanted, found, strict=True))
    return {
        variant: {seed: courses[variant, seed] for seed in range(given.seeds)}
        for variant in given.variants
    }


def main(arguments: list[str] | None = None) -> int:
    """Run all, write the figures and the plot; 1 if a goal is missed."""
    given = read_arguments(arguments)
    begun = time.monotonic()
    compared = set(given.variants) == set(VARIANTS)
    full = compared and given.seeds >= GOAL_SEEDS and given.updates >= GOAL_UPDATES
    if not full:
        sys.stderr.write(
            f"the goals are for all variants, {GOAL_SEEDS} seeds or more and {GOAL_UPDATES} "
            "updates or more\n"
        )
    with tempfile.TemporaryDirectory(prefix="critic-") as temporary:
        folder = (given.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        runs = measure(given, folder)
    found = figures(runs, compared=compared)
    if full:
        found[SECONDS] = time.monotonic() - begun
    given.json.write_text(json.dumps(rounded(found), indent=2) + "\n")
    draw(runs, given.plot)
    sys.stdout.write(table(found, given.variants))
    write_pages(given.page, rounded(found))
    sentences, unknown = missed(found), not_measured(found)
    sys.stdout.writelines(f"{sentence}\n" for sentence in [*sentences, *unknown])
    return 1 if sentences or (full and unknown) else 0


if __name__ == "__main__":
    sys.exit(main())
