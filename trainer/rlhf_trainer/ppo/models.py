"""The models of PPO: found and checked before any weights, then loaded.

Called by the PPO stage.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from torch import nn

from rlhf_api.v1alpha1 import PPOStage, StageConfig
from rlhf_trainer.data.budget import scoring_budget, token_budget
from rlhf_trainer.data.packing import RowLayout
from rlhf_trainer.models.activations import (
    MicroBatch,
    allowance,
    attends_eagerly,
    evaluation_allowance,
    rollout_rows,
)
from rlhf_trainer.models.adapters import WithoutAdapters, add_adapters, trained_size
from rlhf_trainer.models.agreement import require_same_prompts, require_same_tokens
from rlhf_trainer.models.chosen_logits import fewest_logits
from rlhf_trainer.models.engine import TrainedModel, freeze, train
from rlhf_trainer.models.heads import (
    Actor,
    Critic,
    Logits,
    ScalarModel,
    initialize_value_head,
    switch_off_dropout,
)
from rlhf_trainer.models.layouts import check_model, forget_probes, packed_layouts
from rlhf_trainer.models.load import (
    ModelSettings,
    load_causal_model,
    load_reward_base,
    load_reward_model,
)
from rlhf_trainer.models.memory import (
    ModelSize,
    check_memory,
)
from rlhf_trainer.models.placed import PlacedModel
from rlhf_trainer.models.recomputation import check_checkpointing
from rlhf_trainer.models.source import Base, open_base
from rlhf_trainer.run.distributed import Ranks

FIELD = "spec.stages.ppo"
LORA = f"{FIELD}.lora"


@dataclass(frozen=True)
class Bases:
    """What the stage reads, before any weights.

    Attributes:
        notes: where answers end, and how the models differ, for people to read.
        refused: why prompts of a kind would be other ones to the reward model, by kind.
    """

    actor: Base
    reward_model: Base | None
    critic: Base
    notes: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def score_end(self) -> int | None:
        """The token by which the reward model knows that an answer has ended."""
        return None if self.reward_model is None else self.reward_model.generation.end.token_id

    @classmethod
    def open(cls, spec: PPOStage, config: StageConfig, ranks: Ranks) -> "Bases":
        """Find all models, and check that they read the same tokens and prompts.

        Raises:
            ConfigError: they do not.
        """
        actor = open_base(spec.model, config, ranks, f"{FIELD}.model")
        reward_model = (
            open_base(spec.reward_model, config, ranks, f"{FIELD}.rewardModel")
            if spec.reward_model is not None
            else None
        )
        critic = (
            open_base(spec.critic_model, config, ranks, f"{FIELD}.criticModel")
            if spec.critic_model is not None
            else reward_model or actor
        )
        notes = [*actor.notes]
        refused: dict[str, str] = {}
        if reward_model is not None:
            notes += require_same_tokens(actor, reward_model)
            differing, refused = require_same_prompts(actor, reward_model)
            notes += differing
        if critic is not actor and critic is not reward_model:
            notes += require_same_tokens(actor, critic)
        return cls(actor, reward_model, critic, tuple(notes), refused)


@dataclass(frozen=True)
class Models:
    """The models of PPO; no reward model where the stage's rewards are others.

    With adapters the reference is the actor without them: one copy of its weights serves both.

    Attributes:
        score_end: the token by which the reward model knows that an answer has ended.
        logits: which the actor and the reference are asked for.
        layout: how a rollout's rows stand in a pass of any of them.
    """

    actor: TrainedModel
    reference: PlacedModel
    critic: TrainedModel
    reward_model: PlacedModel | None
    score_end: int | None = None
    logits: Logits = Logits.ALL
    layout: RowLayout = RowLayout.PADDED

    @contextmanager
    def resident(self) -> Iterator[None]:
        """Inside, those that do not learn are where they compute."""
        with ExitStack() as stack:
            for model in filter(None, (self.reference, self.reward_model)):
                stack.enter_context(model.resident())
            yield


@dataclass(frozen=True)
class Workload:
    """What the rows of a stage ask of its models.

    Attributes:
        longest: tokens of the longest sequence, prompt and response.
        scored: sequences that a rank has to score at most at once, of a rollout or held-out ones.
        longest_text: tokens of the longest row of `ptxDataset`.
        most_text_loss_tokens: of the row of `ptxDataset` that has most tokens with a loss.
    """

    longest: int
    scored: int
    longest_text: int = 0
    most_text_loss_tokens: int = 0


def load_models(
    bases: Bases,
    spec: PPOStage,
    config: StageConfig,
    ranks: Ranks,
    workload: Workload,
    settings: ModelSettings | None = None,
) -> Models:
    """Load all models onto this rank's device and wrap those that learn.

    Args:
        bases: where they come from.
        spec: the stage.
        config: how much memory there is.
        ranks: every rank must call.
        workload: what they are asked for.
        settings: how they are loaded; as the stage says by default.

    Raises:
        ConfigError: a model cannot read so many tokens, or compute its layers anew.
        InputError: actor or critic is no causal model or draws at random while it learns, or a
            model reads padding.
        MemoryEstimateError: they will not fit; nothing is loaded then.
    """
    settings = settings or ModelSettings.of(spec, ranks)
    sizes = _sizes(bases, spec, settings)
    _check(bases, spec, settings, workload)
    logits = fewest_logits(bases.actor, settings)
    learning, scoring = _activations(bases.actor, spec, config.world_size, workload, logits)
    check_memory(config, ranks, sizes, learning, scoring)
    layout = _layout(bases, settings, ranks, logits)
    forget_probes()
    return replace(_load(bases, spec, settings, ranks, logits), layout=layout)


def _layout(bases: Bases, settings: ModelSettings, ranks: Ranks, logits: Logits) -> RowLayout:
    """Several rows a sequence where every model keeps them apart, by the same means.

    Some sequences have more actions than others, and each as many columns with logits as the one
    with most: only where these are made in chunks does that take no memory.
    """
    if logits is not Logits.HEAD:
        return RowLayout.PADDED
    models = {base.field: base for base in (bases.actor, bases.critic, bases.reward_model) if base}
    first, *others = ([*packed_layouts(each, settings, ranks.device)] for each in models.values())
    common = (layout for layout in first if all(layout in each for each in others))
    return next(common, RowLayout.PADDED)


def _sizes(bases: Bases, spec: PPOStage, settings: ModelSettings) -> list[ModelSize]:
    """All models that are held at the same time."""
    actor = trained_size(bases.actor, "actor", spec.lora, LORA, settings.note)
    sizes = [
        replace(actor, averaged=spec.ema_decay is not None, answers=True),
        trained_size(bases.critic, "critic", spec.lora, LORA, settings.note, scores=True),
    ]
    if spec.lora is None:
        sizes.append(replace(bases.actor.size("reference", trained=False), answers=True))
    if bases.reward_model is not None:
        sizes.append(bases.reward_model.size("reward model", trained=False, scores=True))
    return sizes


def _check(bases: Bases, spec: PPOStage, settings: ModelSettings, workload: Workload) -> None:
    """See that the models can do what is asked of them, before any weights are read."""
    lengths = f"{FIELD}.maxPromptLength or {FIELD}.maxResponseLength"
    for base in filter(None, (bases.actor, bases.reward_model, bases.critic)):
        base.require_positions(workload.longest, lengths)
    # The actor alone reads the texts of `ptxDataset`.
    bases.actor.require_positions(workload.longest_text, lengths)
    # A reward model may read a whole answer at once; who writes it, and who values its parts, not.
    for base in {bases.actor.field: bases.actor, bases.critic.field: bases.critic}.values():
        check_model(base, settings, left_padding=True)
        if spec.gradient_checkpointing:
            check_checkpointing(base, settings, f"{FIELD}.gradientCheckpointing")
    if bases.reward_model is not None:
        check_model(bases.reward_model, settings, causal=False, left_padding=True)


def wave_room(
    actor: Base,
    spec: PPOStage,
    world_size: int,
    workload: Workload,
    logits: Logits,
) -> Callable[[int], int]:
    """How many rows of so many tokens are decoded together, within what the estimate of memory sets
    aside: nothing learns meanwhile.

    What a stage samples does not depend on how much memory happens to be free.
    """
    budget = max(_activations(actor, spec, world_size, workload, logits))
    truncated = spec.top_k > 0 or spec.top_p < 1
    return partial(rollout_rows, actor.config, budget, spec.precision, truncated=truncated)


def _activations(
    actor: Base, spec: PPOStage, world_size: int, workload: Workload, logits: Logits
) -> tuple[int, int]:
    """Bytes of the largest of its passes that learn, from responses and from texts, and of those
    that score; there is one at a time."""
    fullest = partial(
        MicroBatch.fullest,
        in_chunks=logits is Logits.HEAD,
        eager=attends_eagerly(actor.config, spec.attention_implementation),
    )
    rows, tokens = (spec.minibatch_size or spec.batch_size) // world_size, token_budget(spec)
    longest, columns = workload.longest, spec.max_response_length + 1
    text = workload.longest_text
    text_columns = text if logits is Logits.ALL else workload.most_text_loss_tokens
    learning = fullest(tokens, rows, longest, columns), fullest(tokens, rows, text, text_columns)
    scoring = fullest(scoring_budget(spec), workload.scored, longest, columns)
    most = max(
        allowance(actor.config, work, spec.precision, checkpointing=spec.gradient_checkpointing)
        for work in learning
    )
    return most, evaluation_allowance(actor.config, scoring, spec.precision)


def _load(
    bases: Bases, spec: PPOStage, settings: ModelSettings, ranks: Ranks, logits: Logits
) -> Models:
    """One model after the other, so that the machine's memory never holds more than one that is yet
    to be cut or moved."""
    actor = _policy(bases.actor, settings, logits)
    add_adapters(actor.model, spec.lora, spec.seed, LORA, settings.dtype)
    trained_actor = train(_still(actor), spec, ranks, learning_rate=spec.learning_rate)
    frozen = partial(freeze, spec=spec, ranks=ranks, offload=spec.offload_frozen_models)
    reference: PlacedModel
    if spec.lora is None:
        reference = frozen(_still(_policy(bases.actor, settings, logits)))
    else:
        reference = WithoutAdapters.of(trained_actor)
    critic = _still(_critic(bases.critic, spec, settings))
    trained_critic = train(critic, spec, ranks, learning_rate=spec.critic_learning_rate)
    reward_model: PlacedModel | None = None
    if bases.reward_model is not None:
        reward_model = frozen(_still(_scorer(bases.reward_model, settings)))
    return Models(trained_actor, reference, trained_critic, reward_model, bases.score_end, logits)


def _still(module: nn.Module) -> nn.Module:
    switch_off_dropout(module)
    return module


def _policy(base: Base, settings: ModelSettings, logits: Logits) -> Actor:
    model = load_causal_model(base.location, base.tokenizer, settings, base.field)
    return Actor(model, base.absent_ids, logits=logits)


def _critic(base: Base, spec: PPOStage, settings: ModelSettings) -> ScalarModel:
    model = load_reward_base(base.location, base.tokenizer, settings, base.field, zero_head=True)
    initialize_value_head(model, spec.value_head_init, spec.seed)
    add_adapters(model, spec.lora, spec.seed, LORA, settings.dtype)
    return Critic(model) if spec.value_normalization == "PopArt" else ScalarModel(model)


def _scorer(base: Base, settings: ModelSettings) -> ScalarModel:
    return ScalarModel(load_reward_model(base.location, base.tokenizer, settings, base.field))
