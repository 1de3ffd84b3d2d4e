"""Each architecture in each part, against transformers itself.

A part is either equal to transformers on the same rows, whichever side they are padded on (SFT pads
on the right alone), or refused before training; anything else fails here. `model_page` writes down
what came of it.
"""

import copy
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tiny
import torch
import zoo
from right_padding import pad_right
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    Gemma3TextConfig,
    PreTrainedConfig,
)

from rlhf_api.errors import UserError
from rlhf_trainer.data.collate import Padded, pad_left
from rlhf_trainer.data.packing import RowLayout, collate_packed
from rlhf_trainer.data.pairs import PairCollator
from rlhf_trainer.data.tokenize.tokenized import PreferencePair, SFTExample
from rlhf_trainer.generation.cache import selects_rows
from rlhf_trainer.generation.counter import RowSeeds
from rlhf_trainer.generation.sampling import Sampling
from rlhf_trainer.models.chosen_logits import fewest_logits
from rlhf_trainer.models.engine import train
from rlhf_trainer.models.heads import Actor, Critic, Logits, ScalarModel, switch_off_dropout
from rlhf_trainer.models.layouts import check_model, packed_or_padded, row_layout
from rlhf_trainer.models.load import (
    ATTENTION,
    ModelSettings,
    load_causal_model,
    load_reward_base,
    load_reward_model,
)
from rlhf_trainer.models.placed import PlacedModel
from rlhf_trainer.models.response_loss import response_loss
from rlhf_trainer.models.source import Base, open_base
from rlhf_trainer.ppo.experience import last_scores, response_statistics, response_values
from rlhf_trainer.ppo.rollout import Rollout
from rlhf_trainer.ppo.samplers import DecodingSampler, GenerateSampler, Policy
from rlhf_trainer.run.artifact import ModelLocation
from rlhf_trainer.stages.reward import score_pairs

WITHIN = 2e-5
"""Largest difference in nats, or in units of the score."""
TEMPERATURE = 0.7

CONFIGS: dict[str, PreTrainedConfig] = {
    **zoo.ARCHITECTURES,
    "Gemma 3 with use_bidirectional_attention": Gemma3TextConfig(
        **zoo.ARCHITECTURES["Gemma 3"].to_dict() | {"use_bidirectional_attention": True}
    ),
    "BERT without is_decoder": BertConfig(
        vocab_size=zoo.VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        pad_token_id=0,
    ),
}


_APART = {
    RowLayout.POSITIONS: "yes, by positions",
    RowLayout.BLOCK_MASK: "yes, by a mask",
}


@dataclass(frozen=True)
class Line:
    """What came of one architecture: for each column what the page says, or the refusal."""

    name: str
    cells: dict[str, str]
    refusals: dict[str, str]


@dataclass(frozen=True)
class Subject:
    """One architecture on disk, and how a stage would load it.

    Attributes:
        folder: holds the causal model and its tokenizer.
        base: the same as a stage opens it.
        settings: how it is loaded.
        plain: transformers' own model of the folder.
    """

    folder: Path
    base: Base
    settings: ModelSettings
    plain: Any

    def named(self, field: str) -> "Subject":
        """The same as another field of a job names it."""
        return replace(self, base=replace(self.base, field=field))


@lru_cache
def line(name: str) -> Line:
    """Prove one architecture in every part.

    Raises AssertionError where numbers differ from those of transformers.
    """
    cells: dict[str, str] = {}
    refusals: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = _written(CONFIGS[name], Path(folder))
        offered = [each for each in ("SDPA", "Eager") if each == "Eager" or model._supports_sdpa]
        cells["attention"] = ", ".join(offered)
        for attention in offered:
            try:
                subject = _subject(Path(folder), attention)
            except UserError as error:
                # A model that cannot be opened is of no use anywhere.
                refusals |= dict.fromkeys(PARTS, str(error).replace(folder, "..."))
                continue
            for part, (field, prove) in PARTS.items():
                try:
                    told, text = cells, prove(subject.named(field))
                except UserError as error:
                    told, text = refusals, str(error)
                assert told.setdefault(part, text) == text, (name, part, attention)
    assert not cells.keys() & refusals.keys(), name
    return Line(name, cells, refusals)


def _written(config: PreTrainedConfig, folder: Path) -> Any:
    words = tiny.tokenizer_folder(folder / "tokenizer")
    torch.manual_seed(1)
    model: Any = AutoModelForCausalLM.from_config(
        copy.deepcopy(config), dtype=torch.float32, attn_implementation="eager"
    )
    tiny.saved(tiny.shake(model), folder / "causal", words)
    return model


def _subject(folder: Path, attention: str) -> Subject:
    place = folder / "causal"
    config = tiny.stage_config("sft", folder, model=tiny.file_source(place))
    assert config.sft is not None
    name = ATTENTION[attention]
    return Subject(
        folder,
        open_base(config.sft.model, config, tiny.ALONE, "spec.stages.sft.model"),
        ModelSettings(torch.float32, name, seed=1),
        AutoModelForCausalLM.from_pretrained(place, attn_implementation=name).eval(),
    )


# Rows


def rows() -> list[SFTExample]:
    """Of 5 to 17 tokens with EOS, of which 2 to 9 count; without the id of the padding."""
    draw = np.random.default_rng(3)
    found = []
    for prompt, response in ((3, 9), (8, 2), (2, 3), (9, 8), (5, 5)):
        tokens = draw.integers(3, zoo.VOCABULARY, prompt + response).astype(np.int32)
        tokens[-1] = 1
        found.append(SFTExample(tokens, np.arange(prompt + response) >= prompt))
    return found


def ids(row: SFTExample) -> list[int]:
    return [int(token) for token in row.tokens]


def both_sides() -> list[Padded]:
    """The rows, padded on the left and on the right, more than they need."""
    tokens = [ids(row) for row in rows()]
    width = max(len(row) for row in tokens) + 5
    return [pad_left(tokens, 0, width), pad_right(tokens, 0, width)]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.float(), expected.float(), rtol=0, atol=WITHIN)


# Parts


@torch.no_grad()
def padded_loss(subject: Subject) -> str:
    """The loss of SFT without packing."""
    _same_loss(subject, packing=False)
    return "yes"


@torch.no_grad()
def packed_loss(subject: Subject) -> str:
    """The loss of SFT with packing, and what keeps rows apart."""
    return _APART[_same_loss(subject, packing=True)]


def _same_loss(subject: Subject, *, packing: bool) -> RowLayout:
    base, cpu = subject.base, torch.device("cpu")
    layout = row_layout(base, subject.settings, cpu, "spec.stages.sft.packing", packing=packing)
    model = load_causal_model(base.location, base.tokenizer, subject.settings, base.field)
    switch_off_dropout(model)
    spec = tiny.stage_spec("sft", subject.folder)
    logits = fewest_logits(base, subject.settings)
    assert logits is not Logits.ALL, "logits of prompts are computed too"
    actor = train(Actor(model, logits=logits), spec, tiny.ranks(), learning_rate=1.0)
    groups = [rows()[:3], rows()[3:]] if packing else [[row] for row in rows()]
    batch = collate_packed(groups, 0, layout)
    found = response_loss(actor, batch, layout, 1, tiny.ranks()).nll_sum
    expected = torch.zeros(())
    for row in rows():
        tokens = torch.tensor([ids(row)])
        labels = torch.where(torch.from_numpy(row.response_mask), tokens, -100)
        expected += row.response_mask.sum() * subject.plain(input_ids=tokens, labels=labels).loss
    count = sum(int(row.response_mask.sum()) for row in rows())
    close(found / count, expected / count)
    return layout


@torch.no_grad()
def scores(subject: Subject) -> str:
    """The score of a reward model that the stage made, as it is trained and as PPO asks it."""
    place, theirs = _reward_model(subject)
    base = subject.base
    model = ScalarModel(load_reward_model(place, base.tokenizer, subject.settings, base.field))
    expected = torch.cat([theirs(input_ids=torch.tensor([ids(row)])).logits[0] for row in rows()])
    for batch in both_sides():
        last = batch.attention_mask * torch.arange(batch.input_ids.shape[1])
        numbers = model.eval()(*batch[:3])
        close(numbers.gather(1, last.argmax(dim=1, keepdim=True))[:, 0], expected)
    close(last_scores(model, _as_rollout()), expected)
    placed = PlacedModel(model, model, zero_stage=0)
    layout = packed_or_padded(base, subject.settings, tiny.ALONE.device)
    answers = [row.tokens for row in rows()]
    pairs = [PreferencePair(*both, None) for both in pairwise(answers)]
    chosen, rejected = score_pairs(placed, PairCollator(0, layout)(pairs), tiny.ALONE)
    close(chosen, expected[:-1])
    close(rejected, expected[1:])
    return "yes"


@torch.no_grad()
def logprobs(subject: Subject) -> str:
    """Sampled answers, and the log-probabilities of their tokens and of given ones."""
    base = subject.base
    check_model(base, subject.settings, left_padding=True)
    model = load_causal_model(base.location, base.tokenizer, subject.settings, base.field).eval()
    actor = Actor(model)
    for batch in both_sides():
        found = actor(*batch[:3], batch.input_ids.shape[1] - 1, TEMPERATURE).logprobs
        for at, row in enumerate(rows()):
            real = batch.attention_mask[at, 1:].bool() & batch.attention_mask[at, :-1].bool()
            close(found[at][real], _plain_logprobs(subject, ids(row)))
    sampling = Sampling(6, TEMPERATURE, stop_ids=(1,), pad_id=0, wave=3)
    sampler = DecodingSampler if selects_rows(model) else GenerateSampler
    rollout = sampler(Policy(model, tiny.ALONE), sampling).sample(
        [ids(row)[:-1] for row in rows()], RowSeeds(2, range(len(rows())))
    )
    found = response_statistics(actor, rollout, TEMPERATURE).logprobs
    layout = packed_or_padded(base, subject.settings, tiny.ALONE.device)
    if layout is not RowLayout.PADDED:
        ((order, packed),) = rollout.within(1000, layout)
        same = response_statistics(actor, packed, TEMPERATURE).logprobs
        close(same[packed.response_mask], found[order][packed.response_mask])
    for at in range(len(rows())):
        prompt = rollout.prompts[at, -int(rollout.prompt_lengths[at]) :]
        response = rollout.responses[at, : int(rollout.response_lengths[at])]
        expected = _plain_logprobs(subject, torch.cat([prompt, response]).tolist())[
            -len(response) :
        ]
        close(found[at, : len(response)], expected)
        close(rollout.sampled_logprobs[at, : len(response)], expected)
    return "yes"


@torch.no_grad()
def values(subject: Subject) -> str:
    """A critic's values: each is the score of the text so far."""
    base = subject.base
    check_model(base, subject.settings, left_padding=True)
    place, theirs = _reward_model(subject)
    critic = Critic(load_reward_base(place, base.tokenizer, subject.settings, base.field)).eval()
    expected = []
    for row in rows():
        texts = pad_right([ids(row)[:end] for end in range(1, len(row.tokens) + 1)], 0)
        scored = theirs(input_ids=texts.input_ids, attention_mask=texts.attention_mask)
        expected.append(scored.logits[:, 0])
    for batch in both_sides():
        numbers = critic(*batch[:3])
        for at, each in enumerate(expected):
            close(numbers[at][batch.attention_mask[at].bool()], each)
    rollout = _as_rollout()
    found = response_values(critic, rollout)
    for at, row in enumerate(rows()):
        # The value before each token of the response.
        prompt = int((~row.response_mask).sum())
        close(found[at, : int(rollout.response_lengths[at])], expected[at][prompt - 1 : -1])
    assert torch.cat(expected).std() > 0.05, "values that do not differ prove nothing"
    return "yes"


def _as_rollout() -> Rollout:
    """The rows as PPO has them: prompts padded on the left, responses on the right."""
    prompts = pad_left([ids(row)[: -int(row.response_mask.sum())] for row in rows()], 0)
    responses = pad_right([ids(row)[-int(row.response_mask.sum()) :] for row in rows()], 0)
    return Rollout(
        prompts.input_ids,
        prompts.lengths,
        responses.input_ids,
        responses.lengths,
        torch.ones(len(rows()), dtype=torch.bool),
        torch.zeros(responses.input_ids.shape),
    )


def _reward_model(subject: Subject) -> tuple[ModelLocation, Any]:
    """A reward model made from the causal model, as a folder and as transformers loads it."""
    folder = subject.folder / "reward"
    base = subject.base
    if not folder.exists():
        model = load_reward_base(base.location, base.tokenizer, subject.settings, base.field)
        tiny.saved(model, folder, subject.folder / "tokenizer")
    theirs = AutoModelForSequenceClassification.from_pretrained(
        folder, attn_implementation=subject.settings.attention
    )
    return ModelLocation(str(folder)), theirs.eval()


def _plain_logprobs(subject: Subject, tokens: Sequence[int]) -> Tensor:
    """Float[time - 1]: of each token but the first, of one row without padding."""
    given = torch.tensor([list(tokens)])
    logits = subject.plain(input_ids=given).logits[0, :-1]
    log_softmax = torch.log_softmax(logits / TEMPERATURE, dim=-1)
    return log_softmax.gather(1, given[0, 1:, None])[:, 0]


PARTS: dict[str, tuple[str, Callable[[Subject], str]]] = {
    "SFT": ("spec.stages.sft.model", padded_loss),
    "packed": ("spec.stages.sft.model", packed_loss),
    "reward model": ("spec.stages.reward.model", scores),
    "PPO policy": ("spec.stages.ppo.model", logprobs),
    "PPO critic": ("spec.stages.ppo.criticModel", values),
}
"""What is proved, and the field that names the model there."""
