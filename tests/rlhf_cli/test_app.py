"""The command line: what it prints where, and what it leaves with."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import pytest

from rlhf_cli import app
from rlhf_cli.workdir import Workdir

Rlhf = Callable[..., int]


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.fixture
def rlhf(monkeypatch: pytest.MonkeyPatch) -> Rlhf:
    def call(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["rlhf", *map(str, arguments)])
        return app.main()

    return call


def test_validate_says_what_is_in_the_job(
    bench: Any, rlhf: Rlhf, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.write(("sft", "reward", "ppo"), template={"nodes": 2})
    assert rlhf("validate", bench.file) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[0].endswith("RLHFJob reviews is valid")
    stages, rows = shown.out.splitlines()[1:4], shown.out.splitlines()[4:]
    assert [line.split(":")[0].strip() for line in stages] == ["sft", "reward", "ppo"]
    assert rows == [f"  {name}.dataset: 1 rows" for name in ("sft", "reward", "ppo")]
    assert "spec.storage is not set" in shown.err
    assert "nodes is 2" in shown.err
    assert not bench.root.exists()


@pytest.mark.parametrize(
    ("spec", "code", "reason"),
    [
        ({"stages": {}}, 78, "at least one of sft, reward and ppo"),
        ({"sead": 1}, 78, "spec.sead: is unknown"),
        (
            {
                "stages": {
                    "sft": {"model": {"uri": "file://no"}, "dataset": {"uri": "hf://org/rows"}}
                }
            },
            66,
            "spec.stages.sft.model.uri",
        ),
    ],
)
def test_a_mistake_is_the_last_line_and_its_kind_the_exit_code(
    bench: Any,
    rlhf: Rlhf,
    capsys: pytest.CaptureFixture[str],
    spec: dict[str, Any],
    code: int,
    reason: str,
) -> None:
    bench.write(**spec)
    for command in ("validate", "run"):
        assert rlhf(command, bench.file) == code
        assert reason in last_line(capsys)


def test_rows_are_looked_into(bench: Any, rlhf: Rlhf, capsys: pytest.CaptureFixture[str]) -> None:
    """One line for each dataset with a row that its stage cannot use; the others are well."""
    base = {"model": {"uri": "hf://org/base"}, "dataset": {"uri": "file://rows.jsonl"}}
    held_out = {"evalDataset": {"uri": "file://pairs.jsonl"}}
    bench.write(stages={"sft": base | held_out, "reward": base | held_out})
    pairs = [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 2
    (bench.folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))

    assert rlhf("validate", bench.file) == 65

    (said,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert said.startswith("rlhf: spec.stages.sft.evalDataset: ")
    assert "pairs.jsonl: line 1: response: is missing" in said
    (bench.folder / "pairs.jsonl").write_text("")
    assert rlhf("validate", bench.file) == 65
    said = capsys.readouterr().err
    for name in ("sft", "reward"):
        assert f"spec.stages.{name}.evalDataset" in said


def test_models_are_looked_into(bench: Any, rlhf: Rlhf, capsys: pytest.CaptureFixture[str]) -> None:
    """One line for each model that cannot be trained, before any stage is started."""
    bench.write_model("good")
    bench.write_model("t5", model_type="t5", is_encoder_decoder=True)
    (bench.folder / "empty").mkdir()
    rows = {"uri": "file://rows.jsonl"}
    stages = {
        "sft": {"model": {"uri": "file://good"}, "dataset": rows},
        "reward": {"model": {"uri": "file://t5"}, "dataset": rows},
        "ppo": {
            "model": {"fromStage": "sft"},
            "rewardModel": {"uri": "file://empty"},
            "dataset": {"uri": "hf://org/rows"},
        },
    }
    bench.write(stages=stages)

    assert rlhf("validate", bench.file) == 66

    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 2
    assert said[0].startswith("rlhf: spec.stages.reward.model: ")
    assert "LlamaForCausalLM (t5), an encoder with a decoder" in said[0]
    assert said[1].startswith("spec.stages.ppo.rewardModel.uri: ")
    assert "has no config.json" in said[1]
    stages["reward"]["model"] = stages["ppo"]["rewardModel"] = {"uri": "file://good"}
    bench.write(stages=stages)
    assert rlhf("validate", bench.file) == 0


def test_rows_elsewhere_and_large_lists_are_left_to_the_ranks(
    bench: Any, rlhf: Rlhf, capsys: pytest.CaptureFixture[str]
) -> None:
    base = {"model": {"uri": "hf://org/base"}, "dataset": {"uri": "hf://org/rows"}}
    large = {"evalDataset": {"uri": "file://large.json"}}
    bench.write(stages={"sft": base | large, "reward": base})
    with (bench.folder / "large.json").open("w") as file:
        file.truncate((32 << 20) + 1)

    assert rlhf("validate", bench.file) == 0

    told = capsys.readouterr().out.splitlines()[3:]
    assert told == [f"  sft.{name}: not looked into" for name in ("dataset", "evalDataset")]


def test_claims_are_looked_into_where_a_folder_is_given(
    bench: Any, rlhf: Rlhf, capsys: pytest.CaptureFixture[str]
) -> None:
    sft = {"model": {"uri": "pvc://models/m"}, "dataset": {"uri": "pvc://data/rows.jsonl"}}
    bench.write(stages={"sft": sft})
    assert rlhf("validate", bench.file) == 0
    assert "claim data is not looked into" in capsys.readouterr().err
    mount = f"data={bench.folder}"
    assert rlhf("validate", bench.file, "--mount", mount) == 66
    assert "add --mount models=path" in capsys.readouterr().err
    bench.write_model("m")
    given = ("--mount", mount, "--mount", f"models={bench.folder}")
    assert rlhf("validate", bench.file, *given) == 0
    assert "sft.dataset: 1 rows" in capsys.readouterr().out
    assert rlhf("run", bench.file, "--mount", "data") == 64


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "Missing command."),
        (("bogus",), "No such command 'bogus'."),
        (("run",), "Missing argument 'file'."),
        (("run", "x", "--bogus"), "No such option: --bogus"),
    ],
)
def test_a_wrong_command_line_is_a_usage_error(
    rlhf: Rlhf, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], reason: str
) -> None:
    assert rlhf(*arguments) == 64
    assert last_line(capsys).casefold() == f"error: {reason}".casefold()


def test_help_explains_how_a_failed_job_is_run_again(
    rlhf: Rlhf, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rlhf("run", "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "from the last checkpoints, with all restarts of runPolicy.maxRestarts again" in text


def test_a_workdir_that_is_a_file(
    bench: Any, rlhf: Rlhf, capsys: pytest.CaptureFixture[str]
) -> None:
    blocked = bench.folder / "file"
    blocked.touch()
    assert rlhf("run", bench.file, "--workdir", blocked) == 64
    assert last_line(capsys) == (
        f"rlhf: {blocked}/reviews: Not a directory; correct the path, or choose another --workdir"
    )


@pytest.mark.parametrize(
    ("number", "code", "remedy"),
    [
        (errno.ENOSPC, 74, "free space; the same command then goes on"),
        (errno.EDQUOT, 74, "free space; the same command then goes on"),
        (errno.EIO, 74, "free space; the same command then goes on"),
        (errno.EFBIG, 74, "free space; the same command then goes on"),
        (errno.EACCES, 77, "open it, or choose another --workdir"),
        (errno.EPERM, 77, "open it, or choose another --workdir"),
        (errno.EROFS, 77, "open it, or choose another --workdir"),
        (errno.ENAMETOOLONG, 64, "correct the path, or choose another --workdir"),
        (errno.ENOENT, 66, "something has removed it; put it back, or choose another --workdir"),
        (errno.EMFILE, 74, "remove the cause; the same command then goes on"),
    ],
)
def test_what_the_system_refuses(
    bench: Any,
    rlhf: Rlhf,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    code: int,
    remedy: str,
) -> None:
    def refuse(self: Workdir) -> NoReturn:
        raise OSError(number, os.strerror(number), str(self.folder))

    monkeypatch.setattr(Workdir, "locked", refuse)
    assert rlhf("run", bench.file, "--workdir", bench.root) == code
    assert last_line(capsys) == f"rlhf: {bench.workdir}: {os.strerror(number)}; {remedy}"


def test_a_refusal_that_names_no_file(
    bench: Any, rlhf: Rlhf, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Workdir) -> NoReturn:
        raise OSError("the mount is gone")

    monkeypatch.setattr(Workdir, "locked", refuse)
    assert rlhf("run", bench.file, "--workdir", bench.root) == 74
    assert last_line(capsys).startswith("rlhf: the workdir: the mount is gone; remove the cause")


def test_it_is_a_module_too(bench: Any) -> None:
    command = [sys.executable, "-m", "rlhf_cli", "validate", str(bench.file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, "is valid" in done.stdout) == (0, True)
