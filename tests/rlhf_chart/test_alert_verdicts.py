"""Alerts and the trainer's verdicts are held together on the same histories.

The trainer judges a history and serves it, and the operator reads that and tells of it in turn:
each update becomes a minute of promtool's.
"""

import asyncio
import math
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
import pytest
import torch
from alert_rules import (
    Alerted,
    Raw,
    firing,
    rendered_rules,
    run_promtool,
    selector,
    unit_test,
    write_rules,
)
from health_histories import HEALTHY, Update, noisy
from prometheus_client.parser import text_string_to_metric_families

from rlhf_api.metrics import METRIC_PREFIX, Metric
from rlhf_api.names import GuardrailAction, GuardrailRule, StageName, StageState
from rlhf_api.v1alpha1 import (
    Dataset,
    Guardrail,
    JobReference,
    ModelSource,
    PPOStage,
    RLHFJobStatus,
    StageConfig,
    StageStatus,
    StageStatuses,
)
from rlhf_operator import scraper
from rlhf_operator.job_series import JOB_PREFIX, job_series
from rlhf_operator.planning.observed import ObservedProgress
from rlhf_operator.scrape import scrape
from rlhf_trainer.ppo.health import Health
from rlhf_trainer.ppo.health_rules import HEALTH_RULES, Past
from rlhf_trainer.run.distributed import Ranks
from rlhf_trainer.run.readings import Reading
from rlhf_trainer.run.report import Reporter

CRITIC, KL = GuardrailRule.CRITIC_LOSS_DIVERGING, GuardrailRule.KL_ABOVE_LIMIT
REWARD, NONFINITE = GuardrailRule.REWARD_COLLAPSE, GuardrailRule.NON_FINITE
SOURCES = ("trainer", "mirror", "both")
RANK_0 = Ranks(rank=0, local_rank=0, world_size=1, local_world_size=1, device=torch.device("cpu"))

GUARDRAILS = (
    Guardrail(rule=NONFINITE, action=GuardrailAction.OBSERVE),
    # So low that the second condition tells.
    Guardrail(rule=CRITIC, threshold=1.0),
)

READ = tuple(
    prefix + name
    for prefix in (METRIC_PREFIX, JOB_PREFIX)
    for name in (
        "health_",
        Metric.CRITIC_LOSS.value,
        Metric.EXPLAINED_VARIANCE.value,
        Metric.NONFINITE.value,
    )
)
"""What series begin with that alerts on verdicts may read; promtool need not load the others."""

Served = dict[str, float]
"""Values by series with its labels."""

DIVERGED: Update = HEALTHY | {
    Metric.CRITIC_LOSS: 13.0,
    Metric.CRITIC_LOSS_OF_MEAN: 3.6,
    Metric.EXPLAINED_VARIANCE: 0.4,
}
# As high, but better than the mean: the returns are as wide.
WIDE: Update = DIVERGED | {Metric.CRITIC_LOSS_OF_MEAN: 16.0}
# As high, and worse than the mean by an offset of all values alone.
OFFSET: Update = DIVERGED | {Metric.EXPLAINED_VARIANCE: 0.5}
FAR: Update = HEALTHY | {Metric.KL: 80.0}
POOR: Update = HEALTHY | {Metric.REWARD: -5.0}
NO_NUMBER: Update = HEALTHY | {Metric.CRITIC_LOSS: math.nan, Metric.REWARD: math.nan}
START = [HEALTHY] * 12

HISTORIES: dict[str, list[Update]] = {
    "healthy": list(noisy(0, 40)),
    "diverges": [*START, *[DIVERGED] * 12],
    "mends": [*START, *[DIVERGED] * 8, *[HEALTHY] * 8],
    "too short": [*START, *[DIVERGED] * 4, HEALTHY, *[DIVERGED] * 4, HEALTHY],
    "returns grow as well": [*START, *[WIDE] * 8, *[DIVERGED] * 8, *[WIDE] * 8],
    "values are off together": [*START, *[OFFSET] * 8, *[DIVERGED] * 8, *[OFFSET] * 8],
    "a transient in the warm-up": [
        *(HEALTHY | {Metric.CRITIC_LOSS: 0.1} for _ in range(5)),
        *[DIVERGED] * 5,
        *[HEALTHY] * 10,
    ],
    "starts bad": [FAR | DIVERGED] * 12,
    "noise about the threshold": list(noisy(1, 60, noise=0.4, critic_loss=5.0, kl=45.0)),
    "a start, then noise": [
        *START, *noisy(2, 50, noise=0.3, critic_loss=6.0, critic_loss_of_mean=5.0, reward=-1.0)
    ],
    "actor leaves": [*START, *[FAR] * 6, *[HEALTHY] * 4, *[FAR] * 2, HEALTHY],
    "reward collapses": [*START, *[POOR] * 7, *[HEALTHY] * 7],
    "no numbers in between": [*START, *[DIVERGED] * 6, *[NO_NUMBER] * 3, *[DIVERGED] * 2],
    "no numbers at the start": [NO_NUMBER, *START, *[DIVERGED] * 3, NO_NUMBER, *[DIVERGED] * 3],
}  # fmt: skip


@dataclass(frozen=True)
class Judged:
    """One update: what was judged of it, and what was served then."""

    update: Update
    readings: dict[GuardrailRule, Reading]
    trainer: Served
    mirror: Served

    def beyond(self, rule: GuardrailRule) -> bool:
        """Whether it counts against the rule."""
        reading = self.readings[rule]
        if not reading.judged or reading.value is None:
            return False
        in_force = replace(HEALTH_RULES[rule], threshold=reading.threshold)
        return in_force.breaks(reading.value, self.update, Past())


def judge(history: Iterable[Update], folder: Path) -> list[Judged]:
    """As the PPO stage does it, each update served and scraped."""
    config = StageConfig(
        job=JobReference(name="a", uid="12345678-aaaa"),
        stage=StageName.PPO,
        attempt=1,
        storage=str(folder),
        ppo=PPOStage(
            model=ModelSource(uri="hf://a/b"),
            reward_model=ModelSource(uri="hf://a/r"),
            dataset=Dataset(uri="hf://a/c"),
        ),
    ).with_digest()
    health, found = Health(GUARDRAILS), []
    with Reporter(config, RANK_0) as reporter:
        reporter.start(1000)
        for step, update in enumerate(history, 1):
            judgement = health.judge(step, update)
            reporter.step(step, 0.0, update | judgement.metrics)
            reporter.health(step, judgement.readings)
            readings = {reading.rule: reading for reading in judgement.readings}
            found.append(Judged(update, readings, scraped(reporter), mirrored(reporter)))
    return found


def scraped(reporter: Reporter) -> Served:
    """By Prometheus."""
    url = f"http://127.0.0.1:{reporter.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as response:
        text = response.read().decode()
    return {
        sample.name + selector({"namespace": "team", **sample.labels}): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith(READ)
    }


def mirrored(reporter: Reporter) -> Served:
    """By the operator, of a stage that runs."""

    async def read() -> ObservedProgress:
        assert reporter.metrics_port is not None
        async with aiohttp.ClientSession() as session:
            return await scrape(session, "127.0.0.1", reporter.metrics_port)

    ppo = StageStatus(state=StageState.RUNNING, attempt=1)
    status = RLHFJobStatus(stages=StageStatuses(ppo=ppo))
    readings = {StageName.PPO: scraper.Reading(1, asyncio.run(read()))}
    return {
        metric.name + selector(dict(zip(metric.labels, labels, strict=True))): value
        for metric, labels, value in job_series("team", "a", status, readings)
        if metric.name.startswith(READ)
    }


def series(scrapes: list[Served]) -> dict[str, str]:
    """A sample a minute; a series that a scrape lacks is stale at once, as for Prometheus."""
    names = dict.fromkeys(name for served in scrapes for name in served)
    return {name: " ".join(minute(served.get(name)) for served in scrapes) for name in names}


def minute(value: float | None) -> str:
    return "stale" if value is None else repr(float(value)).replace("nan", "NaN")


@pytest.fixture(scope="module")
def judgements(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Judged]]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        name: judge(history, folder / str(at))
        for at, (name, history) in enumerate(HISTORIES.items())
    }


def alerts_where(judged: list[Judged], rule: GuardrailRule, minutes: set[int], source: str) -> Raw:
    """A test that the alert of that rule fires in these minutes and in no other."""
    told: dict[str, str] = {}
    if source != "mirror":
        told |= series([each.trainer for each in judged])
    if source != "trainer":
        told |= series([each.mirror for each in judged])
    checks = [
        firing(rule.value, at, [Alerted()] if at in minutes else []) for at in range(len(judged))
    ]
    return unit_test(told, checks)


def at_once(folder: Path, rule: GuardrailRule, *values: str) -> Path:
    """The alert of that rule, which does not wait."""
    told = rendered_rules(f"prometheusRule.alerts.{rule}.for=0s", *values)
    return write_rules(folder, [each for each in told if each["alert"] == rule])


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("rule", [CRITIC, KL, REWARD])
def test_an_alert_fires_where_the_trainer_holds_its_rule_to_be_broken(
    judgements: dict[str, list[Judged]], tmp_path: Path, rule: GuardrailRule, source: str
) -> None:
    rules = at_once(tmp_path, rule)
    broken = {
        name: {at for at, each in enumerate(judged) if each.readings[rule].broken}
        for name, judged in judgements.items()
    }
    tests = [alerts_where(judgements[name], rule, broken[name], source) for name in HISTORIES]
    assert not run_promtool(rules, *tests)
    assert any(broken.values())


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("rule", [CRITIC, KL, REWARD])
def test_a_threshold_of_the_values_is_the_same_inequality(
    judgements: dict[str, list[Judged]], tmp_path: Path, rule: GuardrailRule, source: str
) -> None:
    """With the trainer's threshold the expression holds for the updates that count against it."""
    in_force = judgements["healthy"][0].readings[rule].threshold
    threshold = f"prometheusRule.alerts.{rule}.threshold={in_force:g}"
    rules = at_once(tmp_path, rule, threshold)
    beyond = {
        name: {at for at, each in enumerate(judged) if each.beyond(rule)}
        for name, judged in judgements.items()
    }
    tests = [alerts_where(judgements[name], rule, beyond[name], source) for name in HISTORIES]
    assert not run_promtool(rules, *tests)
    assert any(beyond.values())


@pytest.mark.parametrize("source", SOURCES)
def test_nonfinite_fires_from_the_first_such_update_to_the_end_of_the_attempt(
    judgements: dict[str, list[Judged]], tmp_path: Path, source: str
) -> None:
    rules = at_once(tmp_path, NONFINITE)
    tests, broken = [], False
    for judged in judgements.values():
        first = [at for at, each in enumerate(judged) if each.readings[NONFINITE].broken][:1]
        minutes = {at for at in range(len(judged)) if first and at >= first[0]}
        tests.append(alerts_where(judged, NONFINITE, minutes, source))
        broken |= bool(minutes)
    assert not run_promtool(rules, *tests)
    assert broken


def test_the_histories_tell_the_conditions_apart(judgements: dict[str, list[Judged]]) -> None:
    """Else a rule without its second condition, its warm-up or its count would pass."""

    def above(name: str) -> list[Judged]:
        found = [(each, each.readings[CRITIC]) for each in judgements[name]]
        return [each for each, told in found if (told.value or 0.0) > told.threshold]

    def broken(name: str) -> bool:
        return any(each.readings[CRITIC].broken for each in judgements[name])

    assert broken("diverges")
    assert not broken("too short")
    assert any(each.beyond(CRITIC) for each in judgements["too short"])
    assert any(not each.readings[CRITIC].judged for each in above("a transient in the warm-up"))
    for name in ("returns grow as well", "values are off together"):
        assert any(each.readings[CRITIC].judged and not each.beyond(CRITIC) for each in above(name))
