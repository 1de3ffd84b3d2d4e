"""Measure how fast SFT and the reward model learn, alone and beside TRL.

    python benchmarks/supervised.py --json supervised.json
    python benchmarks/supervised.py --json supervised.json --peer trl
    python benchmarks/supervised.py --json supervised.json --profile profile.txt

Runs the stages of examples/zh-reviews.yaml as `rlhf run` does, on one rank, from a finished SFT
model. The first steps warm up; start-up counts nowhere. SFT has one row a sequence, as TRL has, and
once more rows packed as the stage does by itself. With `--peer trl` TRL, in an environment of its
own, does the same: the same model, rows, batch sizes, learning rates, number of steps and threads.
Keys are explained in docs/performance.md.

`--profile` runs a few steps of each stage once more, watched by profilers, and writes where their
time goes.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from peers.environment import interpreter, requirements
from speed import jobs
from speed.figures import Pace, rounded, rows_per_second, table
from speed.jobs import Raw
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
from speed.tasks import Task, reward_task, sft_task

from rlhf_api.names import StageName

STEPS = 60
WARM_UP_STEPS = 5
PEER_SCRIPT = Path(__file__).parent / "peers" / "trl_supervised.py"


def read_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = command_line(__doc__ or "")
    parser.add_argument("--steps", type=int, default=STEPS, help="of each run (%(default)s)")
    parser.add_argument("--profile", type=Path, help="file for where the time of a step goes")
    given = parser.parse_args(arguments)
    if given.steps <= WARM_UP_STEPS:
        parser.error(f"--steps {given.steps}: {WARM_UP_STEPS} steps warm up; give more")
    return given


def measure(given: argparse.Namespace, made: Prepared, folder: Path) -> dict[str, float]:
    """All runs, each beside the peer's of its kind."""
    # First, since pip may take minutes: runs that are compared follow each other at once.
    python = interpreter(requirements()) if given.peer else None
    variables = environment(threads_of(given.threads))

    def ours(document: Raw, stage: StageName) -> float:
        finished, _ = run(document, folder, variables)
        return rows_per_second(events_of(finished, stage).paces(), WARM_UP_STEPS)

    def peers(document: Raw, task: Callable[[Raw], Task], stage: StageName) -> float:
        asked = task(document)
        command = [str(python), str(PEER_SCRIPT)]
        measured = run_peer(command, asked, folder / f"trl-{stage}", variables)
        seconds = json.loads(measured.read_text("utf-8"))["seconds"]
        return rows_per_second(paces_of(seconds, asked["batchSize"]), WARM_UP_STEPS)

    sft = jobs.sft(made.data, made.sft, given.steps, packing=False)
    packed = jobs.sft(made.data, made.sft, given.steps, packing=True)
    reward = jobs.reward(made.data, made.sft, given.steps)
    found = {"sft_samples_per_s": ours(sft, StageName.SFT)}
    if python is not None:
        found["sft_samples_per_s_trl"] = peers(sft, sft_task, StageName.SFT)
    found["sft_packed_samples_per_s"] = ours(packed, StageName.SFT)
    found["reward_pairs_per_s"] = ours(reward, StageName.REWARD)
    if python is not None:
        found["reward_pairs_per_s_trl"] = peers(reward, reward_task, StageName.REWARD)
    return with_speedups(found)


def profiles(given: argparse.Namespace, made: Prepared, folder: Path) -> str:
    """Where the time of a step of SFT, packed, and of the reward model goes."""
    variables = environment(threads_of(given.threads))
    documents = {
        "SFT, packed": jobs.sft(made.data, made.sft, given.steps, packing=True),
        "reward model": jobs.reward(made.data, made.sft, given.steps),
    }
    return "\n".join(
        f"{name}: {profile_stage(document, folder / f'profile-{number}', variables)}"
        for number, (name, document) in enumerate(documents.items())
    )


def paces_of(seconds: list[float], batch_size: int) -> list[Pace]:
    """Of a peer, whose steps all have as many rows."""
    return [Pace(each, number * batch_size) for number, each in enumerate(seconds, 1)]


def with_speedups(found: dict[str, float]) -> dict[str, float]:
    """The same with how much faster we are, where the peer was measured."""
    kinds = {"sft": "sft_samples_per_s", "reward": "reward_pairs_per_s"}
    return found | {
        f"{kind}_speedup_vs_trl": found[speed] / found[f"{speed}_trl"]
        for kind, speed in kinds.items()
        if f"{speed}_trl" in found
    }


def main(arguments: list[str] | None = None) -> int:
    """Run all and write the figures."""
    given = read_arguments(arguments)
    with tempfile.TemporaryDirectory(prefix="supervised-") as temporary:
        folder = Path(temporary)
        kept = (given.folder or folder / "kept").resolve()
        kept.mkdir(parents=True, exist_ok=True)
        made = prepare(kept)
        found = measure(given, made, folder)
        if given.profile is not None:
            text = profiles(given, made, folder)
            given.profile.write_text(text, "utf-8")
            sys.stdout.write(text)
    given.json.write_text(json.dumps(rounded(found), indent=2) + "\n", "utf-8")
    sys.stdout.write(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
