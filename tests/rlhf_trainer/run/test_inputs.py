"""The rows of a stage: read by name, and what became of them told everywhere."""

import functools
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import stage_runs
import subwords
import tiny
import worlds

from rlhf_api.errors import DataError
from rlhf_api.names import FileName, StageName
from rlhf_api.v1alpha1 import Dataset, ModelSource, StageConfig, StageResult
from rlhf_trainer.data.loading import load_sft
from rlhf_trainer.process.outcome import success
from rlhf_trainer.run.artifact import write_artifact
from rlhf_trainer.run.inputs import Inputs
from rlhf_trainer.run.report import Reporter
from rlhf_trainer.run.token_cache import TokenCache

PROGRAM = Path(__file__).parents[1] / "programs_engine" / "input_cases.py"

COUNTED = ("truncated", "encodedApart", "overLong", "identical", "emptyList", "notLearned")
NONE_LOST = dict.fromkeys(COUNTED, 0)
COUNTS = NONE_LOST | {"kept": 6, "overLong": 2, "identical": 1}


def lossy(folder: Path, **changed: Any) -> StageConfig:
    """A reward stage of nine pairs: six good ones, two too long, one that says the same twice."""
    good = [
        {"query": "ab", "chosen": "c" * (1 + at), "rejected": "d" * (1 + at)} for at in range(6)
    ]
    long = {"query": "ab", "chosen": "c" * 60, "rejected": "d"}
    same = {"query": "ab", "chosen": "c", "rejected": "c"}
    path = tiny.write_rows(folder / "pairs.jsonl", [*good, long, long, same])
    dataset = Dataset(uri=f"file://{path}", **changed)
    return tiny.stage_config("reward", folder, dataset=dataset, max_steps=2)


def test_lost_rows_stand_in_events_in_the_log_and_in_the_result(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = lossy(tmp_path)
    with caplog.at_level(logging.INFO):
        outcome = stage_runs.run(config)
    said = "6 rows used, 2 left out as too long, 1 left out with identical responses"
    assert f"dataset: {said}" in [record.getMessage() for record in caplog.records]
    (start,) = stage_runs.events(config, "start")
    assert start["rows"]["dataset"] == COUNTS
    told = StageResult.from_message(success(config, outcome).to_message())
    assert told is not None
    assert told.rows is not None
    assert {name: each.to_document() for name, each in told.rows.items()} == start["rows"]
    # Its result may have been lost: whoever finds the work done says it again.
    assert stage_runs.run(stage_runs.attempt(config, 2)).rows == told.rows


def test_a_row_encoded_apart_stands_in_the_result(tmp_path: Path) -> None:
    words = subwords.with_template(subwords.byte_level(), subwords.WORDS)
    words.save_pretrained(tmp_path / "words")
    # The generation prompt ends by the space that would be the first word's.
    talk = [
        {"role": "user", "content": "hello there"},
        {"role": "assistant", "content": "the cat"},
        {"role": "user", "content": "and the hat?"},
        {"role": "assistant", "content": "the hat"},
    ]
    rows = [{"messages": talk}, {"messages": [*talk[:1], {**talk[1], "content": "5"}]}]
    path = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    config = tiny.stage_config(
        "sft",
        tmp_path,
        model=tiny.scratch_source(tmp_path / "words"),
        dataset=Dataset(uri=f"file://{path}"),
        max_steps=1,
    )
    outcome = stage_runs.run(config)
    assert outcome.rows["dataset"].encoded_apart == 1


def test_more_than_half_lost_ends_the_stage_before_weights(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    tiny.write_rows(path, [{"query": "a", "chosen": "c", "rejected": "c"}] * 2)
    with path.open("a") as file:
        file.write('{"query": "a", "chosen": "c", "rejected": "d"}\n')
    dataset = Dataset(uri=f"file://{path}")
    config = tiny.stage_config("reward", tmp_path, dataset=dataset)
    with pytest.raises(
        DataError, match=r"spec\.stages\.reward\.dataset\.allowLoss: false, but 2 of"
    ):
        stage_runs.run(config)
    assert not (Path(config.attempt_folder) / FileName.CHECKPOINTS).exists()
    agreed = tiny.stage_config(
        "reward", tmp_path, dataset=dataset.model_copy(update={"allow_loss": True}), max_steps=1
    )
    assert (
        agreed.config_digest
        == tiny.stage_config("reward", tmp_path, dataset=dataset, max_steps=1).config_digest
    )
    assert stage_runs.run(agreed).rows["dataset"].identical == 2


# Once a node


def read(folder: Path, config: StageConfig, nodes: int = 1) -> list[Any]:
    """What two ranks on as many nodes get of a stage's rows, from caches below `folder`."""
    found: list[Any] = worlds.pair()(
        PROGRAM, "read", config=config, cache=folder / "cache", nodes=nodes
    )
    return found


def test_one_rank_of_a_node_makes_tokens_and_all_map_them(tmp_path: Path) -> None:
    config = tiny.stage_config("sft", tmp_path, world_size=2)
    first, second = read(tmp_path, config)
    assert (first[0], second[0]) == (1, 0)
    assert first[1:] == second[1:]
    assert first[-1] is True
    assert first[3] == NONE_LOST | {"kept": 16}
    assert set(first[2]) == {"dataset"}
    again = read(tmp_path, config)
    assert [rank[0] for rank in again] == [0, 0]
    assert [rank[1:] for rank in again] == [first[1:]] * 2
    attempt = Path(config.attempt_folder)
    written = {path.name for path in Path(config.storage).rglob("*.npy")}
    assert (written - {path.name for path in (tmp_path / "cache").rglob("*.npy")}) == set()
    assert not list(attempt.rglob("*.npy"))


def test_each_node_makes_its_own(tmp_path: Path) -> None:
    config = tiny.stage_config("sft", tmp_path, world_size=2)
    found = read(tmp_path, config, nodes=2)
    assert [rank[0] for rank in found] == [1, 1]
    assert found[0][1:] == found[1][1:]


def test_where_nothing_can_be_kept_every_rank_has_its_own(tmp_path: Path) -> None:
    config = tiny.stage_config("sft", tmp_path, world_size=2)
    (tmp_path / "cache").write_text("no folder")
    found = read(tmp_path, config)
    assert [rank[0] for rank in found] == [1, 1]
    assert [rank[-1] for rank in found] == [False, False]
    assert found[0][1:] == found[1][1:]
    (tmp_path / "cache").unlink()
    assert read(tmp_path, config)[0][1:-1] == found[0][1:-1]


def test_a_mistake_in_the_rows_is_told_on_every_rank(tmp_path: Path) -> None:
    path = tiny.write_rows(tmp_path / "rows.jsonl", [{"prompt": "a", "response": ""}])
    dataset = Dataset(uri=f"file://{path}")
    found = read(tmp_path, tiny.stage_config("sft", tmp_path, dataset=dataset, world_size=2))
    assert [rank[1] for rank in found] == ["DataError"] * 2
    assert "rows.jsonl: line 1: response" in found[1][2]


def test_ranks_share_tokens_that_say_the_date_and_leave_nothing(tmp_path: Path) -> None:
    words = tiny.tokenizer_folder(tmp_path / "tokenizer")
    source = tiny.scratch_source(words).model_copy(
        update={"chat_template": "{{ strftime_now('ab') }}{{ messages[0].content }}"}
    )
    config = tiny.stage_config("sft", tmp_path, world_size=2, model=source)
    first, second = read(tmp_path, config)
    assert (first[0], second[0]) == (1, 0)
    assert first[1:] == second[1:]
    assert first[-1] is True, "mapped, and read after it was removed"
    assert list((tmp_path / "cache" / "node-0").iterdir()) == []


def read_here(folder: Path, words: Any, load: Any = load_sft) -> tuple[list[Any], dict[str, str]]:
    """Rows and digests, of this process alone."""
    config = tiny.stage_config("sft", folder)
    with Reporter(config, tiny.ranks()) as reporter:
        inputs = Inputs(config, tiny.ranks(), reporter, cache=TokenCache(folder / "cache"))
        rows = inputs.read("dataset", load, config.spec.dataset, words, max_length=32)
        return [row.tokens.tolist() for row in rows], inputs.digests


def test_held_out_rows_are_read_like_those_to_learn_where_there_are_any(tmp_path: Path) -> None:
    few = tiny.write_rows(tmp_path / "few.jsonl", tiny.sft_rows()[:3])
    for eval_dataset, kept in ((None, None), (Dataset(uri=f"file://{few}"), 3)):
        config = tiny.stage_config("sft", tmp_path, eval_dataset=eval_dataset)
        with Reporter(config, tiny.ranks()) as reporter:
            inputs = Inputs(config, tiny.ranks(), reporter, cache=TokenCache(tmp_path / "cache"))
            train, held_out = inputs.read_train_and_eval(load_sft, tiny.tokenizer(), max_length=32)
        assert len(train) == 16
        assert (None if held_out is None else len(held_out)) == kept
        names = {"dataset"} if kept is None else {"dataset", "evalDataset"}
        assert inputs.digests.keys() == reporter.rows.keys() == names


def test_rows_encoded_apart_are_told_also_when_their_tokens_are_found(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    @functools.wraps(load_sft)
    def straddling(*arguments: Any, **settings: Any) -> Any:
        found, counts = load_sft(*arguments, **settings)
        calls.append(arguments)
        return found, replace(counts, encoded_apart=3)

    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            read_here(tmp_path, tiny.tokenizer(), straddling)
        said = "dataset: 16 rows used, 3 with prompt and response encoded apart"
        assert said in [each.getMessage() for each in caplog.records]
    assert len(calls) == 1


def test_tokens_that_say_the_date_are_kept_nowhere_and_told_by_their_rows(tmp_path: Path) -> None:
    template = "{{ strftime_now('ab') }}{{ messages[0].content }}"
    rows, digests = read_here(tmp_path, tiny.templated(template))
    assert len(rows) == 16
    assert list((tmp_path / "cache").iterdir()) == []
    again, same = read_here(tmp_path, tiny.templated(template.replace("ab", "cd")))
    assert again != rows
    assert same == digests.copy() != {}
    plain, tokens = read_here(tmp_path, tiny.tokenizer())
    assert tokens.keys() == digests.keys()
    assert tokens != digests
    assert len(list((tmp_path / "cache").glob("*/tokens.json"))) == 1
    assert len(plain) == 16


# Artifacts


def test_an_artifact_is_hashed_once_a_node(tmp_path: Path) -> None:
    trained, words = tiny.stage_config("sft", tmp_path), tiny.tokenizer_folder(tmp_path / "words")
    model = tiny.causal_model(words)
    made = write_artifact(trained, tiny.ALONE, 4, lambda folder: tiny.saved(model, folder, words))
    config = tiny.stage_config(
        "reward",
        tmp_path,
        model=ModelSource(from_stage=StageName.SFT),
        world_size=2,
    ).model_copy(update={"artifacts": {StageName.SFT: made}})
    folder = str(Path(trained.storage) / made.uri)
    for nodes, hashing in ((1, [True, False]), (2, [True, True])):
        found = worlds.pair()(PROGRAM, "hashed", config=config, nodes=nodes)
        assert [("model.safetensors" in names) for names, _ in found] == hashing
        assert [place for _, place in found] == [folder] * 2
        again = trained.model_copy(update={"attempt": 2})
        found = worlds.pair()(PROGRAM, "finished", config=again, nodes=nodes)
        assert [("model.safetensors" in names) for names, _ in found] == hashing
        assert [done.artifact for _, done in found] == [made] * 2
    (Path(folder) / "model.safetensors").write_bytes(b"other")
    found = worlds.pair()(PROGRAM, "hashed", config=config, nodes=1)
    assert all(said.startswith("InputError: artifact of stage sft") for _, said in found)
