"""The figures of benchmarks/supervised.py, and what it gives to a peer."""

import json
import re
import sys
from pathlib import Path

import pytest
import supervised
import tiny
import transformers
from peers import environment
from speed import jobs, runs, tasks
from speed.figures import Pace

SETTINGS = {
    "batchSize": 8,
    "microBatchSize": 4,
    "maxSteps": 50,
    "warmupRatio": 0.03,
    "learningRate": 1e-3,
}


def test_steps_of_a_peer_have_equally_many_rows() -> None:
    assert supervised.paces_of([2.0, 3.0], 64) == [Pace(2.0, 64), Pace(3.0, 128)]


def test_speedups_are_told_where_the_peer_was_measured() -> None:
    alone = {"sft_samples_per_s": 300.0, "reward_pairs_per_s": 200.0}
    assert supervised.with_speedups(alone) == alone
    found = supervised.with_speedups(
        alone | {"sft_samples_per_s_trl": 200.0, "reward_pairs_per_s_trl": 100.0}
    )
    assert (found["sft_speedup_vs_trl"], found["reward_speedup_vs_trl"]) == (1.5, 2.0)


@pytest.mark.parametrize("peer", [False, True])
def test_every_stage_is_measured_and_the_peer_if_it_is_asked_for(
    peer: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = runs.Prepared(tmp_path / "data", tmp_path / "sft", tmp_path / "reward")
    monkeypatch.setattr(supervised, "interpreter", lambda wanted: Path("python"))
    names: list[str] = []

    def run(document: jobs.Raw, *_: object) -> tuple[Path, list[object]]:
        names.append(document["metadata"]["name"])
        return tmp_path, []

    def run_peer(command: list[str], task: jobs.Raw, folder: Path, _: object) -> Path:
        names.append(folder.name)
        assert task["batchSize"] == 32
        path = tmp_path / "measured.json"
        path.write_text(json.dumps({"seconds": [2.0 * at for at in range(1, 61)]}))
        return path

    monkeypatch.setattr(supervised, "run", run)
    monkeypatch.setattr(supervised, "run_peer", run_peer)
    monkeypatch.setattr(supervised, "events_of", lambda made, stage: Told())
    for task in ("sft_task", "reward_task"):
        monkeypatch.setattr(supervised, task, lambda document: {"batchSize": 32})
    arguments = ["--json", "x", *(["--peer", "trl"] if peer else [])]
    found = supervised.measure(supervised.read_arguments(arguments), models, tmp_path)
    ours = {"sft_samples_per_s", "sft_packed_samples_per_s", "reward_pairs_per_s"}
    beside = {f"{kind}_speedup_vs_trl" for kind in ("sft", "reward")}
    beside |= {"sft_samples_per_s_trl", "reward_pairs_per_s_trl"}
    assert found.keys() == (ours | beside if peer else ours)
    # 64 rows a second against 16.
    assert {found[name] for name in ours} == {64.0}
    assert not peer or {found[name] for name in beside} == {4.0, 16.0}
    # What is compared follows each other.
    alone = ["sft", "sft-packed", "reward"]
    assert names == (["sft", "trl-sft", "sft-packed", "reward", "trl-reward"] if peer else alone)


class Told:
    """64 rows a second, and one before the warm-up is over."""

    def paces(self) -> list[Pace]:
        slow = [Pace(64.0 * at, 64.0 * at) for at in range(1, 6)]
        return slow + [Pace(315.0 + at, 64.0 * at) for at in range(6, 61)]


def test_steps_that_only_warm_up_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        supervised.read_arguments(["--json", "x", "--steps", "5"])
    assert "--steps 5: 5 steps warm up; give more" in capsys.readouterr().err


def test_figures_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = runs.Prepared(tmp_path / "data", tmp_path / "sft", tmp_path / "reward")
    monkeypatch.setattr(supervised, "prepare", lambda folder: models)
    monkeypatch.setattr(supervised, "measure", lambda *_: {"sft_samples_per_s": 170.12346})
    stages: list[str] = []

    def profiled(document: jobs.Raw, storage: Path, _: object) -> str:
        stages.append(document["metadata"]["name"])
        return f"of {storage.name}"

    monkeypatch.setattr(supervised, "profile_stage", profiled)
    path, profile = tmp_path / "supervised.json", tmp_path / "profile.txt"
    arguments = ["--json", str(path), "--folder", str(tmp_path / "kept")]
    assert supervised.main(arguments) == 0
    assert json.loads(path.read_text()) == {"sft_samples_per_s": 170.1235}
    assert stages == []
    assert supervised.main([*arguments, "--profile", str(profile)]) == 0
    assert stages == ["sft-packed", "reward"]
    assert profile.read_text() == "SFT, packed: of profile-0\nreward model: of profile-1"
    assert (tmp_path / "kept").is_dir()


def task_document(folder: Path, stage: str, **fields: object) -> dict[str, object]:
    words = tiny.tokenizer_folder(folder / "tokenizer")
    rows = folder / "rows.jsonl"
    row = {"prompt": "ab", "response": "cde", "query": "ab", "chosen": "cde", "rejected": "f"}
    rows.write_text(json.dumps(row) + "\n")
    spec = SETTINGS | {
        "model": {"uri": f"file://{words}"},
        "dataset": {"uri": f"file://{rows}"},
        **fields,
    }
    return jobs.job("task", {stage: spec})


def test_a_peer_is_given_the_tokens_and_settings_of_sft(tmp_path: Path) -> None:
    task = tasks.sft_task(task_document(tmp_path, "sft", maxLength=16))
    # a to e are 3 to 7, EOS is 1; the loss is on the response and its end.
    assert task["rows"] == [
        {"input_ids": [3, 4, 5, 6, 7, 1], "completion_mask": [0, 0, 1, 1, 1, 1]}
    ]
    assert task["model"] == str(tmp_path / "tokenizer")
    assert (task["stage"], task["steps"], task["warmupSteps"]) == ("sft", 50, 2)
    assert task.items() >= SETTINGS.items()
    # Defaults as well.
    assert task["adamBetas"] == [0.9, 0.95]
    assert task["weightDecay"] == 0.0


def test_a_peer_is_given_the_pairs_of_the_reward_model(tmp_path: Path) -> None:
    task = tasks.reward_task(task_document(tmp_path, "reward", maxLength=16))
    assert task["rows"] == [{"chosen_ids": [3, 4, 5, 6, 7, 1], "rejected_ids": [3, 4, 8, 1]}]
    assert (task["stage"], task["seed"], task["gradientClipping"]) == ("reward", 42, 1.0)


def test_a_peer_is_given_the_prompts_of_ppo(tmp_path: Path) -> None:
    reward = {"rewardModel": {"uri": "file:///reward"}}
    task = tasks.ppo_task(task_document(tmp_path, "ppo", **reward))
    assert task["prompts"] == [[3, 4]]
    assert (task["sft"], task["reward"]) == (str(tmp_path / "tokenizer"), "/reward")
    assert (task["updates"], task["klEstimator"], task["gaeLambda"]) == (50, "K1", 0.95)


def test_every_setting_that_a_peer_reads_is_given(tmp_path: Path) -> None:
    """The scripts run where the tests do not."""
    reward = {"rewardModel": {"uri": "file:///reward"}}
    given = {
        "trl_supervised.py": tasks.sft_task(task_document(tmp_path, "sft", maxLength=16)),
        "trl_ppo.py": tasks.ppo_task(task_document(tmp_path, "ppo", **reward)),
    }
    for name, task in given.items():
        text = (supervised.PEER_SCRIPT.parent / name).read_text("utf-8")
        read = set(re.findall(r'task\["(\w+)"\]', text))
        assert len(read) > 10
        assert read <= task.keys()


def test_a_peer_has_an_environment_of_its_own_that_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    wanted = environment.requirements()
    assert wanted[0] == "trl==1.8.0"
    assert f"transformers=={transformers.__version__}" in wanted
    # An index knows nothing of +cpu.
    assert not any("+" in each for each in wanted)
    made: list[list[str]] = []
    monkeypatch.setattr(environment, "_run", lambda command: _make(command, made))
    python = environment.interpreter(wanted)
    assert python == environment.environment_folder(wanted) / "bin" / "python"
    assert python.is_relative_to(tmp_path)
    assert [command[1:3] for command in made] == [["-m", "venv"], ["-m", "pip"]]
    assert set(made[1]) >= set(wanted)
    assert environment.interpreter(wanted) == python
    assert len(made) == 2
    # Other versions are another environment.
    assert environment.environment_folder(["trl==1.9.0"]) != environment.environment_folder(wanted)


def _make(command: list[str], made: list[list[str]]) -> None:
    made.append(command)
    if command[2] == "venv":
        Path(command[3]).mkdir(parents=True)


def test_an_environment_that_was_not_finished_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = environment.environment_folder(["trl==1.8.0"])
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "left").touch()
    made: list[list[str]] = []
    monkeypatch.setattr(environment, "_run", lambda command: _make(command, made))
    environment.interpreter(["trl==1.8.0"])
    assert len(made) == 2
    assert not (folder / "bin").exists()


def test_what_pip_says_is_told() -> None:
    with pytest.raises(environment.PeerError, match="ended with 3: no such package"):
        environment._run(
            [sys.executable, "-c", "import sys; print('no such package', file=sys.stderr); exit(3)"]
        )
