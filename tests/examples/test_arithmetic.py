"""The arithmetic example: its reward, its data, and that its job is one."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import worlds
import yaml
from transformers import AutoTokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPT = EXAMPLES / "arithmetic.py"
reward: Any = worlds.load(EXAMPLES / "arithmetic_reward.py")


@pytest.mark.parametrize(
    ("prompt", "response", "score"),
    [
        ("17+5=", "22", 1.0),
        ("0+0=", "0", 1.0),
        ("59+59=", "118", 1.0),
        ("17+5=", "23", 0.0),
        ("17+5=", "022", 0.0),
        ("17+5=", "22+", 0.0),
        ("17+5=", "", 0.0),
    ],
)
def test_the_reward_is_1_for_the_sum_alone(prompt: str, response: str, score: float) -> None:
    assert reward.exact([prompt, "1+1="], [response, "2"]) == [score, 1.0]


def test_the_reward_refuses_what_is_no_sum() -> None:
    with pytest.raises(ValueError, match=r"'17-5=' is no sum"):
        reward.exact(["17-5="], ["12"])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arithmetic")
    command = [sys.executable, SCRIPT, "prepare", "--output", folder]
    subprocess.run(command, check=True, timeout=300)
    return folder


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def test_no_held_out_sum_is_trained_on(data: Path) -> None:
    held_out = {row["prompt"] for row in rows(data, "prompts-heldout")}
    assert len(held_out) == 200
    for name in ("sft", "prompts"):
        assert not held_out & {row["prompt"] for row in rows(data, name)}


def test_the_pupils_are_careless(data: Path) -> None:
    """A policy that has learned these rows perfectly is right in 40 % of the cases."""
    answers = rows(data, "sft")
    right = reward.exact(*zip(*((row["prompt"], row["response"]) for row in answers), strict=True))
    assert 0.38 < sum(right) / len(right) < 0.42


def test_every_row_is_within_the_lengths_of_the_job(data: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(data / "tokenizer")
    for row in rows(data, "sft"):
        for text, longest in ((row["prompt"], 6), (row["response"], 3)):
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.decode(ids) == text
            assert len(ids) <= longest
            assert tokenizer.unk_token_id not in ids


def test_the_job_is_one(data: Path) -> None:
    job = data / "job.yaml"
    (data / "arithmetic_reward.py").write_text((EXAMPLES / "arithmetic_reward.py").read_text())
    text = (EXAMPLES / "arithmetic.yaml").read_text()
    job.write_text(text.replace("file://data/arithmetic/", "file://"))
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_cli", "validate", job],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "Function" in text
    assert "rewardModel" not in text


def finished_run(
    folder: Path, right: dict[str, int], rows: int, seconds: float | None = 900.0
) -> Path:
    """What `judge` reads of a run, with so many right answers in each column."""
    (folder / "artifact").mkdir(parents=True)
    stages = {"ppo": {"artifact": {"uri": "artifact"}}}
    (folder / "status.yaml").write_text(yaml.safe_dump({"status": {"stages": stages}}))
    took = {} if seconds is None else {"secondsTotal": seconds}
    (folder / "summary.json").write_text(json.dumps({"job": "arithmetic"} | took))
    samples = [
        {"prompt": f"{at}+1="}
        | {column: str(at + 1) if at < count else "" for column, count in right.items()}
        for at in range(rows)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in samples)
    (folder / "artifact" / "evaluation_samples.jsonl").write_text(lines)
    return folder


@pytest.mark.parametrize(
    ("before", "after", "sentences"),
    [
        (10, 18, []),
        (0, 20, []),
        (11, 18, ["SFT ended with 55.0 % right answers, where 50 % is the most: "]),
        (10, 17, ["PPO ended with 85.0 % right answers, where 90 % is the least: "]),
        (11, 17, ["SFT ended with 55.0 %", "PPO ended with 85.0 %"]),
    ],
)
def test_the_judge_fails_a_run_that_does_not_learn(
    before: int, after: int, sentences: list[str], tmp_path: Path
) -> None:
    right = {"responseBefore": before, "responseAfter": after}
    run = finished_run(tmp_path / "run", right, rows=20)
    command = [sys.executable, SCRIPT, "judge", run]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == (1 if sentences else 0), done.stderr
    assert f"SFT {5 * before:.1f} %, PPO {5 * after:.1f} %" in done.stdout
    told = done.stderr.splitlines()
    assert [line.startswith(f"{run}: ") for line in told] == [True] * len(sentences)
    assert all(sentence in line for sentence, line in zip(sentences, told, strict=True))
    assert json.loads((run / "summary.json").read_text()) == {
        "job": "arithmetic",
        "secondsTotal": 900.0,
        "exactSft": before / 20,
        "exactPpo": after / 20,
    }


@pytest.mark.parametrize(
    ("seconds", "sentence"),
    [
        (906.0, "the run took 15.1 min, where 15 is the most on two cores"),
        (None, "summary.json has no secondsTotal: the time is not measured"),
    ],
)
def test_the_judge_fails_a_run_that_takes_too_long(
    seconds: float | None, sentence: str, tmp_path: Path
) -> None:
    right = {"responseBefore": 10, "responseAfter": 18}
    run = finished_run(tmp_path / "run", right, 20, seconds)
    command = [sys.executable, SCRIPT, "judge", run]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1, done.stderr
    (told,) = done.stderr.splitlines()
    assert told.startswith(f"{run}: {sentence}")


def test_the_judge_asks_for_a_finished_run(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, "judge", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "holds no finished ppo stage" in done.stderr
