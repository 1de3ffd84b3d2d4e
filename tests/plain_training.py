"""The three stages in plain PyTorch, row by row and without padding, as a twin to compare with.

Called by `fields/test_training.py`. Nothing of the trainer is used but the order of rows, which
`data/test_cursor.py` pins. Answers of PPO are those of `stage_runs.fixed_answer`.

    plain_training.weights_after(config)["actor"]["lm_head.weight"]
"""

import copy
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import ppo_runs
import stage_runs
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_api.v1alpha1 import Dataset, PPOStage, RewardStage, SFTStage, StageConfig, StageSpec
from rlhf_trainer.data.cursor import Cursor

Weights = dict[str, dict[str, Tensor]]
EOS = 1


def weights_after(config: StageConfig) -> Weights:
    """Weights after the stage's last step, by the model's name in a checkpoint."""
    spec = config.spec
    if isinstance(spec, PPOStage):
        trained = _PPO(spec).run()
    elif isinstance(spec, RewardStage):
        trained = {"model": _reward(spec)}
    else:
        assert isinstance(spec, SFTStage)
        trained = {"model": _sft(spec)}
    return {
        name: {key: weight.detach() for key, weight in model.named_parameters()}
        for name, model in trained.items()
    }


class _Steps:
    """AdamW with the decay, the clipping and the rate that a specification asks for."""

    def __init__(self, model: PreTrainedModel, spec: StageSpec, peak: float, total: int) -> None:
        self._model, self._spec, self._peak, self._total = model, spec, peak, total
        matrices = [each for each in model.parameters() if each.dim() >= 2]
        others = [each for each in model.parameters() if each.dim() < 2]
        self._optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": spec.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            betas=(spec.adam_betas[0], spec.adam_betas[1]),
            eps=spec.adam_eps,
        )

    def step(self, loss: Tensor, at: int) -> None:
        """The optimizer step of a whole batch in the stage's step `at`, from 0."""
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if self._spec.gradient_clipping > 0:
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._spec.gradient_clipping)
        for group in self._optimizer.param_groups:
            group["lr"] = self._peak * self._factor(at)
        self._optimizer.step()

    def _factor(self, at: int) -> float:
        warmup = math.ceil(self._total * self._spec.warmup_ratio)
        if at < warmup:
            return (at + 1) / warmup
        done = (at - warmup) / (self._total - warmup)
        return {
            "Constant": 1.0,
            "Linear": 1 - done,
            "Cosine": (1 + math.cos(math.pi * done)) / 2,
        }[self._spec.schedule]


def _rows(dataset: Dataset) -> list[dict[str, str]]:
    path = Path(dataset.uri.removeprefix("file://"))
    return [json.loads(line) for line in path.read_text().splitlines()]


def _fitting(spec: SFTStage | RewardStage) -> list[dict[str, str]]:
    """The rows of which no sequence, a prompt with an answer and EOS, is too long."""
    answers = ("response",) if isinstance(spec, SFTStage) else ("chosen", "rejected")
    prompt = "prompt" if isinstance(spec, SFTStage) else "query"
    return [
        row
        for row in _rows(spec.dataset)
        if all(len(row[prompt] + row[answer]) < spec.max_length for answer in answers)
    ]


def _steps_of(spec: StageSpec, rows: int) -> int:
    return spec.max_steps or math.ceil(rows * (spec.epochs or 1) / spec.batch_size)


# Supervised fine-tuning and the reward model


def _nll(model: PreTrainedModel, rows: Iterable[dict[str, str]]) -> Tensor:
    """Mean of -log p over all tokens of the rows' responses and their EOS."""
    found = []
    for row in rows:
        prompt, response = ppo_runs.ids_of(row["prompt"]), [*ppo_runs.ids_of(row["response"]), EOS]
        found.append(-_Answer(prompt, response).logits(model).logprobs)
    return torch.cat(found).mean()


def _sft(spec: SFTStage) -> PreTrainedModel:
    model, rows = ppo_runs.causal(ppo_runs.local(spec.model)), _fitting(spec)
    total = _steps_of(spec, len(rows))
    steps = _Steps(model, spec, spec.learning_rate, total)
    cursor = Cursor(len(rows), spec.batch_size, spec.seed)
    for at in range(total):
        steps.step(_nll(model, [rows[row] for row in cursor.next_batch()]), at)
    return model


def _reward(spec: RewardStage) -> PreTrainedModel:
    model, rows = ppo_runs.judge(ppo_runs.local(spec.model)), _fitting(spec)
    total = _steps_of(spec, len(rows))
    steps = _Steps(model, spec, spec.learning_rate, total)
    cursor = Cursor(len(rows), spec.batch_size, spec.seed)
    for at in range(total):
        losses = []
        for row in (rows[each] for each in cursor.next_batch()):
            chosen, rejected = (
                model(
                    input_ids=torch.tensor([[*ppo_runs.ids_of(row["query"] + row[side]), EOS]])
                ).logits[0, 0]
                for side in ("chosen", "rejected")
            )
            ranking = torch.log1p(torch.exp(-(chosen - rejected - spec.margin)))
            losses.append(ranking + spec.centering_coef * (chosen + rejected) ** 2)
        steps.step(torch.stack(losses).mean(), at)
    return model


# PPO


@dataclass(frozen=True)
class _Policy:
    """What a policy says of an answer's tokens. Shapes: Float[tokens] each."""

    logprobs: Tensor
    entropy: Tensor


@dataclass(frozen=True)
class _Answer:
    """A prompt and its answer; what PPO knows of it. Shapes: Float[tokens] where a Tensor."""

    prompt: list[int]
    response: list[int]
    score: float = 0.0
    old: Tensor = field(default_factory=lambda: torch.zeros(0))
    log_ratio: Tensor = field(default_factory=lambda: torch.zeros(0))
    kl: Tensor = field(default_factory=lambda: torch.zeros(0))
    values: Tensor = field(default_factory=lambda: torch.zeros(0))
    advantages: Tensor = field(default_factory=lambda: torch.zeros(0))
    returns: Tensor = field(default_factory=lambda: torch.zeros(0))

    @property
    def ids(self) -> Tensor:
        return torch.tensor([self.prompt + self.response])

    def logits(self, model: PreTrainedModel, temperature: float = 1.0) -> _Policy:
        """Log-probabilities of the answer's tokens."""
        logits = model(input_ids=self.ids).logits[0, len(self.prompt) - 1 : -1] / temperature
        every = torch.log_softmax(logits, dim=-1)
        chosen = every.gather(1, torch.tensor(self.response).unsqueeze(1)).squeeze(1)
        return _Policy(chosen, -(every.exp() * every).sum(dim=1))

    def valued(self, critic: Any) -> Tensor:
        """The critic's number before each of the answer's tokens."""
        hidden = critic.base_model(input_ids=self.ids).last_hidden_state
        numbers: Tensor = critic.score(hidden)[0, len(self.prompt) - 1 : -1, 0]
        return numbers


class _PPO:
    """PPO over fixed answers."""

    def __init__(self, spec: PPOStage) -> None:
        assert spec.reward_model is not None
        self.spec = spec
        self.actor = ppo_runs.causal(ppo_runs.local(spec.model))
        self.reference = copy.deepcopy(self.actor)
        self.judge = ppo_runs.judge(ppo_runs.local(spec.reward_model))
        self.critic = ppo_runs.judge(ppo_runs.local(spec.critic_model or spec.reward_model))
        if spec.value_head_init == "Zero":
            torch.nn.init.zeros_(self.critic.score.weight)
        prompts = [ppo_runs.ids_of(row["prompt"]) for row in _rows(spec.dataset)]
        self.prompts = [prompt for prompt in prompts if len(prompt) <= spec.max_prompt_length]
        self.kl_coef = spec.kl_coef
        self.seen: list[float] = []
        total = _steps_of(spec, len(self.prompts))
        self.total = total
        self.actor_steps = _Steps(self.actor, spec, spec.learning_rate, total)
        self.critic_steps = _Steps(self.critic, spec, spec.critic_learning_rate, total)
        self.texts = _rows(spec.ptx_dataset) if spec.ptx_dataset is not None else []
        size = spec.minibatch_size or spec.batch_size
        self.text_cursor = Cursor(max(1, len(self.texts)), size, spec.seed)

    def run(self) -> dict[str, PreTrainedModel]:
        """Train; actor and critic."""
        spec = self.spec
        cursor = Cursor(len(self.prompts), spec.batch_size, spec.seed)
        for at in range(self.total):
            answers = [self._answered(self.prompts[row]) for row in cursor.next_batch()]
            answers = self._judged(answers)
            if spec.advantage_normalization == "Batch":
                answers = _normalized(answers)
            for epoch in range(spec.update_epochs):
                for part in self._minibatches(answers, at, epoch):
                    self._learn(part, at)
            self._adapt(answers)
        return {"actor": self.actor, "critic": self.critic}

    @torch.no_grad()
    def _answered(self, prompt: list[int]) -> _Answer:
        answer = _Answer(prompt, stage_runs.fixed_answer(prompt))
        old = answer.logits(self.actor, self.spec.temperature).logprobs
        ratio = old - answer.logits(self.reference, self.spec.temperature).logprobs
        kl = {"K1": ratio, "K2": ratio**2 / 2, "K3": torch.exp(-ratio) - 1 + ratio}
        return replace(
            answer,
            score=ppo_runs.score(self.judge, prompt + answer.response),
            old=old,
            log_ratio=ratio,
            kl=kl[self.spec.kl_estimator],
            values=answer.valued(self.critic),
        )

    def _judged(self, answers: Sequence[_Answer]) -> list[_Answer]:
        """With advantages and returns."""
        spec, kl_coef = self.spec, self.kl_coef
        scores = []
        for answer in answers:
            score = min(max(answer.score, -spec.score_clip), spec.score_clip)
            ended = answer.response[-1] == EOS
            scores.append(score - (0.0 if ended else spec.missing_eos_penalty))
        if spec.reward_scaling != "None":
            whole = spec.reward_scaling == "RunningStdTotal"
            self.seen += [
                score - whole * kl_coef * float(answer.kl.sum())
                for score, answer in zip(scores, answers, strict=True)
            ]
            scale = float(np.std(self.seen, ddof=1))
            scores = [score / scale for score in scores]
            kl_coef = kl_coef / scale if whole else kl_coef
        return [
            self._estimated(answer, score, kl_coef)
            for answer, score in zip(answers, scores, strict=True)
        ]

    def _estimated(self, answer: _Answer, score: float, kl_coef: float) -> _Answer:
        rewards = (-kl_coef * answer.kl).tolist()
        rewards[-1] += score
        values = [*answer.values.tolist(), 0.0]
        advantage, advantages = 0.0, []
        for at in reversed(range(len(rewards))):
            delta = rewards[at] + self.spec.gamma * values[at + 1] - values[at]
            advantage = delta + self.spec.gamma * self.spec.gae_lambda * advantage
            advantages.insert(0, advantage)
        found = torch.tensor(advantages)
        return replace(answer, advantages=found, returns=found + answer.values)

    def _minibatches(
        self, answers: Sequence[_Answer], at: int, epoch: int
    ) -> Iterable[list[_Answer]]:
        size = self.spec.minibatch_size or self.spec.batch_size
        seed = np.random.SeedSequence([self.spec.seed, at, epoch]).generate_state(1)[0]
        order = torch.randperm(
            len(answers), generator=torch.Generator().manual_seed(int(seed))
        ).tolist()
        for start in range(0, len(order), size):
            yield [answers[row] for row in order[start : start + size]]

    def _learn(self, part: list[_Answer], at: int) -> None:
        spec = self.spec
        if spec.advantage_normalization == "Minibatch":
            part = _normalized(part)
        if at >= spec.critic_warmup_steps:
            loss = torch.cat([self._policy_losses(answer) for answer in part]).mean()
            if self.texts:
                texts = [self.texts[row] for row in self.text_cursor.next_batch()]
                loss = loss + (27.8 if spec.ptx_coef is None else spec.ptx_coef) * _nll(
                    self.actor, texts
                )
            self.actor_steps.step(loss, at)
        errors = torch.cat([self._squared_errors(answer) for answer in part])
        self.critic_steps.step(spec.value_coef * errors.mean() / 2, at)

    def _policy_losses(self, answer: _Answer) -> Tensor:
        said = answer.logits(self.actor, self.spec.temperature)
        ratio = torch.exp(said.logprobs - answer.old)
        near = ratio.clamp(1 - self.spec.clip_range, 1 + self.spec.clip_range)
        gain = torch.minimum(ratio * answer.advantages, near * answer.advantages)
        return -gain - self.spec.entropy_coef * said.entropy

    def _squared_errors(self, answer: _Answer) -> Tensor:
        values, clip = answer.valued(self.critic), self.spec.value_clip_range
        errors: Tensor = (values - answer.returns) ** 2
        if clip is None:
            return errors
        near = answer.values + (values - answer.values).clamp(-clip, clip)
        return torch.maximum(errors, (near - answer.returns) ** 2)

    def _adapt(self, answers: Sequence[_Answer]) -> None:
        if self.spec.kl_controller == "Adaptive":
            assert self.spec.kl_target is not None
            # What is steered is the KL itself, whatever estimates it in the rewards.
            kl = float(np.mean([float(answer.log_ratio.sum()) for answer in answers]))
            error = min(max(kl / self.spec.kl_target - 1, -0.2), 0.2)
            self.kl_coef *= 1 + error * self.spec.batch_size / self.spec.kl_horizon


def _normalized(answers: Sequence[_Answer]) -> list[_Answer]:
    """With advantages of mean 0 and variance 1 over all tokens."""
    every = torch.cat([answer.advantages for answer in answers])
    return [
        replace(answer, advantages=(answer.advantages - every.mean()) / every.std())
        for answer in answers
    ]
