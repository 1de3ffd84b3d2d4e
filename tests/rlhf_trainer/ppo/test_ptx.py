"""The loss on other texts has the gradient of supervised fine-tuning, times its weight."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import worlds
from right_padding import pad_right

from rlhf_api.errors import DataError
from rlhf_api.v1alpha1 import Dataset, PPOStage
from rlhf_trainer.data.packing import RowLayout
from rlhf_trainer.data.tokenize.tokenized import SFTExample
from rlhf_trainer.models.source import open_base
from rlhf_trainer.ppo.ptx import PTX
from rlhf_trainer.run.inputs import Inputs
from rlhf_trainer.run.report import Reporter

PROGRAM = Path(__file__).parents[1] / "programs_engine" / "actor_cases.py"
cases: Any = worlds.load(PROGRAM)
COEF = 27.8


def examples() -> list[SFTExample]:
    """Rows of 4 to 18 tokens, with 1 to 12 that count, so that a mean of means is far off."""
    draw = np.random.default_rng(5)
    found = []
    for length, counted in ((18, 12), (4, 1), (9, 7), (5, 2)):
        mask = np.zeros(length, dtype=np.bool_)
        mask[-counted:] = True
        found.append(SFTExample(draw.integers(3, 20, size=length).astype(np.int32), mask))
    return found


def by_hand(folder: Path, rows: list[SFTExample]) -> tuple[dict[str, torch.Tensor], float]:
    """Row by row, without padding: gradient of the mean loss over all counted tokens, and it."""
    model = cases.plain(folder)
    tokens = sum(int(row.response_mask.sum()) for row in rows)
    total = torch.zeros(())
    for row in rows:
        batch = pad_right([row.tokens], pad_id=0)
        width = len(row.tokens) - 1
        logprobs = model(*batch[:3], width).logprobs[0]
        total = total - logprobs[torch.from_numpy(row.response_mask[1:])].sum() / tokens
    total.backward()
    gradients = {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return gradients, float(total.detach())


@pytest.mark.parametrize("layout", [RowLayout.PADDED, RowLayout.POSITIONS])
@pytest.mark.parametrize("tokens", [18, 27, 72])
@pytest.mark.parametrize("world_size", [1, 2])
def test_the_gradient_is_that_of_fine_tuning_times_the_weight(
    tmp_path: Path, world_size: int, tokens: int, layout: RowLayout
) -> None:
    gradients, loss = by_hand(tmp_path, examples())
    arguments = {
        "folder": tmp_path,
        "examples": examples(),
        "coef": COEF,
        "tokens": tokens,
        "layout": layout,
    }
    found = (
        [cases.ptx_gradients(tiny.ranks(), **arguments)]
        if world_size == 1
        else worlds.pair()(PROGRAM, "ptx_gradients", **arguments)
    )
    for mixed, told in found:
        assert told == {"ptx_loss": pytest.approx(loss, rel=1e-5)}
        assert mixed.keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(mixed[name], COEF * gradient, rtol=1e-4, atol=1e-4)
        assert max(float(gradient.abs().max()) for gradient in gradients.values()) > 0.1


@pytest.mark.parametrize(
    ("layout", "tokens", "shapes"),
    [
        # Rows of 4, 5, 9 and 18 tokens: the three shorter ones are as long as the longest, and
        # the two shortest as the third.
        (RowLayout.PADDED, 72, [(4, 18)]),
        (RowLayout.POSITIONS, 72, [(2, 18)]),
        (RowLayout.POSITIONS, 18, [(1, 18), (2, 9)]),
        (RowLayout.ONE_SEQUENCE, 72, [(1, 36)]),
    ],
)
def test_rows_share_sequences_where_they_are_packed(
    layout: RowLayout, tokens: int, shapes: list[tuple[int, int]]
) -> None:
    texts = cases.ptx(tiny.ALONE, examples(), COEF, rows=4, tokens=tokens)
    batches = [texts._collated(part, layout) for part in texts._passes(range(4), layout)]
    assert [tuple(batch.input_ids.shape) for batch in batches] == shapes
    counted = [int(batch.response_mask.sum()) for batch in batches]
    assert sum(counted) == sum(int(row.response_mask.sum()) for row in examples())


def test_batches_go_on_where_they_were_kept() -> None:
    texts, again = (cases.ptx(tiny.ALONE, examples(), COEF, rows=3, tokens=36) for _ in range(2))
    first = [texts.cursor.next_batch() for _ in range(2)]
    again.load({})
    assert [again.cursor.next_batch() for _ in range(2)] == first
    again.cursor.next_batch()
    again.load(texts.to_document())
    assert again.cursor.next_batch() == texts.cursor.next_batch()


def test_nothing_is_told_of_no_steps() -> None:
    assert cases.ptx(tiny.ALONE, examples(), COEF, rows=3, tokens=36).metrics() == {}


def spec_with(tmp_path: Path, rows: list[dict[str, str]], **changed: Any) -> Any:
    path = tiny.write_rows(tmp_path / "texts.jsonl", rows)
    dataset = Dataset(uri=f"file://{path}")
    return tiny.stage_config("ppo", tmp_path, ptx_dataset=dataset, **changed)


def read(config: Any) -> PTX | None:
    spec = config.ppo
    assert isinstance(spec, PPOStage)
    base = open_base(spec.model, config, tiny.ranks(), "spec.stages.ppo.model")
    with Reporter(config, tiny.ranks()) as reporter:
        return PTX.read(spec, base, Inputs(config, tiny.ranks(), reporter))


def test_rows_are_those_of_fine_tuning(tmp_path: Path) -> None:
    rows = [{"prompt": "abc", "response": "de"}, {"prompt": "a", "response": "b" * 30}]
    texts = read(spec_with(tmp_path, rows, minibatch_size=2))
    assert texts is not None
    # 8 tokens of prompt and 8 of response are the longest sequence of the stage.
    assert (len(texts.examples), texts.longest, texts.cursor.batch_size) == (1, 6, 2)
    assert texts.coef == COEF
    (example,) = texts.examples
    assert example.response_mask.tolist() == [False] * 3 + [True] * 3


def test_without_texts_there_is_none(tmp_path: Path) -> None:
    assert read(tiny.stage_config("ppo", tmp_path)) is None


def test_where_nothing_fits_the_fields_are_named(tmp_path: Path) -> None:
    config = spec_with(tmp_path, [{"prompt": "abc", "response": "d" * 30}])
    with pytest.raises(DataError, match=r"raise spec\.stages\.ppo\.maxPromptLength or maxResp"):
        read(config)
