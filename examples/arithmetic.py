"""The arithmetic example: sums with careless answers to start from, and the share of right ones.

    python examples/arithmetic.py prepare           # writes examples/data/arithmetic/
    python examples/arithmetic.py judge runs/arithmetic

`prepare` writes all sums of two numbers from 10 to 59. The rows for SFT hold careless answers,
right in 40 % of the cases and else off by a little or a ten; what learns from them is right about
as often. PPO sees the prompts alone, and its reward is `arithmetic_reward.exact`.
The sums of the held-out prompts stand in no row of training. Tokens are characters.

`judge` prints, and adds to the run's summary.json, the share of right answers to the held-out
prompts, before and after PPO. Exit code 1: SFT ended with more than half of them right, PPO ended
with less than 90 %, or the run took more than 15 minutes from its start to its end.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from arithmetic_reward import exact

DATA = Path(__file__).parent / "data" / "arithmetic"
NUMBERS = range(10, 60)
HELD_OUT = 200
PUPILS = 8
"""Rows for SFT of each sum, each answered anew."""
RIGHT = 0.4
ERRORS = (-10, -2, -1, 1, 2, 10)
MOST_AFTER_SFT = 0.5
LEAST_AFTER_PPO = 0.9
MOST_MINUTES = 15.0
"""On two CPU cores."""
SEED = 20260101

Sum = tuple[int, int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the two commands; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    prepare_command = commands.add_parser("prepare", help="write data and tokenizer")
    prepare_command.add_argument("--output", type=Path, default=DATA)
    judge_command = commands.add_parser("judge", help="count the right answers of a finished run")
    judge_command.add_argument("run", type=Path, help="folder of the run, such as runs/arithmetic")
    options = parser.parse_args(arguments)
    if options.command == "prepare":
        prepare(options.output)
        return 0
    missed = missed_goals(*judge(options.run))
    sys.stderr.writelines(f"{options.run}: {sentence}\n" for sentence in missed)
    return 1 if missed else 0


def prepare(output: Path) -> None:
    """Write `sft`, `prompts` and `prompts-heldout`, and `tokenizer/`."""
    if (output / "tokenizer" / "tokenizer.json").exists():
        sys.stdout.write(f"{output} is there already\n")
        return
    generator = random.Random(SEED)
    sums = [(one, two) for one in NUMBERS for two in NUMBERS]
    generator.shuffle(sums)
    held_out, seen = sums[:HELD_OUT], sums[HELD_OUT:]
    files = {
        "sft": list(careless_rows(seen, generator)),
        "prompts": [{"prompt": prompt_of(each)} for each in seen],
        "prompts-heldout": [{"prompt": prompt_of(each)} for each in held_out],
    }
    output.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (output / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        sys.stdout.write(f"{output / name}.jsonl: {len(rows)} rows\n")
    save_tokenizer(output / "tokenizer")


def prompt_of(numbers: Sum) -> str:
    """What the policy is asked, such as `17+25=`."""
    return f"{numbers[0]}+{numbers[1]}="


def careless_rows(sums: Sequence[Sum], generator: random.Random) -> Iterator[dict[str, str]]:
    """Each sum `PUPILS` times with an answer that is right with probability `RIGHT`."""
    for numbers in sums:
        for _ in range(PUPILS):
            error = 0 if generator.random() < RIGHT else generator.choice(ERRORS)
            yield {"prompt": prompt_of(numbers), "response": str(sum(numbers) + error)}


def save_tokenizer(folder: Path) -> None:
    """A tokenizer whose tokens are the digits, + and =."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = ["<pad>", "<eos>", "<unk>", *"0123456789+="]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)


def judge(run: Path) -> tuple[float, float, float | None]:
    """Add `exactSft` and `exactPpo` to the run's summary.json and print both.

    Returns both, and the minutes that the run took; None where its summary does not say.
    """
    from rlhf_api.errors import ConfigError
    from rlhf_api.loading import read_yaml

    try:
        status = read_yaml(run / "status.yaml")[0]["status"]
        samples = run / status["stages"]["ppo"]["artifact"]["uri"] / "evaluation_samples.jsonl"
    except (ConfigError, KeyError):
        sys.exit(f"{run}: holds no finished ppo stage; run the job to its end first")
    rows = [json.loads(line) for line in samples.read_text("utf-8").splitlines()]

    def share_of_right(column: str) -> float:
        right = exact([row["prompt"] for row in rows], [row[column] for row in rows])
        return sum(right) / len(rows)

    summary_file = run / "summary.json"
    summary = json.loads(summary_file.read_text("utf-8"))
    summary["exactSft"] = share_of_right("responseBefore")
    summary["exactPpo"] = share_of_right("responseAfter")
    summary_file.write_text(json.dumps(summary, indent=2) + "\n", "utf-8")
    sys.stdout.write(
        f"right answers to {len(rows)} held-out sums: SFT {100 * summary['exactSft']:.1f} %, "
        f"PPO {100 * summary['exactPpo']:.1f} %\n"
    )
    seconds = summary.get("secondsTotal")
    return summary["exactSft"], summary["exactPpo"], None if seconds is None else seconds / 60


def missed_goals(sft: float, ppo: float, minutes: float | None) -> list[str]:
    """What the run was to show and did not, each in a sentence, from the shares of right answers
    and the minutes that it took.

    A policy that is good to begin with would show nothing of what PPO does.
    """
    sentences = []
    if sft > MOST_AFTER_SFT:
        sentences.append(
            f"SFT ended with {100 * sft:.1f} % right answers, where {100 * MOST_AFTER_SFT:g} % is "
            "the most: lower RIGHT, prepare anew in another folder and run again"
        )
    if ppo < LEAST_AFTER_PPO:
        sentences.append(
            f"PPO ended with {100 * ppo:.1f} % right answers, where {100 * LEAST_AFTER_PPO:g} % is "
            "the least: look at reward and kl in the ppo stage's events.jsonl, and raise maxSteps"
        )
    if minutes is None:
        sentences.append(
            "summary.json has no secondsTotal: the time is not measured; run the job to its end"
        )
    elif minutes > MOST_MINUTES:
        sentences.append(
            f"the run took {minutes:.1f} min, where {MOST_MINUTES:g} is the most on two cores, "
            "pauses between attempts included: leave them to it, or run anew without a pause"
        )
    return sentences


if __name__ == "__main__":
    sys.exit(main())
