"""What follows from a verdict: the end of the attempt, from a state that can go on.

Called by the PPO stage at the end of each update, on all ranks alike.
"""

from rlhf_trainer.errors import GuardrailFired
from rlhf_trainer.health import Judgement
from rlhf_trainer.health_rules import HEALTH_RULES
from rlhf_trainer.loop import TrainingLoop


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
    kept = (
        "there is no checkpoint"
        if loop.last_checkpoint_step is None
        else f"the last checkpoint is of step {loop.last_checkpoint_step}"
    )
    raise GuardrailFired(
        f"spec.guardrails: {fired.rule}: {fired.evidence}; action {fired.action} ends the stage "
        f"after update {loop.step}, {kept}; {HEALTH_RULES[fired.rule].remedy}",
        verdicts=judgement.verdicts,
        step=loop.step,
        last_checkpoint_step=loop.last_checkpoint_step,
    )
