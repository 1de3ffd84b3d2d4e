"""What a stage reads before any weights: on disk, or fetched from a hub by one rank of a node."""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import tiny
import torch
import worlds
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from safetensors.torch import save_file

from rlhf_api.errors import ConfigError, InputError
from rlhf_api.v1alpha1 import ModelSource
from rlhf_trainer.errors import ServiceUnavailable
from rlhf_trainer.models import source as source_module
from rlhf_trainer.models.source import Base, open_base
from rlhf_trainer.models.templates import end_of_turn
from rlhf_trainer.run.artifact import finished_outcome, write_artifact

PROGRAM = Path(__file__).parents[1] / "programs_engine" / "loop_cases.py"
LOADING = PROGRAM.with_name("loading_cases.py")
PAUSE = 0.5
FIELD = "spec.stages.sft.model"


def fill_cache(home: Path, name: str, model: Path, references: dict[str, str]) -> None:
    """The hub's cache as a download leaves it: contents by digest, files by commit, commits by
    name."""
    repository = home / "hub" / f"models--{name.replace('/', '--')}"
    for reference, commit in references.items():
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / reference).write_text(commit)
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (repository / "blobs").mkdir(exist_ok=True)
        for file in model.iterdir():
            blob = repository / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
            blob.write_bytes(file.read_bytes())
            (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("source")
    words = tiny.tokenizer_folder(found / "tokenizer")
    for width in (16, 24):
        model = tiny.causal_model(words, hidden_size=width)
        tiny.saved(model, found / f"model-{width}", words)
    fill_cache(found / "home", "org/small", found / "model-16", {"main": 40 * "a"})
    fill_cache(found / "home", "org/small", found / "model-24", {"v2": 40 * "b"})
    return found


@pytest.fixture(scope="module")
def offline(folder: Path) -> Iterator[worlds.World]:
    """Two ranks with a filled cache and no network."""
    world = worlds.World(2, {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"})
    yield world
    world.close()


def opened(
    world: worlds.World, folder: Path, source: ModelSource, nodes: int = 1
) -> list[tuple[list[float], float, Any]]:
    config = tiny.stage_config("sft", folder, world_size=2)
    return world(PROGRAM, "opened", config=config, source=source, nodes=nodes, pause=PAUSE)


# A hub that is far away


def test_one_rank_of_a_node_fetches_while_the_others_wait(
    offline: worlds.World, folder: Path
) -> None:
    first, second = opened(offline, folder, ModelSource(uri="hf://org/small"))
    assert len(first[0]) == 1
    assert second[0] == []
    assert second[1] > first[0][0], "the second rank did not wait"
    assert first[2] == second[2] == (22, 0, "llama", 16)


def test_every_node_fetches_for_itself(offline: worlds.World, folder: Path) -> None:
    found = opened(offline, folder, ModelSource(uri="hf://org/small"), nodes=2)
    assert [len(downloads) for downloads, *_ in found] == [1, 1]


def test_a_revision_is_the_one_that_was_asked_for(offline: worlds.World, folder: Path) -> None:
    for revision in ("v2", 40 * "b"):
        source = ModelSource(uri=f"hf://org/small@{revision}")
        for *_, found in opened(offline, folder, source):
            assert found == (22, 0, "llama", 24), revision


def test_weights_that_are_cut_stay_in_the_cache_of_the_hub(
    offline: worlds.World, folder: Path
) -> None:
    weights = (folder / "model-16" / "model.safetensors").read_bytes()
    blob = folder / "home" / "hub" / "models--org--small" / "blobs"
    kept = str(blob / hashlib.sha256(weights).hexdigest())
    for found in offline(LOADING, "of_hub", name="org/small", precision="BF16"):
        assert found == ({"torch.float32"}, {kept})


def test_a_scratch_model_takes_its_tokenizer_from_the_hub(
    offline: worlds.World, folder: Path
) -> None:
    sizes = tiny.sizes(folder / "tokenizer").model_copy(update={"tokenizer": "hf://org/small"})
    source = ModelSource(uri="scratch://gpt2", scratch=sizes)
    first, second = opened(offline, folder, source)
    assert (len(first[0]), len(second[0])) == (1, 0)
    assert first[2] == second[2] == (22, 0, "gpt2", 16)


@pytest.mark.parametrize("uri", ["hf://org/missing", "hf://org/small@v3"])
def test_what_the_cache_lacks_is_an_error_on_every_rank(
    offline: worlds.World, folder: Path, uri: str
) -> None:
    for *_, (kind, message) in opened(offline, folder, ModelSource(uri=uri)):
        assert kind == "InputError"
        assert message.startswith(f"{FIELD}: {uri.partition('@')[0]} cannot be fetched: ")
        assert message.endswith("or fill the cache and set HF_HUB_OFFLINE=1")


def answer(status: int) -> Any:
    """What the hub's client raises for an HTTP status."""

    class Response:
        status_code = status
        headers = MappingProxyType({})
        request = None

    kind = RepositoryNotFoundError if status == 404 else HfHubHTTPError
    return kind(f"status {status}", response=Response())


def wrapped(cause: BaseException | None) -> BaseException:
    """As `snapshot_download` raises what kept it from asking the hub."""
    error = LocalEntryNotFoundError("no snapshot")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        pytest.param(answer(404), InputError, id="no such repository"),
        pytest.param(answer(403), InputError, id="closed"),
        pytest.param(answer(503), ServiceUnavailable, id="down"),
        pytest.param(answer(429), ServiceUnavailable, id="too many requests"),
        pytest.param(wrapped(answer(502)), ServiceUnavailable, id="down before the first file"),
        pytest.param(wrapped(answer(404)), InputError, id="no such revision"),
        pytest.param(wrapped(ConnectionError("refused")), ServiceUnavailable, id="no network"),
        pytest.param(wrapped(OfflineModeIsEnabled("offline")), InputError, id="offline"),
        pytest.param(wrapped(None), InputError, id="not in the cache"),
        pytest.param(ConnectionResetError("reset"), ServiceUnavailable, id="reset"),
        pytest.param(ValueError("bad name"), InputError, id="a name that is none"),
        pytest.param(OSError(28, "No space left on device"), OSError, id="full disk"),
    ],
)
def test_a_hub_that_may_come_back_is_no_mistake_of_the_job(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, kind: type[Exception]
) -> None:
    def fail(*arguments: object, **settings: object) -> None:
        raise error

    monkeypatch.setattr(source_module, "snapshot_download", fail)
    with pytest.raises(kind) as caught:
        open_base(
            ModelSource(uri="hf://org/small"), tiny.stage_config("sft", folder), tiny.ALONE, FIELD
        )
    assert type(caught.value) is kind
    if kind is not OSError:
        assert str(caught.value).startswith(f"{FIELD}: hf://org/small cannot be fetched")


def test_what_a_repository_holds_is_looked_into_once_it_is_fetched(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = shutil.copytree(folder / "model-16", tmp_path / "fetched")
    monkeypatch.setattr(source_module, "snapshot_download", lambda *_, **__: str(fetched))
    (fetched / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"hf://org/small holds adapter_config.json.* merge the"):
        base(folder, ModelSource(uri="hf://org/small"))
    (fetched / "adapter_config.json").unlink()
    weights = {"model.norm.weight": torch.zeros(16, dtype=torch.int8)}
    save_file(weights, fetched / "model.safetensors")
    with pytest.raises(InputError, match=r"holds quantised weights \(1 of them.* of type I8\)"):
        base(folder, ModelSource(uri="hf://org/small"))


# Folders


def base(folder: Path, source: ModelSource, field: str = FIELD) -> Base:
    return open_base(source, tiny.stage_config("sft", folder), tiny.ALONE, field)


def test_a_base_has_what_the_stage_needs_before_weights(folder: Path) -> None:
    found = base(folder, tiny.file_source(folder / "model-24", pad_token="<unk>"))
    assert found.field == FIELD
    assert found.pad_id == 2
    assert found.config.hidden_size == 24
    assert not found.location.on_hub
    model = tiny.causal_model(folder / "tokenizer", hidden_size=24)
    size = found.size("actor", trained=True)
    assert size.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert (size.name, size.trained) == ("actor", True)


@pytest.mark.field("ModelSource.scratch")
@pytest.mark.field("ScratchModel.tokenizer", instead="file:///nowhere")
def test_a_scratch_base_is_sized_by_its_tokenizer(folder: Path) -> None:
    found = base(folder, tiny.scratch_source(folder / "tokenizer", "opt", hidden_size=24))
    assert (found.config.model_type, found.config.hidden_size) == ("opt", 24)
    assert found.config.vocab_size == len(found.tokenizer) == 22


def test_a_folder_that_is_not_there_names_the_field(folder: Path) -> None:
    with pytest.raises(InputError, match=rf"{FIELD}\.uri: .*nowhere does not exist"):
        base(folder, tiny.file_source(folder / "nowhere"))


@pytest.mark.field("ModelSource.chat_template")
def test_a_chat_template_of_the_job_replaces_that_of_the_tokenizer(folder: Path) -> None:
    source = tiny.file_source(folder / "model-16", chat_template="{{ messages[0]['content'] }}!")
    found = base(folder, source)
    rendered = found.tokenizer.apply_chat_template(
        [{"role": "user", "content": "ab"}], tokenize=False
    )
    assert rendered == "ab!"


@pytest.mark.field("ModelSource.pad_token")
@pytest.mark.field("ModelSource.end_of_turn")
def test_tokens_of_the_job_replace_those_of_the_tokenizer(folder: Path) -> None:
    source = tiny.file_source(folder / "model-16", pad_token="g", end_of_turn="h")
    tokenizer = base(folder, source).tokenizer
    assert (tokenizer.pad_token, end_of_turn(tokenizer).token) == ("g", "h")


@pytest.mark.field("ModelSource.use_chat_template")
def test_a_template_of_the_tokenizer_is_not_used_where_the_job_says_so(
    folder: Path, tmp_path: Path
) -> None:
    place = shutil.copytree(folder / "model-16", tmp_path / "model")
    (place / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    found = base(folder, tiny.file_source(place, use_chat_template=False))
    assert found.tokenizer.chat_template is None


# Positions


def test_sequences_beyond_the_positions_are_refused(folder: Path) -> None:
    words = folder / "tokenizer"
    found = base(folder, tiny.scratch_source(words, "gpt2", max_positions=24))
    found.require_positions(24, "spec.stages.sft.maxLength")
    with pytest.raises(ConfigError) as caught:
        found.require_positions(25, "spec.stages.sft.maxLength")
    assert str(caught.value) == (
        f"{FIELD}: the model takes 24 tokens, but sequences of this stage reach 25; lower "
        "spec.stages.sft.maxLength, or name a model that takes more"
    )


# Work that is already done


def test_an_attempt_whose_work_is_done_says_so(tmp_path: Path) -> None:
    config = tiny.stage_config("sft", tmp_path)
    assert finished_outcome(config, tiny.ALONE) is None
    artifact = write_artifact(
        config, tiny.ALONE, 4, lambda folder: (folder / "weights").write_text("x") and None
    )
    later = tiny.stage_config("sft", tmp_path, attempt=3)
    outcome = finished_outcome(later, tiny.ALONE)
    assert outcome is not None
    assert (outcome.artifact, outcome.step, outcome.total_steps) == (artifact, 4, 4)
    other = tiny.stage_config("sft", tmp_path, attempt=3, seed=9)
    with pytest.raises(InputError, match=other.config_digest) as caught:
        finished_outcome(other, tiny.ALONE)
    assert config.config_digest in str(caught.value)
