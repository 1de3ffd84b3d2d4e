"""Measure whole updates of PPO: how fast they are, what they spend their time on, and beside TRL.

    python benchmarks/ppo_step.py --json ppo.json
    python benchmarks/ppo_step.py --json ppo.json --peer trl
    python benchmarks/ppo_step.py --json ppo.json --profile profile.txt

Trains the models of examples/zh-reviews.yaml and runs its PPO stage as `rlhf run` does, on one
rank. The first update warms up; start-up counts nowhere. With `--peer trl` TRL, in an environment
of its own, does the same afterwards: the same models, prompts, batch sizes, learning rates,
sampling, number of optimizer steps and threads. Keys are explained in docs/performance.md.

`--profile` runs a few updates once more, watched by profilers, and writes where their time goes.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from peers.environment import interpreter, requirements
from speed import jobs
from speed.figures import Update, ppo_figures, rounded, table, unequal_lengths
from speed.profiling import profile_stage
from speed.runs import (
    Prepared,
    command_line,
    environment,
    events_of,
    prepare,
    run,
    run_peer,
    threads_of,
)
from speed.tasks import ppo_task

from rlhf_api.names import StageName

UPDATES = 30
SAMPLES_BESIDE_PEER = 6400
"""Samples after which the peer's score is the one to reach."""
PEER_SCRIPT = Path(__file__).parent / "peers" / "trl_ppo.py"


def read_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = command_line(__doc__ or "")
    parser.add_argument(
        "--updates",
        type=int,
        help=f"of each run ({UPDATES}, or those of {SAMPLES_BESIDE_PEER} samples with --peer)",
    )
    parser.add_argument("--profile", type=Path, help="file for where the time of an update goes")
    return parser.parse_args(arguments)


def measure(given: argparse.Namespace, models: Prepared, folder: Path) -> dict[str, float | None]:
    """Our run, and the peer's if it is asked for."""
    # First, since pip may take minutes: the two runs follow each other at once.
    python = interpreter(requirements()) if given.peer else None
    variables = environment(threads_of(given.threads))
    updates = given.updates or UPDATES
    batch_size = int(jobs.example(StageName.PPO, models.data)["batchSize"])
    if given.peer and not given.updates:
        updates = SAMPLES_BESIDE_PEER // batch_size
    document = jobs.ppo(models.data, models.sft, models.reward, updates)
    made, told = run(document, folder, variables)
    ours = events_of(made, StageName.PPO).updates()
    peer: Sequence[Update] | None = None
    if python is not None:
        command = [str(python), str(PEER_SCRIPT)]
        measured = run_peer(command, ppo_task(document), folder / "trl-ppo", variables)
        peer = [Update(**each) for each in json.loads(measured.read_text("utf-8"))["updates"]]
    return ppo_figures(ours, told, batch_size, peer)


def main(arguments: list[str] | None = None) -> int:
    """Run all and write the figures; 1 if they compare different work."""
    given = read_arguments(arguments)
    with tempfile.TemporaryDirectory(prefix="ppo-step-") as temporary:
        folder = Path(temporary)
        kept = (given.folder or folder / "kept").resolve()
        kept.mkdir(parents=True, exist_ok=True)
        models = prepare(kept)
        found = measure(given, models, folder)
        if given.profile is not None:
            document = jobs.ppo(models.data, models.sft, models.reward, 1)
            variables = environment(threads_of(given.threads))
            text = profile_stage(document, folder / "profile", variables)
            given.profile.write_text(text, "utf-8")
            sys.stdout.write(text)
    given.json.write_text(json.dumps(rounded(found), indent=2) + "\n", "utf-8")
    sys.stdout.write(table(found))
    reason = unequal_lengths(found)
    if reason is not None:
        sys.stdout.write(f"{reason}\n")
    return int(reason is not None)


if __name__ == "__main__":
    sys.exit(main())
