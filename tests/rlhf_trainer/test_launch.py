"""The launcher as a real process: every row of the exit-code table, its messages, bad input."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from launching import PROGRAMS, WAIT_SECONDS, Launchers, stage_config

from rlhf_api.names import CONTRACT_VERSION, EnvVar, Reason
from rlhf_api.v1alpha1 import StageConfig


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launchers]:
    launchers = Launchers(tmp_path)
    yield launchers
    launchers.end()


ROWS: list[tuple[str, int, Reason]] = [
    ("done", 0, Reason.FINISHED),
    ("raise UsageError", 64, Reason.USAGE),
    ("raise DataError", 65, Reason.DATA_ERROR),
    ("raise InputError", 66, Reason.INPUT_INVALID),
    ("raise SelfCheckError", 70, Reason.SELF_CHECK_FAILED),
    ("raise PermissionDenied", 77, Reason.NO_PERMISSION),
    ("raise ConfigError", 78, Reason.CONFIG_INVALID),
    ("raise MemoryEstimateError", 78, Reason.OUT_OF_MEMORY),
    ("raise ServiceUnavailable", 69, Reason.SERVICE_UNAVAILABLE),
    ("raise disk-full", 74, Reason.IO_ERROR),
    ("raise GuardrailFired", 42, Reason.GUARDRAIL),
    ("raise PeerLost", 80, Reason.PEER_LOST),
    ("raise defect", 1, Reason.CRASHED),
    ("raise OutOfMemory", 1, Reason.OUT_OF_MEMORY),
    ("exit 3", 3, Reason.CRASHED),
    ("exit 66", 66, Reason.INPUT_INVALID),
    ("signal 9", 137, Reason.CRASHED),
    ("signal 11", 139, Reason.CRASHED),
]


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(("way", "code", "reason"), ROWS, ids=[row[0] for row in ROWS])
def test_every_row_of_the_table(
    launch: Launchers, way: str, code: int, reason: Reason, processes: int
) -> None:
    launched = launch(
        {processes - 1: way, **({0: "hang"} if code and processes > 1 else {})}, processes=processes
    )
    assert launched.wait() == code
    result = launched.result()
    assert (result.exit_code, result.reason, result.attempt) == (code, reason, 2)
    if code and processes > 1:
        assert result.message.startswith("rank 1")
    config = StageConfig.from_json((launched.folder / "stage.json").read_text())
    assert result.config_digest == config.config_digest
    assert (result.metrics == {"loss": 0.5}) == (code == 0)


def test_the_command_is_shown_and_nothing_is_left_behind(launch: Launchers) -> None:
    launched = launch({})
    assert launched.wait() == 0
    shown = f"{sys.executable} {PROGRAMS / 'ending.py'} '{{}}' {launched.folder / 'stage.json'}"
    log = launched.log.read_text()
    assert shown in log
    assert "signal handlers" not in log
    assert {path.name for path in launched.folder.iterdir()} == {"log", "message", "stage.json"}


def test_a_long_message_loses_its_middle(launch: Launchers) -> None:
    launched = launch({0: "raise long"})
    assert launched.wait() == 74
    assert 3500 < len(launched.message.read_bytes()) <= 4096
    beginning, gap, end = launched.result().message.partition(" ... ")
    assert gap
    assert set(beginning) == set(end) == {"長"}


def test_progress_is_told_for_a_rank_that_could_not(launch: Launchers) -> None:
    launched = launch({0: "@written:signal 9"})
    attempt = launched.folder / "storage" / "demo-12345678" / "sft" / "attempt-2"
    (attempt / "checkpoints").mkdir(parents=True)
    (attempt / "checkpoints" / "latest").write_text("step-20\n")
    event = {"type": "step", "step": 24, "totalSteps": 90}
    (attempt / "events.jsonl").write_text(json.dumps(event) + '\n{"type": "st')
    (launched.folder / "written").touch()
    assert launched.wait() == 137
    result = launched.result()
    assert (result.step, result.total_steps, result.last_checkpoint_step) == (24, 90, 20)


def document(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "stage.json"
    found = json.loads(stage_config(tmp_path).to_json())
    path.write_text(json.dumps(found | changes))
    return path


@pytest.mark.parametrize(
    ("changes", "environment", "code", "words"),
    [
        ({"nodes": 2}, {"JOB_COMPLETION_INDEX": "0"}, 78, "masterPort is 0 with 2 nodes"),
        ({"nodes": 2, "masterPort": 29500}, {}, 64, "JOB_COMPLETION_INDEX is None"),
        (
            {"nodes": 2, "masterPort": 29500},
            {"JOB_COMPLETION_INDEX": "2"},
            64,
            "JOB_COMPLETION_INDEX is '2'; with 2 nodes it must be a number from 0 to 1",
        ),
        (
            {},
            {"RLHF_GRACE_PERIOD_SECONDS": "soon"},
            64,
            "RLHF_GRACE_PERIOD_SECONDS is 'soon'",
        ),
    ],
)
def test_a_bad_environment_ends_before_any_rank_starts(
    launch: Launchers,
    tmp_path: Path,
    changes: dict[str, Any],
    environment: dict[str, str],
    code: int,
    words: str,
) -> None:
    path = document(tmp_path, **changes)
    launched = launch.start(tmp_path, [str(path)], [], environment)
    assert launched.wait() == code
    result = launched.result()
    assert (result.exit_code, result.attempt) == (code, 2)
    assert words in result.message
    log = launched.log.read_text()
    assert "starts ranks" not in log
    assert "Traceback" not in log


@pytest.mark.parametrize(
    ("device", "requested", "words"),
    [
        ("CUDA", 0, "stages.sft.device: CUDA needs a GPU for each rank (1 on this node), but "),
        ("Auto", 1, "GPUs that resources.limits asks for (1), and needs one for each rank (1 on"),
    ],
)
def test_gpus_that_are_not_there_end_before_any_rank_starts(
    launch: Launchers, tmp_path: Path, device: str, requested: int, words: str
) -> None:
    config = stage_config(tmp_path)
    spec = {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "hf://a/c"}, "device": device}
    path = document(tmp_path, sft=spec, gpusRequested=requested)
    launched = launch.start(tmp_path, [str(path)], [], {})
    assert launched.wait() == 78
    result = launched.result()
    assert (result.reason, result.config_digest) == (Reason.CONFIG_INVALID, config.config_digest)
    assert words in result.message
    log = launched.log.read_text()
    assert "starts ranks" not in log
    assert "Traceback" not in log


@pytest.mark.parametrize("requested", [0, 2])
def test_ranks_on_the_cpu_can_find_no_gpu(
    launch: Launchers, tmp_path: Path, requested: int
) -> None:
    spec = {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "hf://a/c"}, "device": "CPU"}
    path = document(tmp_path, sft=spec, gpusRequested=requested)
    program, seen = tmp_path / "rank.py", tmp_path / "seen.json"
    program.write_text(
        "import json, os, pathlib\n"
        f"pathlib.Path({str(seen)!r}).write_text(json.dumps(dict(os.environ)))\n"
    )
    environment = {"CUDA_VISIBLE_DEVICES": "0", "DS_ACCELERATOR": "cuda"}
    launched = launch.start(tmp_path, [str(path)], [str(program)], environment)
    assert launched.wait() == 0, launched.log.read_text()
    found = json.loads(seen.read_text())
    assert (found["CUDA_VISIBLE_DEVICES"], found["DS_ACCELERATOR"]) == ("-1", "cpu")


@pytest.mark.parametrize(
    ("arguments", "content", "code", "words"),
    [
        ([], {}, 64, "Usage: arguments: none: usage is python -m rlhf_trainer.launch stage.json"),
        (["--help"], {}, 64, "Usage: arguments: --help"),
        (["missing.json"], {}, 64, "missing.json: No such file or directory"),
        (["stage.json"], b"{", 78, "ConfigInvalid: stage.json is not JSON"),
        (["stage.json"], b"\xff", 78, "stage.json: not UTF-8 at byte 0"),
        (["stage.json"], b"[1]", 78, "ContractVersion: stage.json: contractVersion is None"),
        (["stage.json"], {"nodez": 2}, 78, "nodez"),
        (["stage.json"], {"configDigest": ""}, 78, "ConfigInvalid: stage.json: configDigest: is"),
        *(
            (
                ["stage.json"],
                {"contractVersion": version, "later": 1},
                78,
                f"ContractVersion: stage.json: contractVersion is {version}, but this trainer "
                f"image speaks {CONTRACT_VERSION}",
            )
            for version in (CONTRACT_VERSION - 1, CONTRACT_VERSION + 1)
        ),
    ],
)
def test_a_bad_stage_json_ends_before_any_rank_starts(
    launch: Launchers,
    tmp_path: Path,
    arguments: list[str],
    content: bytes | dict[str, Any],
    code: int,
    words: str,
) -> None:
    if isinstance(content, bytes):
        (tmp_path / "stage.json").write_bytes(content)
    else:
        document(tmp_path, **content)
    paths = [name if name.startswith("-") else str(tmp_path / name) for name in arguments]
    launched = launch.start(tmp_path, paths, [], {})
    assert launched.wait() == code
    assert words in launched.message.read_text()
    log = launched.log.read_text()
    assert "starts ranks" not in log
    assert "Traceback" not in log


def test_without_a_place_for_the_message_the_code_still_counts(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_trainer.launch", document(tmp_path, contractVersion=99)],
        env=os.environ | {EnvVar.TERMINATION_MESSAGE: str(tmp_path / "missing" / "message")},
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_SECONDS,
    )
    assert done.returncode == 78
    assert f"{tmp_path}/missing/message" in done.stderr
    assert "set RLHF_TERMINATION_MESSAGE to a file" in done.stderr


def test_a_launcher_that_ends_early_never_imports_torch(tmp_path: Path) -> None:
    script = (
        "import sys; from rlhf_trainer.launch import main; "
        "print(main(sys.argv[1:]), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "missing.json"],
        capture_output=True,
        text=True,
        check=True,
        timeout=WAIT_SECONDS,
    )
    assert done.stdout == "64 False\n"
