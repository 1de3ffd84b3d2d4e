"""The demo's data: held-out rows are really held out, and the tokenizer reads what is written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

SCRIPT = Path(__file__).parents[2] / "examples" / "zh_reviews.py"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    subprocess.run([sys.executable, SCRIPT, "prepare", "--output", folder], check=True, timeout=300)
    return folder


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    lines = (folder / f"{name}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_no_stage_trains_on_what_is_held_out(data: Path) -> None:
    trained = {row["prompt"] + row["response"] for row in rows(data, "sft")}
    held_out = {row["prompt"] + row["response"] for row in rows(data, "sft-heldout")}
    assert held_out
    assert not trained & held_out

    endings = {row[side] for row in rows(data, "preferences") for side in ("chosen", "rejected")}
    held_out_endings = [
        row[side] for row in rows(data, "preferences-heldout") for side in ("chosen", "rejected")
    ]
    texts = {text[4:] for text in held_out}
    assert set(held_out_endings) <= texts
    # Two reviews may end alike behind different beginnings.
    assert sum(ending in endings for ending in held_out_endings) <= 0.01 * len(held_out_endings)


def test_no_held_out_prompt_is_trained_on(data: Path) -> None:
    held_out = [row["prompt"] for row in rows(data, "prompts-heldout")]
    assert len(held_out) == len(set(held_out)) == 200
    assert not {row["prompt"] for row in rows(data, "prompts")} & set(held_out)


def test_the_tokenizer_gives_common_text_back(data: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(data / "tokenizer")
    text = "这本书很好，推荐购买！"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
