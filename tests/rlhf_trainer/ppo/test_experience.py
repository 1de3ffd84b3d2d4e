"""What PPO learns from a rollout, against slow loops, hand-worked numbers and identities."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import worlds
from torch import Tensor

from rlhf_trainer.models.heads import Actor, ScalarModel
from rlhf_trainer.ppo.experience import (
    Experience,
    Targets,
    collect,
    last_scores,
    minibatches,
    normalized,
    response_values,
    targets_of,
)
from rlhf_trainer.ppo.rollout import Rollout
from rlhf_trainer.rl import entropy_bonus, policy_loss, value_loss

PROGRAM = Path(__file__).parents[1] / "programs_engine" / "rollout_cases.py"
cases: Any = worlds.load(PROGRAM)

PROMPTS = [[3, 4, 5], [6], [7, 8, 9, 10, 11], [12, 13]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("experience")
    tiny.tokenizer_folder(found / "tokenizer")
    return found


def ppo_spec(folder: Path, **changed: Any) -> Any:
    return tiny.stage_spec("ppo", folder, **changed)


def close(found: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


class Four:
    """Actor, reference, critic and reward model, all different."""

    def __init__(self, folder: Path) -> None:
        words = folder / "tokenizer"
        self.policy = tiny.causal_model(words).eval()
        self.actor = Actor(self.policy)
        self.reference = Actor(tiny.shake(tiny.causal_model(words), seed=21).eval())
        self.critic = ScalarModel(tiny.shake(tiny.scalar_model(words), seed=22)).eval()
        self.reward_model = ScalarModel(tiny.shake(tiny.scalar_model(words), seed=23)).eval()

    def collect(self, rollout: Rollout, **changed: Any) -> Experience:
        models: dict[str, Any] = {
            "actor": self.actor,
            "reference": self.reference,
            "critic": self.critic,
            "reward_model": self.reward_model,
            "temperature": 0.7,
            "tokens": 30,
            "ranks": tiny.ranks(),
        }
        return collect(rollout, **models | changed)


@pytest.fixture(scope="module")
def four(folder: Path) -> Four:
    return Four(folder)


@pytest.fixture(scope="module")
def rollout(four: Four) -> Rollout:
    torch.manual_seed(4)
    found: Rollout = cases.sampler(four.policy, temperature=0.7).sample(PROMPTS * 2)
    assert found.ended.any()
    assert not found.ended.all()
    return found


# Four models on a rollout


def test_every_number_is_that_of_a_row_alone(four: Four, rollout: Rollout) -> None:
    """A slow loop over rows and tokens, without any padding."""
    found = four.collect(rollout)
    assert not found.old_logprobs.requires_grad
    for row, (prompt, response) in enumerate(cases.parts(rollout)):
        ids = torch.tensor([prompt + response])
        with torch.no_grad():
            logits = four.policy(input_ids=ids).logits[0]
            ref_logits = four.reference.model(input_ids=ids).logits[0]
            hidden = four.critic.model.base_model(input_ids=ids).last_hidden_state[0]
            values = four.critic.model.score(hidden)[:, 0]
            score = four.reward_model.model(input_ids=ids).logits[0, 0]
        close(found.scores[row], score)
        for t, token in enumerate(response):
            state = len(prompt) + t - 1
            close(found.old_logprobs[row, t], torch.log_softmax(logits[state] / 0.7, dim=-1)[token])
            close(
                found.ref_logprobs[row, t],
                torch.log_softmax(ref_logits[state] / 0.7, dim=-1)[token],
            )
            # The value of a state is read before its action is seen.
            close(found.values[row, t], values[state])


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "qwen2"])
def test_the_same_holds_where_positions_are_learned(folder: Path, architecture: str) -> None:
    words = folder / "tokenizer"
    reward_model = ScalarModel(tiny.scalar_model(words, architecture)).eval()
    torch.manual_seed(4)
    rollout = cases.sampler(tiny.causal_model(words, architecture).eval()).sample(PROMPTS)
    with torch.no_grad():
        scores = last_scores(reward_model, rollout)
        values = response_values(reward_model, rollout)
        for row, (prompt, response) in enumerate(cases.parts(rollout)):
            ids = torch.tensor([prompt + response])
            close(scores[row], reward_model.model(input_ids=ids).logits[0, 0])
            first = reward_model.model(input_ids=torch.tensor([prompt])).logits[0, 0]
            close(values[row, 0], first)


def test_the_reward_model_reads_the_end_that_it_knows(four: Four, rollout: Rollout) -> None:
    """Whatever ended an answer; what was cut off, and all other models, see what was sampled."""
    plain, found = four.collect(rollout), four.collect(rollout, score_end=12)
    for row, (prompt, response) in enumerate(cases.parts(rollout)):
        known = [*response[:-1], 12] if rollout.ended[row] else response
        with torch.no_grad():
            ids = torch.tensor([prompt + known])
            close(found.scores[row], four.reward_model.model(input_ids=ids).logits[0, 0])
        assert torch.equal(found.scores[row], plain.scores[row]) != bool(rollout.ended[row])
    for name in ("old_logprobs", "ref_logprobs", "values"):
        assert torch.equal(getattr(found, name), getattr(plain, name))
    assert found.rollout is rollout


def test_micro_batches_do_not_change_an_experience(four: Four, rollout: Rollout) -> None:
    whole = four.collect(rollout, tokens=1000)
    split = four.collect(rollout, tokens=1)
    for name in ("old_logprobs", "ref_logprobs", "values"):
        close(getattr(split, name)[whole.mask], getattr(whole, name)[whole.mask])
    close(split.scores, whole.scores)


def test_models_compute_few_columns_of_padding(four: Four, rollout: Rollout) -> None:
    seen: list[torch.Size] = []

    def critic(*sequences: Tensor) -> Tensor:
        seen.append(sequences[0].shape)
        numbers: Tensor = four.critic(*sequences)
        return numbers

    four.collect(rollout, critic=critic, tokens=1)
    lengths = (rollout.prompt_lengths + rollout.response_lengths).tolist()
    assert seen == [torch.Size([1, length]) for length in sorted(lengths)]


def test_parts_of_an_experience_are_those_of_its_rollout(
    four: Four, rollout: Rollout, folder: Path
) -> None:
    whole = four.collect(rollout)
    whole = dataclasses.replace(whole, rewards={"length": rollout.response_lengths.float()})
    learned = targets_of(whole, whole.scores, ppo_spec(folder), kl_coef=0.1)
    parts = whole.within(30)
    assert len(parts) > 1
    for rows, part in parts:
        at = part.mask
        width = at.shape[1]
        for name in ("old_logprobs", "ref_logprobs", "values"):
            same = getattr(whole, name)[rows][whole.mask[rows]]
            assert torch.equal(getattr(part, name)[at], same)
        assert torch.equal(part.scores, whole.scores[rows])
        assert torch.equal(part.rewards["length"], part.rollout.response_lengths.float())
        narrow = learned[rows].narrowed(width)
        assert torch.equal(narrow.returns[at], learned.returns[rows][whole.mask[rows]])
        assert narrow.advantages.shape == narrow.rewards.shape == at.shape


def test_without_a_reward_model_scores_are_0(four: Four, rollout: Rollout) -> None:
    found = four.collect(rollout, reward_model=None)
    assert found.scores.dtype == four.collect(rollout).scores.dtype
    assert found.scores.tolist() == [0.0] * len(PROMPTS * 2)


def test_the_ratio_is_1_on_the_first_minibatch(four: Four, rollout: Rollout) -> None:
    found = four.collect(rollout, tokens=1000)
    sequences = found.rollout.sequences
    now = four.actor(*sequences, rollout.responses.shape[1], 0.7).logprobs
    advantages = torch.randn(now.shape)
    loss = policy_loss(now, found.old_logprobs, advantages, found.mask, 0.2, 1.0)
    assert float(loss.ratio_sum) == float(loss.tokens) == float(found.mask.sum())
    assert float(loss.approx_kl_sum) == 0
    assert float(loss.clipped) == 0
    # At another temperature it would not be.
    wrong = four.actor(*sequences, rollout.responses.shape[1], 1.0).logprobs
    assert float((wrong - found.old_logprobs)[found.mask].detach().abs().max()) > 0.01


@pytest.mark.parametrize("estimator", ["K1", "K2", "K3"])
def test_kl_against_itself_is_0(four: Four, rollout: Rollout, estimator: str) -> None:
    found = four.collect(rollout, reference=four.actor)
    assert not found.kl(estimator).any()
    assert not found.answer_kl().any()


# Rewards


@pytest.mark.parametrize("estimator", ["K1", "K2", "K3"])
def test_rewards_without_the_score_are_the_kl_penalty_at_every_token(
    folder: Path, estimator: str
) -> None:
    found = cases.experience()
    spec = ppo_spec(folder, kl_estimator=estimator)
    rewards = targets_of(found, found.scores, spec, kl_coef=0.3).rewards
    for row, length in enumerate(found.rollout.response_lengths.tolist()):
        for t in range(found.mask.shape[1]):
            k1 = float(found.old_logprobs[row, t] - found.ref_logprobs[row, t])
            kl = {"K1": k1, "K2": k1 * k1 / 2, "K3": math.expm1(-k1) + k1}[estimator]
            expected = -0.3 * kl if t < length else 0.0
            if t == length - 1:
                # The last action, EOS or not, carries the score beside its own penalty.
                expected += float(found.scores[row])
            assert float(rewards[row, t]) == pytest.approx(expected, abs=1e-5), (row, t)


def test_kl_of_an_answer_is_in_nats() -> None:
    found = cases.experience()
    for row, length in enumerate(found.rollout.response_lengths.tolist()):
        drift = (found.old_logprobs - found.ref_logprobs)[row, :length]
        assert float(found.answer_kl()[row]) == pytest.approx(float(drift.sum()), abs=1e-5)


def test_advantages_and_returns_by_a_slow_loop(folder: Path) -> None:
    found = cases.experience()
    spec = ppo_spec(folder, gamma=0.9, gae_lambda=0.8)
    targets = targets_of(found, found.scores, spec, kl_coef=0.1)
    for row, length in enumerate(found.rollout.response_lengths.tolist()):
        rewards, values = targets.rewards[row].tolist(), found.values[row].tolist()
        for t in range(found.mask.shape[1]):
            if t >= length:
                assert float(targets.advantages[row, t]) == float(targets.returns[row, t]) == 0
                continue
            deltas = [
                rewards[s] + (0.9 * values[s + 1] if s + 1 < length else 0.0) - values[s]
                for s in range(t, length)
            ]
            advantage = sum(0.72**k * delta for k, delta in enumerate(deltas))
            assert float(targets.advantages[row, t]) == pytest.approx(advantage, abs=1e-4)
            assert float(targets.returns[row, t]) == pytest.approx(advantage + values[t], abs=1e-4)


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30, -1.0])
def test_what_stands_after_the_end_changes_nothing(folder: Path, garbage: float) -> None:
    def numbers(found: Experience) -> list[Tensor]:
        spec = ppo_spec(folder, gamma=0.9)
        targets = targets_of(found, found.scores, spec, kl_coef=0.3)
        mask = found.mask
        advantages = normalized(targets.advantages, mask, tiny.ALONE)
        learned = {
            name: torch.where(mask, (0.9 * getattr(found, name)), garbage).requires_grad_()
            for name in ("old_logprobs", "values", "ref_logprobs")
        }
        policy = policy_loss(
            learned["old_logprobs"], found.old_logprobs, advantages, mask, 0.2, 7.0
        )
        value = value_loss(learned["values"], found.values, targets.returns, mask, 0.3, 7.0)
        entropy = entropy_bonus(learned["ref_logprobs"], mask, 0.01, 7.0)
        loss = policy.loss + value.loss + entropy.loss
        gradients = torch.autograd.grad(loss, list(learned.values()))
        return [loss, *vars(targets).values(), advantages, found.answer_kl(), *gradients]

    expected = numbers(cases.experience(garbage=0.0))
    for one, other in zip(numbers(cases.experience(garbage=garbage)), expected, strict=True):
        assert torch.equal(one, other)
    for gradient in expected[-3:]:
        assert not gradient[~cases.experience().mask].any()
        assert gradient[cases.experience().mask].any()


# Over ranks


@pytest.mark.parametrize("scaling", ["RunningStd", "RunningStdTotal"])
def test_what_is_global_does_not_depend_on_the_number_of_ranks(folder: Path, scaling: str) -> None:
    ppo_spec(folder)
    advantages, scores, moments, values = cases.global_numbers(tiny.ALONE, folder, scaling)
    found = worlds.pair()(PROGRAM, "global_numbers", folder=folder, scaling=scaling)
    assert [len(part[0]) for part in found] == [6, 4]
    close(torch.cat([part[0] for part in found]), advantages)
    for update in range(2):
        close(torch.cat([part[1][update] for part in found]), scores[update])
    for part in found:
        assert part[2] == found[0][2]
        for one, other in ((part[2], moments), (part[3], values)):
            assert (one.count, one.mean, one.m2) == pytest.approx(
                (other.count, other.mean, other.m2)
            )
    assert moments.count == 20


def test_normalised_advantages_have_mean_0_and_variance_1_over_real_tokens(folder: Path) -> None:
    found = cases.experience(rows=12)
    targets = targets_of(found, found.scores, ppo_spec(folder), kl_coef=0.1)
    advantages = normalized(targets.advantages, found.mask, tiny.ALONE)
    assert float(advantages[found.mask].mean()) == pytest.approx(0, abs=1e-5)
    assert float(advantages[found.mask].std()) == pytest.approx(1, rel=1e-4)
    assert not advantages[~found.mask].any()
    order = targets.advantages[found.mask].argsort()
    assert torch.equal(advantages[found.mask].argsort(), order)


# Minibatches


def numbered(rows: int) -> tuple[Experience, Targets]:
    """Every field of row n holds n."""

    def of(make: Callable[[int], Tensor]) -> Tensor:
        return torch.stack([make(row) for row in range(rows)])

    wide = of(lambda row: torch.full((3,), float(row)))
    rollout = Rollout(
        of(lambda row: torch.full((2,), row)),
        of(lambda row: torch.tensor(row)),
        of(lambda row: torch.full((3,), row)),
        of(lambda row: torch.tensor(row)),
        of(lambda row: torch.tensor(row % 2 == 0)),
        wide,
    )
    scores = torch.arange(float(rows))
    experience = Experience(rollout, wide, wide, wide, scores, {"mine": scores}, wide)
    return experience, Targets(wide, wide, wide)


def test_minibatches_are_a_permutation_and_keep_rows_together() -> None:
    experience, targets = numbered(10)
    orders = []
    for seed in (1, 2, 1):
        generator = torch.Generator().manual_seed(seed)
        parts = list(minibatches(experience, targets, 4, generator))
        assert [len(part.scores) for part, _ in parts] == [4, 4, 2]
        order = [int(score) for part, _ in parts for score in part.scores]
        assert sorted(order) == list(range(10))
        orders.append(order)
        for part, part_targets in parts:
            rows = part.scores
            of_rows = vars(part.rollout) | vars(part) | part.rewards
            for name in of_rows.keys() - {"rollout", "rewards"}:
                value = of_rows[name]
                expected = (
                    rows % 2 == 0
                    if name == "ended"
                    else rows.to(value.dtype).reshape(-1, *[1] * (value.dim() - 1))
                )
                assert torch.equal(value, expected.expand_as(value)), name
            for value in vars(part_targets).values():
                assert torch.equal(value, rows.unsqueeze(1).expand_as(value))
    assert orders[0] == orders[2] != orders[1]
    assert orders[0] != sorted(orders[0])


def test_rows_come_in_the_order_asked_for() -> None:
    rows = torch.tensor([3, 0])
    experience, targets = numbered(5)
    part, targets = experience[rows], targets[rows]
    assert part.scores.tolist() == [3, 0]
    assert part.rewards["mine"].tolist() == [3, 0]
    assert part.rollout.responses[:, 0].tolist() == [3, 0]
    assert targets.returns[:, 0].tolist() == [3, 0]
