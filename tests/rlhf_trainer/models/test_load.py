"""Models against transformers' own numbers: causal and scalar ones of every architecture."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from right_padding import pad_right
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
)

from rlhf_trainer.data.collate import Padded, pad_left
from rlhf_trainer.data.packing import block_causal_mask
from rlhf_trainer.models.engine import train
from rlhf_trainer.models.heads import Actor, Logits, ScalarModel, score_head, switch_off_dropout
from rlhf_trainer.models.load import (
    ModelSettings,
    load_causal_model,
    load_reward_base,
    load_reward_model,
    save_model,
)
from rlhf_trainer.rl import sft_loss
from rlhf_trainer.run.artifact import ModelLocation

every_architecture = pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
FIELD = "spec.stages.ppo.rewardModel"
EOS = 1


@pytest.fixture
def words(tmp_path: Path) -> Path:
    return tiny.tokenizer_folder(tmp_path / "tokenizer")


def sequences(seed: int = 1) -> list[list[int]]:
    """Texts of 3 to 9 tokens that end by EOS, one with EOS inside, one with the pad id inside."""
    draw = torch.Generator().manual_seed(seed)
    found = [
        [*torch.randint(3, 20, (length,), generator=draw).tolist(), EOS] for length in (2, 8, 5, 6)
    ]
    found[1][3] = EOS
    found[2][2] = 0
    return found


def plain_logprobs(model: Any, tokens: list[int], temperature: float = 1.0) -> Tensor:
    """Log-probability of each token but the first, of one sequence without any padding."""
    ids = torch.tensor([tokens])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0].float()
    logprobs = torch.log_softmax(logits / temperature, dim=-1)
    return torch.stack([logprobs[at, token] for at, token in enumerate(tokens[1:])])


# From nothing


@every_architecture
@pytest.mark.field("ScratchModel.layers", instead=1)
@pytest.mark.field("ScratchModel.hidden_size", instead=16)
@pytest.mark.field("ScratchModel.heads", instead=2)
@pytest.mark.field("ScratchModel.intermediate_size")
@pytest.mark.field("ScratchModel.max_positions")
@pytest.mark.field("ScratchModel.tie_embeddings")
def test_scratch_models_have_the_sizes_asked_for(words: Path, architecture: str) -> None:
    sizes = {"layers": 2, "hidden_size": 24, "heads": 4, "intermediate_size": 40}
    model: Any = tiny.causal_model(
        words, architecture, **sizes, max_positions=48, tie_embeddings=False
    )
    config = model.config
    vocabulary = len(tiny.tokenizer_of(words))
    assert config.model_type == architecture
    assert config.num_hidden_layers == 2
    assert config.hidden_size == 24
    assert config.num_attention_heads == 4
    assert config.vocab_size == vocabulary
    assert config.max_position_embeddings == 48
    assert (config.pad_token_id, config.eos_token_id, config.bos_token_id) == (0, EOS, None)
    shapes = {tuple(p.shape) for p in model.parameters()}
    assert {(24, 40), (40, 24)} & shapes, "the feed-forward layer is of another width"
    assert model.get_input_embeddings().weight.shape == (vocabulary, 24)
    assert model.get_input_embeddings().weight is not model.get_output_embeddings().weight
    tied: Any = tiny.causal_model(words, architecture, shaken=False)
    assert tied.get_input_embeddings().weight is tied.get_output_embeddings().weight


@pytest.mark.field("ScratchModel.key_value_heads")
def test_scratch_models_group_queries_where_the_architecture_can(words: Path) -> None:
    for architecture in ("llama", "qwen2", "qwen3"):
        model: Any = tiny.causal_model(words, architecture, heads=4, key_value_heads=2)
        attention = model.model.layers[0].self_attn
        assert attention.k_proj.weight.shape == (8, 16), architecture
        assert attention.q_proj.weight.shape == (16, 16), architecture


def test_scratch_weights_come_from_the_seed(words: Path) -> None:
    def weights(seed: int) -> Tensor:
        settings = ModelSettings(torch.float32, "sdpa", seed)
        model = tiny.causal_model(words, settings=settings, shaken=False)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    torch.rand(3)
    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@every_architecture
def test_scratch_models_train_and_come_back_from_disk(
    tmp_path: Path, words: Path, architecture: str
) -> None:
    spec = tiny.stage_spec("sft", tmp_path)
    model = train(
        Actor(tiny.causal_model(words, architecture)), spec, tiny.ranks(), learning_rate=1
    )
    batch = pad_right(sequences(), pad_id=0)
    width = batch.input_ids.shape[1] - 1
    mask = torch.arange(1, width + 1) < batch.lengths.unsqueeze(1)
    losses = []
    for _ in range(2):
        logprobs = model(*batch[:3], width).logprobs
        loss = sft_loss(logprobs, mask, float(mask.sum())).loss
        losses.append(float(loss.detach()))
        model.accumulate(loss, last=True)
        model.step(0.01)
    assert losses[1] < losses[0]

    trained: Any = model.module.eval()
    folder = tmp_path / "saved"
    save_model(trained.model, tiny.tokenizer_of(words), folder, [EOS, 7])
    again = AutoModelForCausalLM.from_pretrained(folder)
    for one, other in zip(
        again.state_dict().values(), trained.model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other)
    loaded = load_causal_model(
        ModelLocation(str(folder)), tiny.tokenizer_of(words), tiny.FP32, "model"
    )
    for row in sequences():
        expected = plain_logprobs(trained.model, row)
        torch.testing.assert_close(plain_logprobs(loaded, row), expected, rtol=0, atol=1e-6)


def test_a_saved_model_is_what_other_tools_expect(tmp_path: Path, words: Path) -> None:
    folder = tmp_path / "saved"
    save_model(tiny.causal_model(words), tiny.tokenizer_of(words), folder, [EOS, 7])
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json"} <= names
    generation = GenerationConfig.from_pretrained(folder)
    assert generation.eos_token_id == [EOS, 7]
    assert generation.pad_token_id == 0
    assert not generation.do_sample
    assert AutoTokenizer.from_pretrained(folder)("abc")["input_ids"] == [3, 4, 5]
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


# Log-probabilities


@every_architecture
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_the_plain_model_whatever_the_padding(
    words: Path, architecture: str, attention: str, temperature: float
) -> None:
    settings = ModelSettings(torch.float32, attention, seed=1)
    model = tiny.causal_model(words, architecture, settings).eval()
    actor = Actor(model)
    rows = sequences()
    expected = [plain_logprobs(model, row, temperature) for row in rows]
    longest = max(len(row) for row in rows)
    with torch.no_grad():
        for width in (longest, longest + 1, longest + 11):
            left = pad_left(rows, 0, width)
            right = pad_right(rows, 0, width)
            for pad_id in (0, 5):
                left_ids = torch.where(left.attention_mask.bool(), left.input_ids, pad_id)
                found = actor(left_ids, left.attention_mask, left.position_ids, 2, temperature)
                every = actor(
                    left_ids, left.attention_mask, left.position_ids, width - 1, temperature
                )
                after = actor(*right[:3], width - 1, temperature)
                for at, row in enumerate(rows):
                    close(found.logprobs[at], expected[at][-2:])
                    close(every.logprobs[at, -(len(row) - 1) :], expected[at])
                    close(after.logprobs[at, : len(row) - 1], expected[at])


@every_architecture
@pytest.mark.parametrize("logits", Logits)
def test_chosen_columns_have_the_logprobs_they_have_among_all(
    words: Path, architecture: str, logits: Logits
) -> None:
    model = tiny.causal_model(words, architecture).eval()
    batch = pad_right(sequences(), 0)[:3]
    columns = torch.tensor([[1, 3, 2], [2, 2, 1], [3, 1, 3], [1, 2, 1]])
    widths: list[int] = []
    width = batch[0].shape[1]
    every = Actor(model)(*batch, width - 1).logprobs
    chosen = tiny.in_chunks(Actor(model, logits=logits))
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda _, inputs, __: widths.append(inputs[0].shape[1]))
    found = chosen(*batch, columns).logprobs
    close(found, every.gather(1, columns - 1))
    assert widths == [width if logits is Logits.ALL else 3]
    gradients = [
        torch.autograd.grad(each.sum(), model.get_input_embeddings().weight)[0]
        for each in (found, every.gather(1, columns - 1))
    ]
    close(*gradients, atol=1e-4)


def close(found: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def test_positions_matter_where_they_are_learned(words: Path) -> None:
    """The test above would see positions that count padding."""
    for architecture in ("gpt2", "opt"):
        actor = Actor(tiny.causal_model(words, architecture).eval())
        batch = pad_left(sequences(), 0, 20)
        with torch.no_grad():
            right = actor(*batch[:3], 2).logprobs
            wrong = actor(*batch[:2], torch.arange(20).expand(4, -1), 2).logprobs
        assert float((right - wrong).abs().max()) > 0.01, architecture


def test_entropy_is_of_the_distribution_the_token_was_drawn_from(words: Path) -> None:
    model = tiny.causal_model(words).eval()
    row = sequences()[1]
    batch = pad_left([row], 0, 14)
    with torch.no_grad():
        found = Actor(model)(*batch[:3], 3, 0.7, entropy=True).entropy[0]
        logits = model(input_ids=torch.tensor([row])).logits[0, -4:-1] / 0.7
    close(found, torch.distributions.Categorical(logits=logits).entropy())


def test_entropy_leaves_the_actor_without_a_gradient_that_nobody_asked_for(words: Path) -> None:
    actor = Actor(tiny.causal_model(words))
    batch = pad_left([sequences()[1]], 0, 14)[:3]
    for learned in (False, True):
        found = actor(*batch, 3, entropy=True, entropy_gradient=learned)
        assert found.logprobs.requires_grad
        assert found.entropy.requires_grad is learned


@every_architecture
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_rows_in_one_sequence_do_not_see_each_other(
    words: Path, architecture: str, attention: str
) -> None:
    settings = ModelSettings(torch.float32, attention, seed=1)
    model = tiny.causal_model(words, architecture, settings).eval()
    rows = sequences()[:3]
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.tensor([[token for row in rows for token in row]])
    segments = torch.repeat_interleave(torch.arange(1, 4), lengths).unsqueeze(0)
    positions = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0)
    with torch.no_grad():
        mask = block_causal_mask(segments, torch.float32)
        packed = Actor(model)(ids, mask, positions, ids.shape[1] - 1).logprobs[0]
    start = 0
    for row in rows:
        close(packed[start : start + len(row) - 1], plain_logprobs(model, row))
        start += len(row)


# Scores


@every_architecture
def test_scores_are_those_that_other_tools_compute(
    tmp_path: Path, words: Path, architecture: str
) -> None:
    model = tiny.scalar_model(words, architecture)
    scalar = ScalarModel(model).eval()
    folder = tiny.saved(model, tmp_path / "saved", words)
    theirs = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    # Where the pad id is a real token, other tools have no way to know.
    rows = [row for row in sequences() if 0 not in row]
    left, right = pad_left(rows, 0, 14), pad_right(rows, 0, 14)
    with torch.no_grad():
        ours = last(scalar(*right[:3]), right)
        close(scalar(*left[:3])[:, -1], ours)
        for row, score in zip(rows, ours, strict=True):
            alone = theirs(input_ids=torch.tensor([row])).logits
            close(score, alone[0, 0])
        padded = theirs(input_ids=right.input_ids, attention_mask=right.attention_mask)
        close(padded.logits[:, 0], ours)
        positions = {"position_ids": left.position_ids} if architecture in ("gpt2", "opt") else {}
        padded = theirs(input_ids=left.input_ids, attention_mask=left.attention_mask, **positions)
        close(padded.logits[:, 0], ours)
    assert float(ours.std()) > 0.05, "scores that do not differ prove nothing"


def last(numbers: Tensor, batch: Padded) -> Tensor:
    return numbers.gather(1, (batch.lengths - 1).unsqueeze(1)).squeeze(1)


@every_architecture
def test_numbers_do_not_depend_on_padding_or_on_what_comes_after(
    words: Path, architecture: str
) -> None:
    scalar = ScalarModel(tiny.scalar_model(words, architecture)).eval()
    rows = sequences()
    with torch.no_grad():
        alone = [scalar(*pad_right([row], 0)[:3])[0] for row in rows]
        for width in (9, 20):
            for pad_id in (0, 6):
                right = scalar(*pad_right(rows, pad_id, width)[:3])
                left = scalar(*pad_left(rows, pad_id, width)[:3])
                for at, row in enumerate(rows):
                    close(right[at, : len(row)], alone[at])
                    close(left[at, -len(row) :], alone[at])
        longer = scalar(*pad_right([[*row, 9, 8] for row in rows], 0)[:3])
        for at, row in enumerate(rows):
            close(longer[at, : len(row)], alone[at])


def test_scores_of_bf16_models_are_fp32(words: Path) -> None:
    scalar = ScalarModel(tiny.scalar_model(words, settings=tiny.BF16))
    assert next(scalar.parameters()).dtype == torch.bfloat16
    assert scalar(*pad_right(sequences(), 0)[:3]).dtype == torch.float32


@every_architecture
def test_new_heads_are_drawn_as_huang_says_or_zero(
    tmp_path: Path, words: Path, architecture: str
) -> None:
    causal = tiny.causal_model(words, architecture, hidden_size=512, heads=4)
    folder = ModelLocation(str(tiny.saved(causal, tmp_path / "causal", words)))
    scratch = tiny.location(words, architecture, hidden_size=512, heads=4)
    for place in (folder, scratch):
        arguments = (place, tiny.tokenizer_of(words), tiny.FP32, FIELD)
        head = score_head(load_reward_base(*arguments)).weight
        assert head.shape == (1, 512)
        assert float(head.detach().std()) == pytest.approx(513**-0.5, rel=0.15)
        zero: Any = load_reward_base(*arguments, zero_head=True)
        assert not score_head(zero).weight.any()
        numbers = ScalarModel(zero)(*pad_right(sequences(), 0)[:3])
        assert not numbers.any()
    # What is below the head is the causal model's.
    base = load_reward_base(folder, tiny.tokenizer_of(words), tiny.FP32, FIELD)
    assert torch.equal(base.get_input_embeddings().weight, causal.get_input_embeddings().weight)


def test_a_head_that_is_there_stays(tmp_path: Path, words: Path) -> None:
    model = tiny.scalar_model(words)
    place = ModelLocation(str(tiny.saved(model, tmp_path / "reward", words)))
    arguments = (place, tiny.tokenizer_of(words), tiny.FP32, FIELD)
    for loaded in (
        load_reward_base(*arguments),
        load_reward_base(*arguments, zero_head=True),
        load_reward_model(*arguments),
    ):
        assert torch.equal(score_head(loaded).weight, score_head(model).weight)


def test_new_heads_come_from_the_seed(words: Path) -> None:
    def head(seed: int) -> Tensor:
        settings = ModelSettings(torch.float32, "sdpa", seed)
        return score_head(tiny.scalar_model(words, settings=settings, shaken=False)).weight

    assert torch.equal(head(1), head(1))
    assert not torch.equal(head(1), head(2))


# Dropout


@every_architecture
def test_without_dropout_training_and_evaluation_compute_the_same(
    tmp_path: Path, words: Path, architecture: str
) -> None:
    folder = tiny.saved(tiny.causal_model(words, architecture), tmp_path / "model", words)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    names = [name for name in config if "dropout" in name or name.endswith("_pdrop")]
    path.write_text(json.dumps(config | dict.fromkeys(names, 0.5)))
    place = ModelLocation(str(folder))
    for load, wrap in ((load_causal_model, Actor), (load_reward_base, ScalarModel)):
        model = wrap(load(place, tiny.tokenizer_of(words), tiny.FP32, "model"))
        batch = pad_right(sequences(), 0)
        arguments = (*batch[:3], 4) if wrap is Actor else batch[:3]

        def numbers(mode: bool, model: Any = model, arguments: Any = arguments) -> Tensor:
            found = model.train(mode)(*arguments)
            return found if isinstance(found, Tensor) else found.logprobs

        if architecture in ("gpt2", "opt"):
            assert not torch.equal(numbers(True), numbers(False)), "the checkpoint has no dropout"
        switch_off_dropout(model)
        assert torch.equal(numbers(True), numbers(False))
