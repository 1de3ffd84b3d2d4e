"""`docs/models.md`, made from what `model_matrix` measures.

`make models` writes the page; tests/rlhf_trainer/models/test_matrix.py checks it.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import transformers
from model_matrix import CONFIGS, PARTS, Line, line

from rlhf_api.generated import write_or_check

PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"
_HEAD = """\
# Models

Made by `make models` from what was measured; the tests measure it again.

transformers' `AutoModelForCausalLM` and `AutoModelForSequenceClassification` load the models, never
with code of their own, from weights of 16 bits or more. An adapter, alone or beside weights, is
refused: merge it into its base. Data type, attention and outputs are the stage's own, whatever
config.json says of them. Where the table says "yes", small models of the architecture with weights
that all matter and windows shorter than the rows gave the numbers that transformers alone gives for
each row, within 2e-5 in FP32, on whichever side the rows were padded; SFT pads on the right alone:

- SFT: the loss on responses; packed: the same with several rows in a sequence, and what keeps them
  apart;
- reward model: the score of a prompt with its response, alone and packed as the stage packs pairs,
  made from a causal model of the architecture;
- PPO policy: sampled responses, and the log-probability of each token at a temperature, alone and
  packed as an update packs rows;
- PPO critic: the value before each token of a response.

"""
_TAIL = """
Other architectures are judged when a stage starts: a small copy of the model with random weights is
asked whether a token sees those after it, and whether rows that are packed, or in PPO stand behind
padding, have the logits that they have alone. Where one does not, or where no small copy computes,
the stage ends before any weights are read, with field and remedy; reward model and PPO alone pad
what they would have packed.

What is asked of packing is asked of a copy that computes attention as the stage does,
FlashAttention2 on the GPU that trains, where all rows of a micro-batch stand in one sequence
without padding. All else is asked of one with the stage's attention in SFT, and with Eager, which
is always there, in the other stages.
"""


def page(lines: Sequence[Line]) -> str:
    """The text of `docs/models.md`."""
    columns = ("attention", *PARTS)
    table = [f"| architecture | {' | '.join(columns)} |", f"|{'---|' * (len(columns) + 1)}"]
    notes: list[str] = []
    for each in lines:
        cells = []
        for column in columns:
            if column in each.cells:
                cells.append(each.cells[column])
                continue
            # The field that names the model differs from stage to stage.
            field, _, text = each.refusals[column].partition(": ")
            text = text if field.endswith("odel") else each.refusals[column]
            if text not in notes:
                notes.append(text)
            cells.append(f"refused ({notes.index(text) + 1})")
        table.append(f"| {each.name} | {' | '.join(cells)} |")
    heading = "\nA refusal ends the stage before training, with exit code 66 or 78, and says:\n"
    refusals = [f"{number}. {text}" for number, text in enumerate(notes, 1)]
    return _HEAD + "\n".join([*table, heading, *refusals, *_apart(lines)]) + "\n" + _TAIL


def _apart(lines: Sequence[Line]) -> list[str]:
    """What a policy needs that cannot be its own critic."""
    alone = [
        each.name for each in lines if "PPO policy" in each.cells and "PPO critic" in each.refusals
    ]
    if not alone:
        return []
    return [
        "",
        f"A PPO policy of {' or '.join(alone)} needs models of another family with the same",
        "tokenizer: `rewardModel`, of which the critic is made too, or, where functions and",
        "endpoints give all rewards, `criticModel`.",
    ]


def made() -> str:
    """The page as it is measured now."""
    return page([line(name) for name in CONFIGS])


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page, or tell whether it is stale."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return write_or_check("python -m model_page", {"models": (made, PAGE)}, arguments)


if __name__ == "__main__":
    sys.exit(main())
