"""Where the time of a stage goes: `python -m speed.profiling stage.json profile.txt`.

`--profile` of `ppo_step.py` and `supervised.py` starts it in a process of its own, as the rank of a
stage. An update, or a step of SFT or of the reward model, consists of phases. The first one warms
up. One more is watched by Python's profiler, which tells functions, and one by torch's, which
tells operators, those of backward passes too; each makes an update slower by what it watches, so
that shares count and not seconds.
"""

import cProfile
import io
import os
import pstats
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile

from rlhf_api.metrics import Phase
from rlhf_api.names import StageName
from rlhf_api.v1alpha1 import RLHFJob, StageConfig
from rlhf_trainer.__main__ import main as run_rank
from rlhf_trainer.__main__ import stage_named
from rlhf_trainer.process.outcome import StageOutcome
from rlhf_trainer.process.stopping import StopFlag
from rlhf_trainer.run.distributed import Ranks
from rlhf_trainer.run.report import Reporter

PHASES: dict[StageName, tuple[Phase, ...]] = {
    StageName.SFT: (Phase.LEARNING,),
    StageName.REWARD: (Phase.LEARNING,),
    StageName.PPO: (Phase.ROLLOUT, Phase.SCORING, Phase.LEARNING),
}
"""Of an update, in their order."""
WARM_UP_UPDATES = 2
TIMED_UPDATES = 4
UPDATES = WARM_UP_UPDATES + TIMED_UPDATES + 2
MOST_LINES = 15
PROFILE_SECONDS = 1800

ALONE = {
    "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
}  # fmt: skip


class Watch:
    """Follows the phases of a reporter: times some updates, then profiles one in each way."""

    def __init__(self, phases: Sequence[Phase]) -> None:
        self.seconds = dict.fromkeys(phases, 0.0)
        self.functions = {phase: cProfile.Profile() for phase in phases}
        self.operators: dict[Phase, Counter[str]] = {phase: Counter() for phase in phases}
        self.watched = dict.fromkeys(phases, 0.0)
        self._first = phases[0]
        self._update = 0

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """One that an update spends its time on."""
        self._update += phase is self._first
        past = self._update - WARM_UP_UPDATES
        if past < 1:
            yield
        elif past <= TIMED_UPDATES:
            begun = perf_counter()
            yield
            self.seconds[phase] += perf_counter() - begun
        elif past == TIMED_UPDATES + 1:
            with self.functions[phase]:
                yield
        else:
            with self._operators(phase):
                yield

    @contextmanager
    def _operators(self, phase: Phase) -> Iterator[None]:
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            begun = perf_counter()
            yield
            self.watched[phase] += perf_counter() - begun
        for event in seen.key_averages():
            self.operators[phase][event.key] += event.self_cpu_time_total / 1e6


def text_of(watch: Watch) -> str:
    """The profile, for people."""
    whole = sum(watch.seconds.values())
    parts = [f"an update takes {whole / TIMED_UPDATES:.2f} s ({torch.get_num_threads()} threads)\n"]
    for phase, seconds in watch.seconds.items():
        parts.append(f"\n{phase}: {seconds / whole:.0%} of an update\n")
        parts.append(operator_lines(watch.operators[phase], watch.watched[phase]))
        parts.append(function_lines(watch.functions[phase]))
    return "".join(parts)


def operator_lines(seconds: Mapping[str, float], whole: float) -> str:
    """The operators that take most, and what lies between them: Python, and calling operators."""
    ranked = sorted(seconds.items(), key=lambda item: -item[1])
    lines = [f"  {name:<60} {spent / whole:6.1%}\n" for name, spent in ranked[:MOST_LINES]]
    between = whole - sum(seconds.values())
    lines.append(f"  {'(between operators)':<60} {between / whole:6.1%}\n")
    return "".join(lines)


def function_lines(seen: cProfile.Profile) -> str:
    """The functions that take most by themselves, and the project's with all that they call."""
    found = io.StringIO()
    stats = pstats.Stats(seen, stream=found)
    stats.sort_stats("tottime").print_stats(MOST_LINES)
    stats.sort_stats("cumulative").print_stats("rlhf_trainer|transformers/generation", MOST_LINES)
    return "".join(f"  {line}\n" for line in found.getvalue().splitlines() if line.strip())


def profiled(config: StageConfig, ranks: Ranks, stop: StopFlag, made: Path) -> StageOutcome:
    """Run the stage with its phases watched."""
    watch = Watch(PHASES[config.stage])
    told = Reporter.phase

    @contextmanager
    def phase(reporter: Reporter, name: Phase) -> Iterator[None]:
        with told(reporter, name):
            if name in watch.seconds:
                with watch.phase(name):
                    yield
            else:
                yield

    with patch.object(Reporter, "phase", phase):
        outcome = stage_named(config.stage)(config, ranks, stop)
    made.write_text(text_of(watch), "utf-8")
    return outcome


def stage_config(document: Mapping[str, object], storage: Path) -> StageConfig:
    """The only stage of a job, whose models are given by URI, on one rank."""
    ((name, stage),) = RLHFJob.from_document(dict(document)).spec.stages.present().items()
    given = {
        "job": {"name": "profile", "uid": "00000000-aaaa"},
        "stage": name,
        "attempt": 1,
        "storage": str(storage),
        name: stage.model_copy(update={"max_steps": UPDATES}).to_document(),
    }
    return StageConfig.model_validate(given).with_digest()


def profile_stage(
    document: Mapping[str, object], storage: Path, variables: Mapping[str, str]
) -> str:
    """Profile some updates of a job's only stage in a process of its own."""
    storage.mkdir()
    given, made = storage / "stage.json", storage / "profile.txt"
    given.write_text(stage_config(document, storage).to_json(), "utf-8")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    benchmarks = str(Path(__file__).parents[1])
    path = os.pathsep.join([benchmarks, *filter(None, [variables.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "speed.profiling", str(given), str(made)],
        check=False,
        capture_output=True,
        text=True,
        timeout=PROFILE_SECONDS,
        env=dict(variables) | ALONE | {"MASTER_PORT": str(port), "PYTHONPATH": path},
    )
    if done.returncode:
        raise RuntimeError(f"the profile ended with {done.returncode}: {done.stderr[-3000:]}")
    return made.read_text("utf-8")


if __name__ == "__main__":
    sys.exit(
        run_rank(
            sys.argv[1:2],
            lambda config, ranks, stop: profiled(config, ranks, stop, Path(sys.argv[2])),
        )
    )
