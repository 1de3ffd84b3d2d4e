"""Sampling: what ends a response, how long it is, and from which distribution it is drawn."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import worlds
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerFast

from rlhf_trainer.models.heads import Actor
from rlhf_trainer.models.load import load_causal_model
from rlhf_trainer.ppo.rollout import Rollout
from rlhf_trainer.ppo.samplers import response_lengths
from rlhf_trainer.run.artifact import ModelLocation

PROGRAM = Path(__file__).parents[1] / "programs_engine" / "rollout_cases.py"
cases: Any = worlds.load(PROGRAM)

PAD, EOS = 0, 1
PROMPTS = [[3, 4, 5], [6], [7, 8, 9, 10, 11], [12, 13]]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tokenizer_folder(tmp_path_factory.mktemp("words") / "tokenizer")


class Biased(torch.nn.Module):
    """An output layer that adds to the logits of some tokens."""

    def __init__(self, layer: Any, added: dict[int, float]) -> None:
        super().__init__()
        self.layer = layer
        self.added = added
        self.weight = layer.weight

    def forward(self, hidden: Tensor) -> Tensor:
        logits = self.layer(hidden).clone()
        for token, value in self.added.items():
            logits[..., token] += value
        return logits


def model_with(words: Path, added: dict[int, float], architecture: str = "llama") -> Any:
    model: Any = tiny.causal_model(words, architecture)
    model.eval().set_output_embeddings(Biased(model.get_output_embeddings(), added))
    return model


# Where a response ends


def test_a_model_that_wants_to_end_gives_short_answers(words: Path) -> None:
    rollout = cases.sampler(model_with(words, {EOS: 30.0})).sample(PROMPTS)
    assert rollout.response_lengths.tolist() == [1, 1, 1, 1]
    assert rollout.responses.tolist() == [[EOS]] * 4
    assert rollout.ended.all()


def test_a_model_that_never_ends_is_cut_at_the_maximum(words: Path) -> None:
    rollout = cases.sampler(model_with(words, {EOS: -1e9}), max_response_length=5).sample(PROMPTS)
    assert rollout.response_lengths.tolist() == [5, 5, 5, 5]
    assert not rollout.ended.any()
    assert not (rollout.responses == EOS).any()


def test_lengths_count_up_to_the_first_stop_token_and_with_it(words: Path) -> None:
    rollout = cases.sampler(model_with(words, {}), stop_ids=(EOS, 9, 10)).sample(PROMPTS * 16)
    stops = {EOS, 9, 10}
    lengths = set()
    for at, (prompt, response) in enumerate(cases.parts(rollout)):
        assert prompt == PROMPTS[at % 4]
        lengths.add(len(response))
        assert not stops & set(response[:-1])
        ended = response[-1] in stops
        assert bool(rollout.ended[at]) == ended
        assert ended or len(response) == 8
        assert (rollout.responses[at, len(response) :] == PAD).all()
        assert (rollout.sampled_logprobs[at, len(response) :] == 0).all()
        assert (rollout.sampled_logprobs[at, : len(response)] < 0).all()
    assert len(lengths) > 4, "responses of one length prove nothing"
    assert rollout.ended.any()
    assert not rollout.ended.all()


@pytest.mark.parametrize(
    ("responses", "lengths", "ended"),
    [
        pytest.param([[5, 1, 0, 0]], [2], [True], id="EOS counted"),
        pytest.param([[5, 6, 7, 8]], [4], [False], id="cut off"),
        pytest.param([[1, 1, 5, 1]], [1], [True], id="first of several"),
        pytest.param([[5, 9, 1, 0]], [2], [True], id="a stop token before EOS"),
        pytest.param([[5, 0, 6, 1]], [4], [True], id="the pad id as a real token"),
        pytest.param([[0, 0, 0, 0]], [4], [False], id="nothing but the pad id"),
        pytest.param([[5, 6, 7, 1]], [4], [True], id="ended in the last column"),
    ],
)
def test_lengths_by_hand(responses: list[list[int]], lengths: list[int], ended: list[bool]) -> None:
    found = response_lengths(torch.tensor(responses), (1, 9))
    assert (found[0].tolist(), found[1].tolist()) == (lengths, ended)


def test_a_sampled_pad_id_is_a_token_like_any_other(words: Path) -> None:
    rollout = cases.sampler(model_with(words, {PAD: 3.0})).sample(PROMPTS * 8)
    inside = [response for _, response in cases.parts(rollout) if PAD in response[:-1]]
    assert inside, "the pad id was never sampled"
    for row, (_, response) in enumerate(cases.parts(rollout)):
        assert int(rollout.response_mask[row].sum()) == len(response)
        assert response[-1] == EOS or len(response) == 8
        *_, attention, positions = rollout.sequences
        real = int(rollout.prompt_lengths[row]) + len(response)
        assert int(attention[row].sum()) == real
        assert positions[row][attention[row].bool()].tolist() == list(range(real))


def test_rows_without_a_token_are_never_sampled(words: Path) -> None:
    """Sampler and actor alike: their log-probabilities are those of a softmax over the rest."""
    absent = (17, 18, 19, 20, 21)
    model = model_with(words, dict.fromkeys(absent, 3.0))
    rollout = cases.sampler(model, absent_ids=absent).sample(PROMPTS * 8)
    sampled = {token for _, response in cases.parts(rollout) for token in response}
    assert len(sampled) > 8
    assert not sampled & set(absent)
    free = cases.sampler(model).sample(PROMPTS * 8)
    assert {token for _, response in cases.parts(free) for token in response} & set(absent)

    with torch.no_grad():
        width = rollout.responses.shape[1]
        found = Actor(model, absent)(*rollout.sequences, width).logprobs
    mask = rollout.response_mask
    torch.testing.assert_close(rollout.sampled_logprobs[mask], found[mask], rtol=0, atol=1e-5)


def test_what_ended_an_answer_gives_way_to_another_token(words: Path) -> None:
    rollout = cases.sampler(model_with(words, {}), stop_ids=(EOS, 9, 10)).sample(PROMPTS * 16)

    changed = rollout.ended_by(12)

    for at, (_, response) in enumerate(cases.parts(rollout)):
        expected = [*response[:-1], 12] if rollout.ended[at] else response
        assert cases.parts(changed)[at][1] == expected
        assert (changed.responses[at, len(response) :] == PAD).all()
    assert not torch.equal(changed.responses, rollout.responses)


def test_an_eos_inside_a_prompt_ends_nothing(words: Path) -> None:
    rollout = cases.sampler(model_with(words, {EOS: -1e9})).sample([[3, EOS, 4], [EOS]])
    assert rollout.response_lengths.tolist() == [8, 8]
    assert cases.parts(rollout)[0][0] == [3, EOS, 4]


def test_sequences_put_prompt_and_response_together(words: Path) -> None:
    rollout = cases.sampler(model_with(words, {EOS: 1.5})).sample(PROMPTS)
    ids, attention, positions = rollout.sequences
    columns = torch.arange(ids.shape[1]).expand(ids.shape)
    ends, last = rollout.at_ends(ids).tolist(), rollout.at_ends(columns).tolist()
    for row, (prompt, response) in enumerate(cases.parts(rollout)):
        real = attention[row].bool()
        assert ids[row][real].tolist() == prompt + response
        assert positions[row][real].tolist() == list(range(len(prompt) + len(response)))
        assert last[row] == int(real.nonzero().max())
        assert ends[row] == response[-1]


# What is drawn


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_logprobs_are_those_of_the_training_engine(
    words: Path, architecture: str, temperature: float
) -> None:
    model = tiny.causal_model(words, architecture).eval()
    rollout = cases.sampler(model, temperature=temperature, wave=3).sample(PROMPTS)
    with torch.no_grad():
        engine = Actor(model)(*rollout.sequences, rollout.responses.shape[1], temperature).logprobs
    mask = rollout.response_mask
    torch.testing.assert_close(rollout.sampled_logprobs[mask], engine[mask], rtol=0, atol=1e-5)
    assert int(mask.sum()) > 12


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_tokens_are_drawn_from_the_softmax(tmp_path: Path, temperature: float) -> None:
    words = tiny.tokenizer_folder(tmp_path / "tokenizer", "abcde")
    model = tiny.causal_model(words).eval()
    count = 4000
    rollout = cases.sampler(
        model, temperature=temperature, max_response_length=1, wave=count
    ).sample([[3, 4]] * count)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[3, 4]])).logits[0, -1]
    expected = torch.softmax(logits / temperature, dim=-1) * count
    observed = torch.bincount(rollout.responses[:, 0], minlength=len(expected)).float()
    common = expected >= 5
    assert int(common.sum()) >= 4
    chi_square = float(((observed - expected).square() / expected)[common].sum())
    # 99.9 % of a chi-square distribution with 7 degrees of freedom lies below.
    assert chi_square < 24.3, (observed, expected)


@pytest.mark.parametrize("engine", cases.ENGINES)
def test_sampling_defaults_of_a_checkpoint_do_not_leak_in(
    tmp_path: Path, words: Path, engine: str
) -> None:
    folder = tiny.saved(tiny.causal_model(words), tmp_path / "model", words)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(words)

    def drawn() -> Rollout:
        model = load_causal_model(ModelLocation(str(folder)), tokenizer, tiny.FP32, "model")
        found: Rollout = cases.sampler(model.eval(), engine=engine).sample(PROMPTS * 4)
        return found

    plain = drawn()
    GenerationConfig(
        do_sample=True,
        repetition_penalty=1.3,
        top_k=5,
        top_p=0.5,
        min_new_tokens=6,
        no_repeat_ngram_size=1,
        suppress_tokens=[3, 4, 5],
        temperature=0.1,
    ).save_pretrained(folder)
    changed = drawn()
    assert torch.equal(plain.responses, changed.responses)
    assert torch.equal(plain.sampled_logprobs, changed.sampled_logprobs)


def test_padding_does_not_change_what_a_prompt_is_answered(words: Path) -> None:
    """Greedy in effect: at a temperature near 0 there is one answer."""
    for architecture in tiny.ARCHITECTURES:
        model = tiny.causal_model(words, architecture).eval()
        alone = [
            cases.parts(cases.sampler(model, temperature=1e-3).sample([prompt]))[0]
            for prompt in PROMPTS
        ]
        together = cases.parts(cases.sampler(model, temperature=1e-3).sample(PROMPTS))
        assert together == alone, architecture


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize(
    "changed", [{}, {"top_k": 5}, {"top_p": 0.6}, {"temperature": 2.0}], ids=str
)
def test_both_engines_draw_the_same_answers(
    words: Path, architecture: str, changed: dict[str, Any]
) -> None:
    model = tiny.causal_model(words, architecture).eval()
    found, expected = (
        cases.sampler(model, engine=engine, wave=3, stop_ids=(EOS, 9, 10), **changed).sample(
            PROMPTS * 4
        )
        for engine in cases.ENGINES
    )
    for name in ("prompts", "prompt_lengths", "responses", "response_lengths", "ended"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    torch.testing.assert_close(found.sampled_logprobs, expected.sampled_logprobs, rtol=0, atol=1e-5)
    assert len(set(found.response_lengths.tolist())) > 2


# Waves


def test_waves_are_joined_in_order_with_common_padding(words: Path) -> None:
    """Where every wave answers alike, how many there are does not show."""
    model = tiny.causal_model(words).eval()
    whole = cases.sampler(model, temperature=1e-3, wave=4).sample(PROMPTS)
    for wave in (1, 2, 3):
        waves = cases.sampler(model, temperature=1e-3, wave=wave).sample(PROMPTS)
        for name in ("prompts", "prompt_lengths", "responses", "response_lengths", "ended"):
            assert torch.equal(getattr(waves, name), getattr(whole, name)), (wave, name)
        torch.testing.assert_close(
            waves.sampled_logprobs, whole.sampled_logprobs, rtol=0, atol=1e-4
        )


def test_joined_rollouts_by_hand() -> None:
    def rollout(prompt: list[int], response: list[int], real: int) -> Rollout:
        logprobs = [-1.0 * (at < real) for at in range(len(response))]
        return Rollout(
            torch.tensor([prompt]),
            torch.tensor([len(prompt)]),
            torch.tensor([response]),
            torch.tensor([real]),
            torch.tensor([real < len(response)]),
            torch.tensor([logprobs]),
        )

    found = Rollout.cat([rollout([5], [6, 1, 2], 2), rollout([7, 8], [9], 1)], pad_id=2)
    assert found.prompts.tolist() == [[2, 5], [7, 8]]
    assert found.responses.tolist() == [[6, 1, 2], [9, 2, 2]]
    assert found.response_mask.tolist() == [[True, True, False], [True, False, False]]
    assert found.sampled_logprobs.tolist() == [[-1, -1, 0], [-1, 0, 0]]
    assert found.sequences[1].tolist() == [[0, 1, 1, 1, 0], [1, 1, 1, 0, 0]]
    assert found[1:2].prompts.tolist() == [[7, 8]]
    assert found[1:2].ended.tolist() == [False]


# Interrupted


@pytest.mark.parametrize("tokens", [20, 33, 64, 1000])
def test_parts_within_a_budget_hold_so_many_tokens(words: Path, tokens: int) -> None:
    rollout = _long_and_short(words)
    parts = rollout.within(tokens)
    assert all(part.sequences[0].numel() <= tokens for _, part in parts)
    assert len(parts) >= rollout.sequences[1].sum() / tokens
    _hold_every_row_once_and_no_column_of_padding(rollout, parts)


def _long_and_short(words: Path) -> Rollout:
    sampler = cases.sampler(model_with(words, {EOS: 2.0}), max_response_length=9)
    rollout: Rollout = sampler.sample(PROMPTS * 4)
    return rollout


def _hold_every_row_once_and_no_column_of_padding(
    rollout: Rollout, parts: list[tuple[torch.Tensor, Rollout]]
) -> None:
    whole = cases.parts(rollout)
    lengths: list[int] = []
    for rows, part in parts:
        assert cases.parts(part) == [whole[row] for row in rows.tolist()]
        assert part.prompts.shape[1] == part.prompt_lengths.max()
        assert part.responses.shape == part.sampled_logprobs.shape
        assert part.responses.shape[1] == part.response_lengths.max()
        assert torch.equal(part.ended, rollout.ended[rows])
        lengths += (part.prompt_lengths + part.response_lengths).tolist()
    assert lengths == sorted(lengths)
    assert len(set(lengths)) > 2
    assert sorted(torch.cat([rows for rows, _ in parts]).tolist()) == list(range(16))


@pytest.mark.parametrize("engine", cases.ENGINES)
def test_a_request_to_stop_ends_a_rollout_early(words: Path, engine: str) -> None:
    asked: list[int] = []

    def at_third() -> bool:
        asked.append(1)
        return len(asked) >= 3

    model = model_with(words, {EOS: -1e9})
    rollout = cases.sampler(model, at_third, engine, max_response_length=50).sample(PROMPTS)
    assert rollout.responses.shape[1] == 3


@pytest.mark.parametrize("engine", cases.ENGINES)
def test_a_request_to_stop_ends_the_waves_that_follow_too(words: Path, engine: str) -> None:
    asked: list[int] = []

    def always() -> bool:
        asked.append(1)
        return True

    model = model_with(words, {EOS: -1e9})
    rollout = cases.sampler(model, always, engine, max_response_length=50, wave=1).sample(PROMPTS)
    assert rollout.responses.shape[1] == 1
    assert len(asked) <= len(PROMPTS)


# Sharded


@pytest.mark.parametrize(
    ("engine", "whole"),
    [
        pytest.param("decoding", True, id="decoding, whole weights"),
        pytest.param("decoding", False, id="decoding, in step"),
        pytest.param("generate", True, id="generate, whole weights"),
    ],
)
def test_ranks_of_a_sharded_model_wait_for_each_other(
    tmp_path: Path, engine: str, whole: bool
) -> None:
    tiny.tokenizer_folder(tmp_path / "tokenizer")
    found = worlds.pair()(PROGRAM, "partitioned", folder=tmp_path, engine=engine, whole=whole)
    for told in found:
        assert told["engine"] < 1e-5
        assert told["plain"] < 1e-5
        assert told["again"]
        assert told["sharded"]
        assert told["norm"] > 0
    assert found[0]["width"] != found[1]["width"], "ranks that need equally long prove nothing"
