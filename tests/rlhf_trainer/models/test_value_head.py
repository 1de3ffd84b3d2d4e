"""Heads that a critic starts with, and the shift that PopArt needs."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from right_padding import pad_right
from transformers import PreTrainedModel

from rlhf_trainer.models.heads import Critic, ScalarModel, initialize_value_head, score_head
from rlhf_trainer.models.load import ModelSettings


def model(folder: Path, settings: ModelSettings = tiny.FP32, **sizes: Any) -> PreTrainedModel:
    return tiny.scalar_model(
        tiny.tokenizer_folder(folder / "tokenizer"), "llama", settings, **sizes
    )


def test_keep_keeps_and_zero_makes_every_value_0(tmp_path: Path) -> None:
    found = model(tmp_path)
    before = score_head(found).weight.detach().clone()
    assert before.any()
    initialize_value_head(found, "Keep", seed=1)
    assert torch.equal(score_head(found).weight, before)
    initialize_value_head(found, "Zero", seed=1)
    assert not ScalarModel(found)(*pad_right([[3, 4], [5, 6, 7]], 0)[:3]).any()


@pytest.mark.parametrize("settings", [tiny.FP32, tiny.BF16])
def test_normal_has_a_variance_of_1_over_d_plus_1(tmp_path: Path, settings: ModelSettings) -> None:
    found = model(tmp_path, settings, hidden_size=1024, heads=4)
    weight = score_head(found).weight
    body = [p.detach().clone() for p in found.parameters() if p is not weight]

    def drawn(seed: int) -> torch.Tensor:
        initialize_value_head(found, "Normal", seed)
        return weight.detach().float().clone()

    first = drawn(5)
    assert float(first.std()) == pytest.approx(1025**-0.5, rel=0.1)
    assert float(first.mean()) == pytest.approx(0, abs=3 / 1024)
    torch.randn(7)
    assert not torch.equal(drawn(6), first)
    assert torch.equal(drawn(5), first), "the seed alone decides"
    others = [p for p in found.parameters() if p is not weight]
    assert all(torch.equal(one, other) for one, other in zip(body, others, strict=True))


@pytest.mark.parametrize("settings", [tiny.FP32, tiny.BF16])
def test_the_shift_is_added_to_every_value_and_learns(
    tmp_path: Path, settings: ModelSettings
) -> None:
    found = model(tmp_path, settings)
    batch = pad_right([[3, 4], [5, 6, 7]], 0)[:3]
    critic = Critic(found)
    plain = ScalarModel(found)(*batch)
    assert torch.equal(critic(*batch), plain), "it starts at 0"
    with torch.no_grad():
        critic.shift.fill_(2.5)
    values = critic(*batch)
    assert torch.equal(values, plain + 2.5)
    assert values.dtype == torch.float32
    assert critic.shift.dtype == settings.dtype
    values.sum().backward()
    assert float(critic.shift.grad) == values.numel()  # type: ignore[arg-type]


@pytest.mark.parametrize(("settings", "relative"), [(tiny.FP32, 0.0), (tiny.BF16, 2**-8)])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_scores_leave_the_head_in_fp32(
    tmp_path: Path, architecture: str, settings: ModelSettings, relative: float
) -> None:
    """What other tools get from the same model is theirs rounded to its precision."""
    words = tiny.tokenizer_folder(tmp_path / "tokenizer")
    found = tiny.scalar_model(words, architecture, settings).eval()
    batch = pad_right([[3, 4, 9], [5, 6, 7], [8, 8, 4]], 0)[:3]
    inputs = dict(zip(("input_ids", "attention_mask", "position_ids"), batch, strict=True))
    with torch.no_grad():
        theirs = found(**inputs).logits.squeeze(-1).float()
        ours = ScalarModel(found)(*batch)[:, -1]
        again = found(**inputs).logits.squeeze(-1)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=relative, atol=0)
    assert torch.equal(again, ours), "the model itself scores alike from now on"
    assert not torch.equal(ours.bfloat16().float(), ours), "a rounded score proves nothing"
