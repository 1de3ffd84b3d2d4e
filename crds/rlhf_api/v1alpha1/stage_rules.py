"""Conditions over several fields of a stage, for the CRD and for the models alike.

Read by `stages`. A rule sees a stage as its document has it, so that defaults which it needs stand
here.
"""

from rlhf_api.contract import Rule
from rlhf_api.v1alpha1.rewards import Reward

DEFAULT_BATCH_SIZE = 32
DEFAULT_MAX_LENGTH = 1024
DEFAULT_PROMPT_LENGTH = 512
DEFAULT_RESPONSE_LENGTH = 512
DEFAULT_KL_HORIZON = 10_000

MAX_LENGTH = f"(has(self.maxLength) ? self.maxLength : {DEFAULT_MAX_LENGTH})"
"""maxLength as CEL reads it."""


OFFLOAD_RULE = Rule(
    cel="!has(self.offloadOptimizer) || !self.offloadOptimizer || !has(self.zeroStage) || "
    "self.zeroStage > 0",
    message="offloadOptimizer needs zeroStage 1, 2 or 3; set zeroStage or remove offloadOptimizer",
    holds=lambda m: not m.offload_optimizer or m.zero_stage > 0,
)


def budget_rule(cel: str, limit: str) -> Rule:
    """Every sequence that a stage takes must fit: `cel` is what has most tokens, `limit` too."""
    return Rule(
        cel=f"!has(self.microBatchTokens) || self.microBatchTokens >= {cel}",
        message=f"microBatchTokens must hold {limit}; raise it",
        holds=lambda m: m.micro_batch_tokens is None or m.micro_batch_tokens >= m.most_row_tokens,
        explain=lambda m: (
            f"microBatchTokens {m.micro_batch_tokens} must hold {limit}, here "
            f"{m.most_row_tokens}; raise it"
        ),
    )


def _reads_reward_model(rewards: tuple[Reward, ...]) -> bool:
    return not rewards or any(reward.type == "RewardModel" for reward in rewards)


PPO_RULES: tuple[Rule, ...] = (
    Rule(
        # A preset may bring what is left out: the model, which knows it, judges then.
        cel="!has(self.klController) || self.klController != 'Adaptive' || has(self.klTarget) "
        "|| has(self.preset)",
        message="klController Adaptive needs klTarget, the KL in nats an answer to steer to",
        holds=lambda m: m.kl_controller != "Adaptive" or m.kl_target is not None,
    ),
    Rule(
        cel="!has(self.klController) || self.klController != 'Adaptive' || "
        f"(has(self.batchSize) ? self.batchSize : {DEFAULT_BATCH_SIZE}) < "
        f"5 * (has(self.klHorizon) ? self.klHorizon : {DEFAULT_KL_HORIZON})",
        # One update moves klCoef by at most 0.2 * batchSize / klHorizon of itself: at 1 and
        # above it could reach 0 or change its sign.
        message="klController Adaptive needs a klHorizon above a fifth of batchSize; raise it",
        holds=lambda m: m.kl_controller != "Adaptive" or m.batch_size < 5 * m.kl_horizon,
    ),
    Rule(
        cel=f"!has(self.minibatchSize) || (has(self.batchSize) ? self.batchSize : "
        f"{DEFAULT_BATCH_SIZE}) % self.minibatchSize == 0",
        message=f"minibatchSize must divide batchSize ({DEFAULT_BATCH_SIZE} when left out); "
        "change one of them",
        holds=lambda m: m.minibatch_size is None or m.batch_size % m.minibatch_size == 0,
        explain=lambda m: (
            f"minibatchSize {m.minibatch_size} does not divide batchSize {m.batch_size}; "
            "change one of them"
        ),
    ),
    Rule(
        cel="has(self.rewardModel) == (!has(self.rewards) || self.rewards.size() == 0 "
        "|| self.rewards.exists(reward, reward.type == 'RewardModel'))",
        message="rewardModel must be set if rewards is left out or has an item of type "
        "RewardModel, and only then",
        holds=lambda m: (m.reward_model is not None) == _reads_reward_model(m.rewards),
    ),
    Rule(
        cel="!has(self.rewardScaling) || self.rewardScaling != 'ModelStats' "
        "|| !has(self.rewards) || self.rewards.size() == 0",
        message="rewardScaling ModelStats is for the reward model alone; remove rewards, or "
        "choose RunningStd or RunningStdTotal",
        holds=lambda m: m.reward_scaling != "ModelStats" or not m.rewards,
    ),
    Rule(
        cel="!has(self.ptxCoef) || has(self.ptxDataset)",
        message="ptxCoef needs ptxDataset, the rows whose loss it weighs",
        holds=lambda m: m.ptx_coef is None or m.ptx_dataset is not None,
    ),
    Rule(
        cel="!has(self.truncatedAnswers) || self.truncatedAnswers != 'Penalty' "
        "|| (has(self.missingEosPenalty) && self.missingEosPenalty > 0.0)",
        message="truncatedAnswers Penalty needs a missingEosPenalty above 0, whose negative is "
        "the score",
        holds=lambda m: m.truncated_answers != "Penalty" or m.missing_eos_penalty > 0,
    ),
    budget_rule(
        # A preset may bring what is left out: the model, which knows it, judges then.
        f"(has(self.maxPromptLength) ? self.maxPromptLength : has(self.preset) ? 0 : "
        f"{DEFAULT_PROMPT_LENGTH}) + (has(self.maxResponseLength) ? self.maxResponseLength : "
        f"has(self.preset) ? 0 : {DEFAULT_RESPONSE_LENGTH})",
        "a sequence of maxPromptLength and maxResponseLength "
        f"({DEFAULT_PROMPT_LENGTH} and {DEFAULT_RESPONSE_LENGTH} when left out)",
    ),
)
