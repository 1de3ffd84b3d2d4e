"""What a user may say about the three stages: data, hyperparameters, size.

Defaults stand here, those that rules need in `stage_rules`, and nowhere else: the schema generator
writes them into descriptions, never into the CRD; `stage.json` and its digest leave them out, so
that a changed one needs a new CONTRACT_VERSION.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from rlhf_api.contract import Contract, ListMap, Rule
from rlhf_api.names import StageName
from rlhf_api.v1alpha1.lora import LoRA
from rlhf_api.v1alpha1.pod import EnvVar, LabelValue, Name, QualifiedKeys, Resources, Toleration
from rlhf_api.v1alpha1.presets import Preset, preset_values
from rlhf_api.v1alpha1.rewards import Reward
from rlhf_api.v1alpha1.sources import Dataset, ModelSource, Token
from rlhf_api.v1alpha1.stage_rules import (
    DEFAULT_BATCH_SIZE,
    DEFAULT_KL_HORIZON,
    DEFAULT_MAX_LENGTH,
    DEFAULT_PROMPT_LENGTH,
    DEFAULT_RESPONSE_LENGTH,
    MAX_LENGTH,
    OFFLOAD_RULE,
    PPO_RULES,
    budget_rule,
)

Precision = Literal["BF16", "FP32"]
AttentionImplementation = Literal["SDPA", "Eager", "FlashAttention2"]
Device = Literal["Auto", "CUDA", "CPU"]
Schedule = Literal["Constant", "Linear", "Cosine"]
KLEstimator = Literal["K1", "K2", "K3"]
KLController = Literal["Fixed", "Adaptive"]
AdvantageNormalization = Literal["None", "Minibatch", "Batch"]
RewardScaling = Literal["None", "RunningStd", "RunningStdTotal", "ModelStats"]
ValueNormalization = Literal["None", "PopArt"]
ValueHeadInit = Literal["Keep", "Zero", "Normal"]
TruncatedAnswers = Literal["Score", "Penalty"]
OldLogprobs = Literal["Auto", "Recompute"]

DEFAULT_PTX_COEF = 27.8
"""Of InstructGPT (Ouyang et al. 2022, appendix C.4) and DeepSpeed-Chat."""


class CheckpointPolicy(Contract):
    """When the full training state is kept, and how much of it."""

    every_steps: int = Field(100, ge=1, le=1_000_000)
    """Steps between two checkpoints; a request to stop makes one as well."""
    every_seconds: int | None = Field(None, ge=1, le=604_800)
    """Seconds after which a step ends with a checkpoint, whatever everySteps says; where steps take
    long, it bounds what is lost."""
    keep: int = Field(2, ge=1, le=100)
    """How many complete checkpoints of the attempt are kept; an older one goes only after a newer
    one is complete."""
    keep_finished: bool = False
    """Whether they stay when the stage has finished, optimizer states and all: several times the
    size of the model that it leaves."""


class StageSpec(Contract):
    """What all stages have in common."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!(has(self.epochs) && has(self.maxSteps))",
            message="at most one of epochs and maxSteps may be set; remove the other",
            holds=lambda m: m.epochs is None or m.max_steps is None,
        ),
        OFFLOAD_RULE,
    )

    model: ModelSource
    """The model that this stage starts from."""
    dataset: Dataset
    """The rows to train on."""
    eval_dataset: Dataset | None = None
    """Held-out rows; without them nothing is evaluated."""
    eval_every_steps: int | None = Field(None, ge=1, le=1_000_000)
    """Steps between two evaluations; only at the end when left out."""

    nodes: int | None = Field(None, ge=1, le=1024)
    """Number of pods of this stage; spec.template.nodes when left out."""
    processes_per_node: int | None = Field(None, ge=1, le=64)
    """Ranks in each pod, one a GPU; spec.template.processesPerNode when left out."""
    resources: Resources | None = None
    """Requests and limits of each pod of this stage; spec.template.resources when left out."""
    node_selector: (
        Annotated[dict[str, LabelValue], Field(max_length=64), QualifiedKeys()] | None
    ) = None
    """Labels of the nodes for this stage; spec.template.nodeSelector when left out."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=64)] | None = None
    """Tolerations of this stage's pods; spec.template.tolerations when left out."""
    env: Annotated[tuple[EnvVar, ...], Field(max_length=128), ListMap("name")] | None = None
    """Environment variables added to spec.template.env; the same name wins here."""
    priority_class_name: Name | None = None
    """Priority class of this stage's pods; spec.template.priorityClassName when left out."""

    device: Device = "Auto"
    """What ranks compute on: CUDA takes one GPU a rank (of AMD too) and nothing else; CPU touches
    no GPU; Auto takes GPUs if there is one for each rank, and the CPU otherwise, but never where
    resources.limits asks for GPUs."""
    precision: Precision = "BF16"
    """Number format of weights and activations; with BF16 the optimizer keeps fp32 copies."""
    attention_implementation: AttentionImplementation = "SDPA"
    """How attention is computed; FlashAttention2 needs a GPU and the flash-attn package, and Eager
    stands in for SDPA where transformers has none for the model."""
    lora: LoRA | None = None
    """Trains low-rank adapters beside frozen weights, and a score head whole, so that the reference
    of PPO is its actor without adapters; all weights are trained when left out."""
    zero_stage: int = Field(2, ge=0, le=3)
    """DeepSpeed ZeRO stage: 0 shards nothing, 1 optimizer states, 2 also gradients, 3 also
    parameters."""
    offload_optimizer: bool = False
    """Whether what the optimizer keeps lies in the machine's memory, where the CPU steps: up to 12
    bytes a parameter less on the GPUs, with zeroStage 3 up to 16, and slower steps; for zeroStage 1
    to 3."""
    micro_batch_size: int = Field(4, ge=1, le=4096)
    """Sequences (pairs for the reward model) of the greatest length that one forward and backward
    pass on one rank has room for; of shorter ones there are more; without effect beside
    microBatchTokens."""
    micro_batch_tokens: int | None = Field(None, ge=2, le=1_073_741_824)
    """Tokens of one forward and backward pass on one rank, with padding (both sequences of a pair);
    microBatchSize times the longest sequence, or pair, that the stage takes when left out."""
    gradient_checkpointing: bool = False
    """Whether a layer keeps its input alone for the backward pass, which computes the rest anew:
    less memory, about a third more time, and the same results."""
    batch_size: int = Field(DEFAULT_BATCH_SIZE, ge=1, le=1_048_576)
    """Sequences (pairs for the reward model, prompts of one rollout for PPO) of one step over all
    ranks; a multiple of the number of ranks."""
    seed: int = Field(42, ge=0, le=2_147_483_647)
    """Seed of weights, order of the data, sampling of pairs and responses."""
    learning_rate: float = Field(1e-5, gt=0, le=1)
    """Peak learning rate of Adam."""
    adam_betas: Annotated[
        tuple[Annotated[float, Field(ge=0, lt=1)], ...], Field(min_length=2, max_length=2)
    ] = (0.9, 0.95)
    """Decay of Adam's first and second moment."""
    adam_eps: float = Field(1e-8, gt=0, le=1)
    """Added to the denominator of Adam's step."""
    weight_decay: float = Field(0.0, ge=0, le=1)
    """Decoupled weight decay (AdamW) of matrices; biases and norms have none."""
    warmup_ratio: float = Field(0.03, ge=0, le=1)
    """Share of the steps over which the learning rate rises linearly."""
    schedule: Schedule = "Cosine"
    """Course of the learning rate after warm-up: constant, or down to zero at the last step."""
    gradient_clipping: float = Field(1.0, ge=0, le=1e6)
    """Largest global norm of the gradient; 0 clips nothing."""
    epochs: int | None = Field(None, ge=1, le=100_000)
    """Passes over the dataset; one when neither this nor maxSteps is set."""
    max_steps: int | None = Field(None, ge=1, le=100_000_000)
    """Steps to train, in place of epochs; the dataset is repeated as needed."""
    checkpoint: CheckpointPolicy = CheckpointPolicy()
    """When the full training state is kept."""

    def sources(self) -> dict[str, ModelSource]:
        """Every model that the stage reads, by the path of its field."""
        return {"model": self.model}

    @property
    def most_row_tokens(self) -> int:
        """Tokens of the longest sequence, or pair of them, that the stage takes."""
        raise NotImplementedError


class SFTStage(StageSpec):
    """Supervised fine-tuning on prompt and response, with loss on responses only."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        *StageSpec.RULES,
        budget_rule(MAX_LENGTH, f"a sequence of maxLength ({DEFAULT_MAX_LENGTH} when left out)"),
    )

    max_length: int = Field(DEFAULT_MAX_LENGTH, ge=2, le=1_048_576)
    """Longest sequence in tokens, prompt and response with EOS together."""
    packing: bool = True
    """Whether several rows share a sequence of maxLength tokens; they never see each other."""
    learning_rate: float = Field(1e-5, gt=0, le=1)
    """Peak learning rate of Adam."""

    @property
    def most_row_tokens(self) -> int:
        return self.max_length


class RewardStage(StageSpec):
    """A reward model: one score at the last real token, trained on preferences."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        *StageSpec.RULES,
        budget_rule(
            f"2 * ({MAX_LENGTH})",
            f"a pair, which is two sequences of maxLength ({DEFAULT_MAX_LENGTH} when left out)",
        ),
    )

    max_length: int = Field(DEFAULT_MAX_LENGTH, ge=2, le=1_048_576)
    """Longest sequence in tokens, prompt and response with EOS together."""
    learning_rate: float = Field(9e-6, gt=0, le=1)
    """Peak learning rate of Adam."""
    margin: float = Field(0.0, ge=0, le=1000)
    """Least difference of scores that the loss asks for, where a row brings none of its own."""
    centering_coef: float = Field(0.0, ge=0, le=1000)
    """Weight of the squared sum of a pair's scores, which keeps their mean near zero."""

    @property
    def most_row_tokens(self) -> int:
        return 2 * self.max_length


class PPOStage(StageSpec):
    """PPO with actor, frozen reference, frozen reward model and critic."""

    RULES: ClassVar[tuple[Rule, ...]] = (*StageSpec.RULES, *PPO_RULES)

    preset: Preset | None = None
    """Whose published hyperparameters stand in for fields that are left out."""
    reward_model: ModelSource | None = None
    """The frozen model that scores a response; its classification head has one output; needed
    unless rewards names others."""
    rewards: Annotated[tuple[Reward, ...], Field(max_length=8), ListMap("name")] = ()
    """What a response is scored by: the weighted sum of these; rewardModel alone when left out."""
    critic_model: ModelSource | None = None
    """What the critic starts from; rewardModel when left out, or model where there is none."""
    value_head_init: ValueHeadInit = "Keep"
    """Score head of the critic: Keep takes its model's, or zeros where it has none; Zero; Normal
    draws from N(0, 1 / (hiddenSize + 1))."""
    max_prompt_length: int = Field(DEFAULT_PROMPT_LENGTH, ge=1, le=1_048_576)
    """Longest prompt in tokens."""
    max_response_length: int = Field(DEFAULT_RESPONSE_LENGTH, ge=1, le=1_048_576)
    """Longest response in tokens with its end; sampling stops at the end of a turn, EOS or a stop
    token before that."""
    stop_tokens: Annotated[tuple[Token, ...], Field(max_length=16)] = ()
    """Tokens beside EOS that end a response; each must be one token of the vocabulary."""
    temperature: float = Field(1.0, gt=0, le=100)
    """Sampling temperature; all log-probabilities are taken at it."""
    top_k: int = Field(0, ge=0, le=1_048_576)
    """How many of the likeliest tokens are sampled from; all of them at 0."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Only the likeliest tokens are sampled that together reach this probability; below 1, or with
    topK, the KL is biased, since log-probabilities are those of all tokens."""
    minibatch_size: int | None = Field(None, ge=1, le=1_048_576)
    """Sequences of one optimizer step over all ranks, a divisor of batchSize; batchSize when left
    out."""
    update_epochs: int = Field(1, ge=1, le=100)
    """Passes over each rollout's experience."""
    rollout_micro_batch_size: int = Field(64, ge=1, le=65536)
    """Sequences of the greatest length that one rank reads or scores at a time; of shorter ones
    more are scored, and as many more are sampled together as the estimate of memory has room
    for."""
    old_logprobs: OldLogprobs = "Auto"
    """Where log-probabilities of the answers come from before an update learns: Auto, from sampling
    where they were measured to be those of training to 1e-5 nats a token, at the start and in the
    first rollouts, in FP32 without topK and topP; Recompute, and Auto elsewhere, from one more pass
    of the actor."""
    learning_rate: float = Field(1e-6, gt=0, le=1)
    """Peak learning rate of the actor."""
    critic_learning_rate: float = Field(5e-6, gt=0, le=1)
    """Peak learning rate of the critic."""
    critic_warmup_steps: int = Field(0, ge=0, le=1_000_000)
    """Updates at the start in which only the critic learns."""
    kl_estimator: KLEstimator = "K1"
    """Estimator of the KL of actor against reference in the reward: k1, k2 or k3."""
    kl_coef: float = Field(0.05, ge=0, le=1000)
    """Weight of the KL penalty of each token's reward; the start value if it adapts."""
    kl_controller: KLController = "Fixed"
    """Whether klCoef stays or follows klTarget."""
    kl_target: float | None = Field(None, gt=0, le=1e6)
    """KL in nats an answer to which klController Adaptive steers klCoef; nothing is steered when
    left out."""
    kl_horizon: int = Field(DEFAULT_KL_HORIZON, ge=1, le=1_000_000_000)
    """Number of samples over which an adaptive klCoef moves by its full error."""
    gamma: float = Field(1.0, ge=0, le=1)
    """Discount of a reward one token later."""
    gae_lambda: float = Field(0.95, ge=0, le=1)
    """Decay of generalised advantage estimation."""
    clip_range: float = Field(0.2, gt=0, le=10)
    """Largest change of a token's probability ratio that the policy loss rewards."""
    value_clip_range: float | None = Field(None, gt=0, le=1e6)
    """Largest change of a value that the value loss rewards; not clipped when left out."""
    value_coef: float = Field(1.0, ge=0, le=1000)
    """Weight of the value loss."""
    entropy_coef: float = Field(0.0, ge=0, le=100)
    """Weight of the entropy bonus."""
    score_clip: float = Field(10.0, gt=0, le=1e6)
    """Scores are clipped to plus and minus this first, or after scaling with ModelStats."""
    missing_eos_penalty: float = Field(0.0, ge=0, le=1e6)
    """Subtracted from the score of a response that is cut off at the longest length."""
    truncated_answers: TruncatedAnswers = "Score"
    """What a response counts that was cut off at maxResponseLength: Score, its score less
    missingEosPenalty, though no reward model was trained on such an end; Penalty, minus
    missingEosPenalty in place of any score."""
    advantage_normalization: AdvantageNormalization = "Batch"
    """Over which sequences advantages are brought to mean 0 and variance 1: none, those of a
    minibatch, or those of the whole rollout; always over all ranks and real tokens only."""
    reward_scaling: RewardScaling = "RunningStdTotal"
    """RunningStd divides scores by their running standard deviation, so that the KL penalty weighs
    more; RunningStdTotal divides the whole token rewards by that of score and KL penalty together;
    ModelStats subtracts the reward model's mean and divides by its deviation."""
    value_normalization: ValueNormalization = "None"
    """PopArt lets the critic learn returns in units of their running mean and deviation."""
    ptx_dataset: Dataset | None = None
    """SFT rows whose loss is mixed into the actor's update (PPO-ptx)."""
    ptx_coef: float | None = Field(None, ge=0, le=1e6)
    """Weight of the loss on ptxDataset; 27.8 when left out."""
    ema_decay: float | None = Field(None, ge=0, lt=1)
    """Decay of a moving average of the actor's weights, which then is what the stage leaves; no
    average when left out."""
    offload_frozen_models: bool = False
    """Whether reference and reward model lie in the machine's memory, and are on the GPUs while
    they are asked alone."""
    samples_every_steps: int = Field(10, ge=1, le=1_000_000)
    """Updates between two writes of sampled responses to samples.jsonl."""

    @property
    def most_row_tokens(self) -> int:
        return self.max_prompt_length + self.max_response_length

    def stand_ins(self) -> Mapping[str, Any]:
        return preset_values(self.preset, self.model_fields_set)

    def sources(self) -> dict[str, ModelSource]:
        found = {"model": self.model}
        if self.reward_model is not None:
            found["rewardModel"] = self.reward_model
        if self.critic_model is not None:
            found["criticModel"] = self.critic_model
        return found


def _lacks_statistics(stages: "Stages") -> bool:
    ppo, reward = stages.ppo, stages.reward
    if ppo is None or reward is None or ppo.reward_scaling != "ModelStats":
        return False
    reads = ppo.reward_model is not None and ppo.reward_model.from_stage is StageName.REWARD
    return reads and reward.eval_dataset is None


class Stages(Contract):
    """The stages of the job; each is optional, and their order follows from who reads whose
    artifact."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.sft) || has(self.reward) || has(self.ppo)",
            message="at least one of sft, reward and ppo must be there",
            holds=lambda m: bool(m.present()),
        ),
        Rule(
            cel="!has(self.ppo) || !has(self.ppo.rewardScaling) "
            "|| self.ppo.rewardScaling != 'ModelStats' || !has(self.ppo.rewardModel) "
            "|| !has(self.ppo.rewardModel.fromStage) "
            "|| self.ppo.rewardModel.fromStage != 'reward' "
            "|| !has(self.reward) || has(self.reward.evalDataset)",
            message="ppo.rewardScaling ModelStats reads what the reward stage measures on held-out "
            "rows; add reward.evalDataset, or choose RunningStdTotal",
            holds=lambda m: not _lacks_statistics(m),
        ),
    )

    sft: SFTStage | None = None
    """Supervised fine-tuning."""
    reward: RewardStage | None = None
    """Training of the reward model."""
    ppo: PPOStage | None = None
    """PPO against the reward model."""

    def present(self) -> dict[StageName, "SFTStage | RewardStage | PPOStage"]:
        """The stages that are there, in the order of StageName."""
        found = {StageName.SFT: self.sft, StageName.REWARD: self.reward, StageName.PPO: self.ppo}
        return {name: stage for name, stage in found.items() if stage is not None}


def uris(spec: StageSpec) -> Iterator[tuple[str, str]]:
    """Every URI that a stage reads, by the path of its field."""
    for path, source in spec.sources().items():
        if source.uri is not None:
            yield f"{path}.uri", source.uri
        if source.scratch is not None:
            yield f"{path}.scratch.tokenizer", source.scratch.tokenizer
    yield "dataset.uri", spec.dataset.uri
    if spec.eval_dataset is not None:
        yield "evalDataset.uri", spec.eval_dataset.uri
    if isinstance(spec, PPOStage):
        if spec.ptx_dataset is not None:
            yield "ptxDataset.uri", spec.ptx_dataset.uri
        for index, reward in enumerate(spec.rewards):
            if reward.function is not None and reward.function.uri is not None:
                yield f"rewards[{index}].function.uri", reward.function.uri
