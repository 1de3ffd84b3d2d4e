"""The memory benchmark's arithmetic, and some of its cases."""

import json
from pathlib import Path

import memory
import pytest
from memory import MIB, Measured


def test_the_error_is_a_share_of_the_peak() -> None:
    assert Measured(90 * MIB, 100 * MIB).error == pytest.approx(-0.1)
    assert Measured(120 * MIB, 100 * MIB).error == pytest.approx(0.2)


def test_the_table_has_a_line_a_case() -> None:
    lines = memory.table({"one": Measured(90 * MIB, 100 * MIB)}).splitlines()
    assert lines[-1] == "| one | 90 MiB | 100 MiB | -10% |"


def test_memory_without_a_file_is_read(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("VmRSS:\t  90 kB\nRssAnon:\t  32 kB\nRssFile:\t  58 kB\n")
    assert memory.anonymous_bytes(status) == 32 * 1024
    assert memory.anonymous_bytes() > MIB


def test_a_case_runs_and_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"sft, BF16": Measured(100, 90), "ppo, BF16": Measured(100, 80)}
    monkeypatch.setattr(memory, "run_apart", lambda name, _: told[name])
    path = tmp_path / "memory.json"
    assert memory.main(["--cases", "sft, BF16", "--json", str(path)]) == 0
    assert json.loads(path.read_text())["sft, BF16"]["peak"] == 90
    assert memory.main(["--cases", *told, "--json", str(path)]) == 1


@pytest.mark.parametrize(("plain", "ended"), [(200, 0), (180, 0), (170, 1)])
def test_the_peak_is_a_share_of_the_plain_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: int, ended: int
) -> None:
    """With a vocabulary and inputs of its own; no more than half is the goal."""
    written: dict[str, int] = {}
    monkeypatch.setattr(memory, "write_inputs", lambda at, words: written.update({at.name: words}))
    peaks = {False: 90, True: plain}
    asked = []

    def run_apart(name: str, data: Path, *, plain: bool = False) -> Measured:
        asked.append((name, data.name, plain))
        return Measured(90, peaks[plain])

    monkeypatch.setattr(memory, "run_apart", run_apart)
    path = tmp_path / "memory.json"
    assert memory.main(["--cases", "sft, BF16", memory.WIDE, "--json", str(path)]) == ended
    assert json.loads(path.read_text())["peak_ratio"] == pytest.approx(90 / plain)
    assert written == {"usual": 8192, "wide": 151_936}
    assert asked == [
        ("sft, BF16", "usual", False),
        (memory.WIDE, "wide", False),
        (memory.WIDE, "wide", True),
    ]


@pytest.mark.parametrize(
    ("peaks", "runs", "peak"),
    [([100], 1, 100), ([80, 95], 2, 95), ([60, 80, 70, 100], 3, 80), ([200], 1, 200)],
)
def test_a_peak_that_seems_too_low_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peaks: list[int], runs: int, peak: int
) -> None:
    left = iter(peaks)
    monkeypatch.setattr(memory, "run_apart", lambda *_: Measured(100, next(left)))
    assert memory.highest("sft, BF16", tmp_path) == Measured(100, peak)
    assert len(list(left)) == len(peaks) - runs


@pytest.mark.parametrize("case", ["sft, BF16", "sft, BF16, GPT-2", "reward, BF16, ZeRO 2"])
def test_an_estimate_is_near_what_a_stage_takes(tmp_path: Path, case: str) -> None:
    """One of each formula for activations, and one that ZeRO shards."""
    memory.write_inputs(tmp_path)
    assert abs(memory.highest(case, tmp_path).error) <= memory.TOLERANCE
