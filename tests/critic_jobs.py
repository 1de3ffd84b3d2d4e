"""Two PPO jobs of benchmarks/critic on a cluster: one whose critic diverges and one that is well.

What they read, the Python reward among it, is mounted from a ConfigMap.
"""

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from alerting import Monitoring
from critic import growing, toy
from operating import Jobs
from waiting import eventually

from rlhf_api.names import GuardrailRule, StageName

Raw = dict[str, Any]

DIVERGING, HEALTHY = "diverging", "healthy"
VARIANT = {DIVERGING: "none", HEALTHY: "default"}
UPDATES = 50
"""The rule is broken from update 16 or so on."""
FOLDER = "/etc/toy"
RULE = GuardrailRule.CRITIC_LOSS_DIVERGING
SOURCES = ("rlhf_train_health_verdict", "rlhf_job_health_verdict")
PATIENCE = 600
ALERT_SECONDS = 120
"""From the verdict in status to the alert in Alertmanager: what the project promises."""


@dataclass
class WatchedJobs:
    """Both jobs, and the Prometheus that scrapes them and the operator.

    Attributes:
        monitoring: Prometheus and Alertmanager.
        jobs: the RLHFJobs of a namespace with nothing else in it.
        verdict_time: Unix time at which status of the diverging one told of its critic.
    """

    monitoring: Monitoring
    jobs: Jobs
    verdict_time: float = 0.0

    def start(self, folder: Path) -> None:
        """Start both; gives control back when the rule of the diverging one is broken."""
        write_config_map(self.jobs, folder)
        for name in VARIANT:
            self.jobs.create(name, **spec(name))
        eventually(self._is_broken, PATIENCE, 0.2, what=self._progress)
        self.verdict_time = time.time()

    @cached_property
    def alert(self) -> Raw:
        """The alert about the diverging one, as Alertmanager tells it when it has come."""
        left = self.verdict_time + ALERT_SECONDS - time.time()
        labels = {"alertname": str(RULE), "rlhfjob": DIVERGING}
        (found,) = eventually(lambda: self.monitoring.alerts(**labels), left, 0.2)
        return dict(found)

    @cached_property
    def moment(self) -> float:
        """A Unix time at which both jobs train, one of them alerted: Prometheus has it all."""
        assert self.alert
        eventually(lambda: all(self.told_by(source) for source in SOURCES))
        return time.time()

    def told_by(self, source: str, at: float | None = None) -> list[Raw]:
        """Series by which a source tells Prometheus that the rule is broken."""
        broken = f'{source}{{rlhfjob="{DIVERGING}", rule="{RULE}"}} == 1'
        return self.monitoring.query(broken, at)

    def _is_broken(self) -> bool:
        assert self.jobs.phase(DIVERGING) not in ("Succeeded", "Failed"), self._progress()
        return str(RULE) in (self.jobs.stage(DIVERGING, StageName.PPO).get("verdicts") or {})

    def _progress(self) -> str:
        told = {name: self.jobs.get(name).get("status", {}).get("summary") for name in VARIANT}
        return f"the rule {RULE} of {DIVERGING} is broken: {told}"


def write_config_map(jobs: Jobs, folder: Path) -> None:
    """A ConfigMap with tokenizer, prompts and reward, flat as its keys are."""
    toy.write_data(folder)
    files = [*(path for path in folder.rglob("*") if path.is_file()), Path(growing.__file__)]
    data = {path.name: path.read_text() for path in files}
    jobs.core.create_namespaced_config_map(
        jobs.namespace, {"metadata": {"name": "toy"}, "data": data}
    )


def spec(name: str) -> Raw:
    """Of a job by name; the healthy one has two pods, of which the first alone is scraped."""
    found: Raw = toy.job(name, VARIANT[name], seed=0, updates=UPDATES, data=Path(FOLDER))["spec"]
    ppo = found["stages"]["ppo"]
    ppo["model"]["scratch"]["tokenizer"] = f"file://{FOLDER}"
    ppo["rewards"][0]["function"]["uri"] = f"file://{FOLDER}"
    ppo["checkpoint"] = {"everySteps": 10}
    if name == HEALTHY:
        ppo |= {"nodes": 2, "microBatchSize": 16, "rolloutMicroBatchSize": 32}
    return found | {
        # Vowels alone, the best answer, are 53 nats away from letters at random.
        "guardrails": [{"rule": GuardrailRule.KL_ABOVE_LIMIT, "threshold": 100}],
        "template": {
            # Three pods share the cores of one machine.
            "env": [{"name": "OMP_NUM_THREADS", "value": "1"}],
            "volumes": [{"name": "toy", "configMap": {"name": "toy"}}],
            "volumeMounts": [{"name": "toy", "mountPath": FOLDER, "readOnly": True}],
        },
    }
