"""A launcher for tests: speaks the contract with the runner, and trains nothing.

Run as `python standin.py stage.json`. How each attempt goes stands in `ways.json` beside its
dataset, like `{"sft": [{"crash_at": 5, "code": 1}, {}]}`: one object an attempt, the last one for
all later.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from rlhf_api.names import REASON_OF_EXIT_CODE, EnvVar, Reason
from rlhf_api.v1alpha1 import Artifact, HealthVerdict, StageConfig, StageResult

EVALUATIONS = {
    "sft": {"loss": 2.0, "perplexity": 7.4},
    "reward": {"accuracy": 0.8, "chosenScore": 1.0, "rejectedScore": -1.0},
    "ppo": {
        "before": {"score": 0.5, "scoreStd": 1.0, "kl": 0.0, "distinct2": 0.9},
        "after": {
            "score": 2.0,
            "scoreStd": 0.8,
            "kl": 8.0,
            "eosRate": 0.9,
            "meanLength": 20.0,
            "distinct2": 0.8,
        },
    },
}
SAMPLE = {
    "prompt": "这本书",
    "responseBefore": "不好 [x]",
    "responseAfter": "很好",
    "scoreBefore": -1,
    "scoreAfter": 2,
}


class Attempt:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = StageConfig.from_json(path.read_text())
        self.folder = Path(self.config.attempt_folder)
        rows = Path(self.config.spec.dataset.uri.removeprefix("file://"))
        stages = json.loads(rows.with_name("ways.json").read_text())
        ways = stages.get(self.config.stage.value, [{}])
        self.way = ways[min(self.config.attempt, len(ways)) - 1]
        self.steps = self.way.get("steps", 10)
        self.step = self.resumed_from()
        self.stop = False

    def resumed_from(self) -> int:
        found = Path(self.config.stage_folder).glob("attempt-*/checkpoints/latest")
        return max((int(each.read_text().removeprefix("step-")) for each in found), default=0)

    def tell(self, kind: str, **extra: object) -> None:
        event = {
            "time": time.time(),
            "type": kind,
            "step": self.step,
            "totalSteps": self.steps,
            "epoch": 0.0,
            "metrics": {},
            "etaSeconds": 1.5,
        }
        with (self.folder / "events.jsonl").open("a") as file:
            file.write(json.dumps(event | extra) + "\n")

    def save(self) -> None:
        (self.folder / "checkpoints").mkdir(exist_ok=True)
        # As the trainer does: whoever is killed here leaves the old file or the new one.
        partial = self.folder / "checkpoints" / ".latest"
        partial.write_text(f"step-{self.step}")
        partial.replace(self.folder / "checkpoints" / "latest")
        self.tell("checkpoint")

    def evaluate(self, seen: Path) -> None:
        """Until the test has seen it, who knows that by a file."""
        self.tell("evaluating")
        end = time.monotonic() + 60
        while not seen.exists() and time.monotonic() < end:
            time.sleep(0.01)
        self.tell("evaluation")

    def publish(self) -> Artifact:
        folder = self.folder / "artifact"
        folder.mkdir(exist_ok=True)
        evaluation = EVALUATIONS[self.config.stage]
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
        if self.config.stage == "ppo":
            (folder / "evaluation_samples.jsonl").write_text(json.dumps(SAMPLE) + "\n")
        return Artifact(uri=self.config.artifact_uri, digest="sha256:" + "d" * 64)

    def judge(self) -> tuple[HealthVerdict, ...]:
        """Tell of the rule that this attempt breaks, if any, as the one that ends it."""
        if "verdict" not in self.way or self.step != self.way.get("crash_at"):
            return ()
        broken = HealthVerdict.model_validate(self.way["verdict"] | {"step": self.step})
        self.save()
        self.tell("verdict", broken=True, **self.way["verdict"])
        return (broken,)

    def leave(self, code: int, message: str = "", artifact: Artifact | None = None) -> int:
        result = StageResult(
            stage=self.config.stage,
            attempt=self.config.attempt,
            config_digest=self.config.config_digest,
            exit_code=code,
            reason=REASON_OF_EXIT_CODE.get(code, Reason.CRASHED) if code else Reason.FINISHED,
            message=message,
            step=self.step,
            total_steps=self.steps,
            artifact=artifact,
            verdicts=self.judge(),
        )
        if not self.way.get("silent"):
            Path(os.environ[EnvVar.TERMINATION_MESSAGE]).write_text(result.to_message())
        return code

    def run(self) -> int:
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "stop", True))
        sys.stdout.write(f"stand-in for {self.config.stage}, attempt {self.config.attempt}\n")
        sys.stdout.flush()
        if self.way.get("rank"):
            command = [sys.executable, "-c", "import time; time.sleep(300)", str(self.path)]
            subprocess.Popen(command, start_new_session=True)
        notes, rows = self.way.get("notes", []), self.way.get("rows", {})
        self.tell("start", metricsPort=1234, notes=notes, rows=rows)
        if "resumed" in self.way:
            self.tell("verdicts", verdicts=self.way["resumed"])
        while self.step < self.steps:
            if self.way.get("crash_at") == self.step:
                code = self.way.get("code", 1)
                return self.leave(code, self.way.get("message", "boom"))
            if self.stop and not self.way.get("deaf"):
                self.save()
                return self.leave(75, "stopped on request")
            time.sleep(self.way.get("seconds", 0.01))
            self.step += 1
            for verdict in self.way.get("told", {}).get(str(self.step), []):
                self.tell("verdict", broken=True, **verdict)
            self.tell("step", metrics={"loss": 2.5, "reward": 1.0, "kl": 0.5, "critic_loss": None})
            if self.step % self.way.get("save_every", 5) == 0:
                self.save()
        if "evaluates" in self.way:
            self.evaluate(Path(self.way["evaluates"]))
        self.tell("end")
        return self.leave(0, f"done after {self.step} steps", self.publish())


if __name__ == "__main__":
    sys.exit(Attempt(Path(sys.argv[1])).run())
