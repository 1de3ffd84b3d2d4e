"""The self-checks pass sound models and name what a broken one breaks."""

import logging
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import worlds

from rlhf_api.names import Reason
from rlhf_trainer.data.tokenize.tokenized import Prompt
from rlhf_trainer.errors import SelfCheckError
from rlhf_trainer.models.heads import Actor
from rlhf_trainer.ppo.self_checks import (
    ORDER_OF_SCORES,
    PADDING_OF_LOGPROBS,
    PADDING_OF_SCORES,
    RATIO,
    REFERENCE,
    Check,
    Subjects,
    alone_rows,
    deviations,
    require_passed,
    run_self_checks,
    short_sampling,
    spread,
    turned_rows,
    widened,
)
from rlhf_trainer.run.checkpoint import rng_state

PROGRAM = Path(__file__).parents[1] / "programs_engine" / "self_check_cases.py"
cases: Any = worlds.load(PROGRAM)


def failed(found: dict[Check, float], precision: str = "FP32") -> set[Check]:
    return {check for check, deviation in found.items() if deviation >= check.bounds[precision]}


@pytest.mark.parametrize("precision", ["FP32", "BF16"])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_sound_models_pass(tmp_path: Path, architecture: str, precision: str) -> None:
    subjects = cases.subjects(tmp_path, architecture, precision)
    rollout = cases.rollout(subjects)
    found = deviations(subjects, rollout, cases.spec(tmp_path, precision=precision))
    assert set(found) == {
        RATIO,
        REFERENCE,
        PADDING_OF_LOGPROBS,
        PADDING_OF_SCORES,
        ORDER_OF_SCORES,
    }
    assert not failed(found, precision)
    require_passed(found, precision)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_evaluations_are_different_computations(tmp_path: Path, architecture: str) -> None:
    """Rounding shows that none is read twice; in which precision depends on the processor."""
    found = []
    for precision in ("FP32", "BF16"):
        subjects = cases.subjects(tmp_path / precision, architecture, precision)
        spec = cases.spec(tmp_path, precision=precision)
        found.append(deviations(subjects, cases.rollout(subjects), spec)[PADDING_OF_LOGPROBS])
    assert max(found) > 0


BROKEN: dict[str, tuple[Callable[[Subjects], Subjects], set[Check]]] = {
    "position ids ignored": (
        lambda s: replace(s, actor=cases.WithoutPositions(s.actor), reference=None),
        {PADDING_OF_LOGPROBS},
    ),
    "padding read by the actor": (
        lambda s: replace(s, actor=cases.ReadingPadding(s.actor), reference=None),
        {PADDING_OF_LOGPROBS},
    ),
    "random actor": (
        lambda s: replace(s, actor=cases.WithDropout(s.actor)),
        {RATIO, REFERENCE, PADDING_OF_LOGPROBS},
    ),
    "padding read by the reward model": (
        lambda s: replace(s, reward_model=cases.ReadingPadding(s.reward_model)),
        {PADDING_OF_SCORES},
    ),
    "rows scored by their batch": (
        lambda s: replace(s, reward_model=cases.LessTheMeanOfTheBatch(s.reward_model)),
        {PADDING_OF_SCORES, ORDER_OF_SCORES},
    ),
    "scores that are no numbers": (
        lambda s: replace(s, reward_model=cases.NotANumber(s.reward_model)),
        {PADDING_OF_SCORES, ORDER_OF_SCORES},
    ),
}


@pytest.mark.parametrize("precision", ["FP32", "BF16"])
@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_named(tmp_path: Path, name: str, precision: str) -> None:
    spoil, expected = BROKEN[name]
    sound = cases.subjects(tmp_path, precision=precision)
    rollout = cases.rollout(sound)
    torch.manual_seed(1)
    found = deviations(spoil(sound), rollout, cases.spec(tmp_path, precision=precision))
    assert failed(found, precision) == expected
    with pytest.raises(SelfCheckError) as caught:
        require_passed(found, precision)
    for check in expected:
        assert f"{check.field}: self-check {check.name}: {check.quantity} is" in str(caught.value)
        assert check.remedy in str(caught.value)
    of_scores = {PADDING_OF_SCORES, ORDER_OF_SCORES} & expected
    assert ("set precision FP32" in str(caught.value)) == (bool(of_scores) and precision == "BF16")


def test_another_reference_is_seen(tmp_path: Path) -> None:
    sound = cases.subjects(tmp_path)
    other = Actor(tiny.shake(tiny.causal_model(tmp_path / "tokenizer", "gpt2"), seed=50)).eval()
    rollout, spec = cases.rollout(sound), cases.spec(tmp_path)
    assert failed(deviations(replace(sound, reference=other), rollout, spec)) == {REFERENCE}


def test_what_is_not_there_is_not_checked(tmp_path: Path) -> None:
    sound = cases.subjects(tmp_path)
    found = deviations(
        replace(sound, reference=None, reward_model=None),
        cases.rollout(sound),
        cases.spec(tmp_path),
    )
    assert set(found) == {RATIO, PADDING_OF_LOGPROBS}


@pytest.mark.parametrize("precision", ["FP32", "BF16"])
def test_scores_that_hardly_differ_may_be_rounded(tmp_path: Path, precision: str) -> None:
    """A reward model whose head is zero but for rounding has no standard deviation to speak of."""
    sound = cases.subjects(tmp_path, precision=precision)

    def equal(*sequences: Any) -> torch.Tensor:
        scores = 1.0 + 0 * sound.reward_model(*sequences)
        eps = torch.finfo(torch.float32 if precision == "FP32" else torch.bfloat16).eps
        return scores + eps * (torch.arange(scores.shape[1]) % 2)

    spec = cases.spec(tmp_path, precision=precision)
    rollout = cases.rollout(sound)
    assert not failed(deviations(replace(sound, reward_model=equal), rollout, spec), precision)
    nothing = replace(sound, reward_model=lambda *s: 0 * sound.reward_model(*s))
    assert deviations(nothing, rollout, spec)[PADDING_OF_SCORES] == 0


@pytest.mark.parametrize(
    ("precision", "size", "moved", "fails"),
    [
        ("FP32", 0, 0.9, False),
        ("FP32", 0, 1.1, True),
        ("BF16", 0, 0.9, False),
        ("BF16", 0, 1.1, True),
        # Close together beside their size: rounding alone may be as much.
        ("FP32", 1e3, 1.1, True),
        ("BF16", 10, 1.1, True),
        # All alike but for rounding, and then changed by as much, or by more.
        ("FP32", 1e7, 1e4, False),
        ("BF16", 1e3, 100, False),
        ("FP32", 1e7, 1e5, True),
        ("BF16", 1e3, 1e3, True),
    ],
)
def test_a_score_may_change_by_a_share_of_its_deviation_and_where_all_are_alike_be_rounded(
    tmp_path: Path, size: float, moved: float, fails: bool, precision: str
) -> None:
    """`moved` is in units of the bound times the deviation, which is 1 for all rows."""
    sound = cases.subjects(tmp_path, precision=precision)
    rollout, spec = cases.rollout(sound), cases.spec(tmp_path, precision=precision)
    bound = {"FP32": 1e-4, "BF16": 0.05}[precision]
    scores = size + torch.arange(8.0) / torch.arange(8.0).std()
    ids, attention, _ = rollout.sequences
    texts = [tuple(row[seen.bool()].tolist()) for row, seen in zip(ids, attention, strict=True)]

    def scored(ids: torch.Tensor, attention: torch.Tensor, *rest: Any) -> torch.Tensor:
        """Each row by its tokens, and more where there is more padding."""
        rows = zip(ids, attention.bool(), strict=True)
        at = [texts.index(tuple(row[seen].tolist())) for row, seen in rows]
        more = moved * bound * float(ids.shape[1] > rollout.sequences[0].shape[1])
        return (scores[at] + more).unsqueeze(1).expand(ids.shape)

    assert len(set(texts)) == len(texts)
    found = deviations(replace(sound, reward_model=scored), rollout, spec)
    assert (PADDING_OF_SCORES in failed(found, precision)) == fails


def test_scores_are_checked_with_the_end_that_the_reward_model_knows(tmp_path: Path) -> None:
    sound = cases.subjects(tmp_path)
    rollout, spec = cases.rollout(sound), cases.spec(tmp_path)
    seen: list[torch.Tensor] = []

    def watched(ids: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        seen.append(ids)
        return sound.reward_model(ids, *rest)  # type: ignore[misc]

    ends = {}
    for end in (None, 7):
        seen.clear()
        deviations(replace(sound, reward_model=watched, score_end=end), rollout, spec)
        # The first evaluation is of the rows as they are, in parts.
        whole = torch.cat(seen[: -(-8 // spec.rollout_micro_batch_size)])
        ends[end] = rollout.at_ends(whole)[rollout.ended]
    assert rollout.ended.any()
    assert (ends[None] == 1).all()
    assert (ends[7] == 7).all()


@pytest.mark.parametrize("check", [RATIO, ORDER_OF_SCORES])
def test_bounds_are_what_the_documentation_says(check: Check) -> None:
    bounds = {RATIO: (1e-5, 0.02), ORDER_OF_SCORES: (1e-4, 0.05)}[check]
    for precision, bound in zip(("FP32", "BF16"), bounds, strict=True):
        require_passed({check: bound * 0.99}, precision)
        for more in (bound, math.inf, math.nan):
            with pytest.raises(SelfCheckError, match=f"not below {bound:g} in {precision}"):
                require_passed({check: more}, precision)


def test_every_failed_check_is_told() -> None:
    with pytest.raises(SelfCheckError) as caught:
        require_passed({RATIO: 0.5, REFERENCE: 0.0, ORDER_OF_SCORES: 0.125}, "BF16")
    text = str(caught.value)
    assert "spec.stages.ppo.model: self-check ratio" in text
    assert "is 0.5, not below 0.02 in BF16" in text
    assert "spec.stages.ppo.rewardModel: self-check score order" in text
    assert "is 0.125, not below 0.05 in BF16" in text
    assert "self-check reference" not in text


def test_prompts_range_from_the_shortest_to_the_longest() -> None:
    lengths = [len(prompt.tokens) for prompt in spread(cases.PROMPTS)]
    assert lengths == sorted(lengths)
    assert (len(lengths), lengths[0], lengths[-1]) == (8, 1, 9)
    (one,) = {id(found) for found in spread(cases.PROMPTS[:1])}
    assert one == id(cases.PROMPTS[0])


@pytest.mark.parametrize(("most", "short"), [(1, 1), (2, 1), (8, 4), (24, 16), (1024, 32)])
def test_padding_leaves_room_for_answers(most: int, short: int) -> None:
    """Models of learned positions take no longer rows than those of the stage."""
    sampling = replace(cases.SAMPLING, max_response_length=most, top_k=3, top_p=0.5)
    # Of all tokens: what is left out is no fault of the sampler's.
    assert short_sampling(sampling) == replace(cases.SAMPLING, max_response_length=short)


def test_the_same_rows_are_laid_out_otherwise(tmp_path: Path) -> None:
    rollout = cases.rollout(cases.subjects(tmp_path))
    rows = [rollout[at : at + 1] for at in range(8)]
    wide = widened(rollout, 3)
    assert wide.prompts.shape[1] == rollout.prompts.shape[1] + 3
    for one, row in zip(alone_rows(rollout), rows, strict=True):
        ids, attention, positions = one.sequences
        assert attention.all()
        assert torch.equal(ids[0], row.sequences[0][row.sequences[1].bool()])
        assert positions[0].tolist() == list(range(ids.shape[1]))
    assert (wide.sequences[1].sum(dim=1) == rollout.sequences[1].sum(dim=1)).all()
    turned = turned_rows(rollout)
    assert torch.equal(turned.prompts, torch.cat([rows[7].prompts, rollout.prompts[:7]]))
    assert torch.equal(turned.response_lengths[1:], rollout.response_lengths[:7])


def test_random_states_and_weights_stay(tmp_path: Path) -> None:
    subjects, spec = cases.subjects(tmp_path), cases.spec(tmp_path)
    model = subjects.actor.model
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(8)
    np.random.seed(8)
    before = rng_state()
    run_self_checks(subjects, cases.sampler(model), cases.PROMPTS, spec, tiny.ALONE)
    after = rng_state()
    assert torch.equal(before.pop("torch"), after.pop("torch"))
    assert before == after
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_rank_that_fails_fails_all(tmp_path: Path) -> None:
    cases.spec(tmp_path)
    (told, kept), (other, kept_there) = worlds.pair()(
        PROGRAM, "broken_on_one_rank", folder=tmp_path
    )
    assert told.message == other.message
    assert (told.exit_code, told.reason) == (70, Reason.SELF_CHECK_FAILED)
    assert "self-check logprob padding" in told.message
    assert "score" not in told.message
    assert kept
    assert kept_there


def test_one_short_prompt_is_enough(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rlhf_trainer.ppo.self_checks")
    subjects = cases.subjects(tmp_path)
    prompts = [Prompt(np.array([5], dtype=np.int32), "c")]
    run_self_checks(
        subjects, cases.sampler(subjects.actor.model), prompts, cases.spec(tmp_path), tiny.ALONE
    )
    (line,) = (each for each in caplog.messages if each.startswith("self-checks"))
    assert re.match(r"self-checks passed in \d+\.\d s: ratio \d\.\de[+-]\d\d, reference ", line)
