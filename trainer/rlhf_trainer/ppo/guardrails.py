"""What follows from a verdict: the end of the attempt, from a state that can go on.

Called by the PPO stage on all ranks alike: at the end of each update, and after a resume.
"""

from rlhf_api.v1alpha1 import HealthVerdict
from rlhf_trainer.errors import GuardrailFired
from rlhf_trainer.ppo.health import Health, Judgement
from rlhf_trainer.ppo.health_rules import HEALTH_RULES
from rlhf_trainer.run.loop import TrainingLoop


def obey(judgement: Judgement, loop: TrainingLoop) -> None:
    """End the attempt if a rule with the action Suspend or Fail is broken.

    A checkpoint of this update is written first, unless what was learned is not finite.

    Raises:
        GuardrailFired: on all ranks.
    """
    fired = judgement.fired
    if fired is None:
        return
    loop.save_unless_saved()
    raise _ended(judgement.verdicts, fired.evidence, loop)


def heed(health: Health, loop: TrainingLoop) -> None:
    """End the attempt if the one that saved the state was ended by a rule, and nobody knows.

    It may have been killed between its checkpoint and its result. Only a person lets a rule start
    anew, and whoever starts attempts says which verdict a person has seen.

    Raises:
        GuardrailFired: on all ranks.
    """
    fired, saved_by = health.fired, loop.resumed_attempt
    if fired and saved_by is not None and saved_by > loop.config.guardrail_attempt:
        verdicts = (*(each.verdict for each in fired), *health.verdicts)
        raise _ended(verdicts, fired[0].evidence, loop)
    health.heed()


def _ended(
    verdicts: tuple[HealthVerdict, ...], evidence: str, loop: TrainingLoop
) -> GuardrailFired:
    first = verdicts[0]
    kept = (
        "there is no checkpoint"
        if loop.last_checkpoint_step is None
        else f"the last checkpoint is of step {loop.last_checkpoint_step}"
    )
    return GuardrailFired(
        f"spec.guardrails: {first.rule}: {evidence}; action {first.action} ends the stage "
        f"after update {loop.step}, {kept}; {HEALTH_RULES[first.rule].remedy}",
        verdicts=verdicts,
        step=loop.step,
        last_checkpoint_step=loop.last_checkpoint_step,
    )
