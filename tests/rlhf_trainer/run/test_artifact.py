"""Artifacts from writer to reader, and where models are found."""

import errno
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rlhf_api.errors import ConfigError, InputError
from rlhf_api.names import CONTRACT_VERSION, ExitCode, StageName
from rlhf_api.v1alpha1 import (
    Artifact,
    Dataset,
    JobReference,
    ModelSource,
    RewardStage,
    ScratchModel,
    SFTStage,
    StageConfig,
)
from rlhf_trainer.errors import StorageError
from rlhf_trainer.run.artifact import (
    ModelLocation,
    finished_artifact,
    model_folder,
    open_artifact,
    read_manifest,
    write_artifact,
)
from rlhf_trainer.run.distributed import Ranks
from rlhf_trainer.run.files import sha256_of

ALONE = Ranks(rank=0, local_rank=0, world_size=1, local_world_size=1, device=torch.device("cpu"))
HUB = ModelSource(uri="hf://a/b")
FIELD = "spec.stages.reward.model"


def sft_config(storage: Path, attempt: int = 1, seed: int = 1) -> StageConfig:
    return StageConfig(
        job=JobReference(name="demo", uid="12345678-aaaa"),
        stage=StageName.SFT,
        attempt=attempt,
        storage=str(storage),
        sft=SFTStage(model=HUB, dataset=Dataset(uri="hf://a/c"), seed=seed),
    ).with_digest()


def reward_config(
    storage: Path, artifact: Artifact | None = None, claims: dict[str, str] | None = None
) -> StageConfig:
    return StageConfig(
        job=JobReference(name="demo", uid="12345678-aaaa"),
        stage=StageName.REWARD,
        attempt=1,
        storage=str(storage),
        claims=claims or {},
        artifacts={StageName.SFT: artifact} if artifact else {},
        reward=RewardStage(model=HUB, dataset=Dataset(uri="hf://a/c")),
    ).with_digest()


def write_model(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "extra").mkdir()
    (folder / "extra" / "vocab.txt").write_text("词")


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return write_artifact(sft_config(tmp_path), ALONE, 7, write_model)


def test_an_artifact_has_a_manifest_of_all_its_files(tmp_path: Path) -> None:
    config = sft_config(tmp_path, attempt=2)

    artifact = write_artifact(config, ALONE, 7, write_model)

    assert artifact.uri == "demo-12345678/sft/attempt-2/artifact"
    folder = tmp_path / artifact.uri
    assert artifact.digest == sha256_of(folder / "manifest.json")
    document = json.loads((folder / "manifest.json").read_text())
    assert document == {
        "contractVersion": CONTRACT_VERSION,
        "job": {"name": "demo", "namespace": "", "uid": "12345678-aaaa"},
        "stage": "sft",
        "step": 7,
        "configDigest": config.config_digest,
        "files": [
            {"path": name, "size": size, "sha256": sha256_of(folder / name)}
            for name, size in (("config.json", 2), ("extra/vocab.txt", 3), ("model.safetensors", 7))
        ],
        "verdicts": [],
    }
    assert read_manifest(config, artifact).step == 7
    assert [path.name for path in folder.parent.iterdir()] == ["artifact"]


def test_a_manifest_carries_the_digest_that_was_given(tmp_path: Path) -> None:
    given = "sha256:" + "e" * 64
    config = sft_config(tmp_path).model_copy(update={"config_digest": given})
    artifact = write_artifact(config, ALONE, 7, write_model)
    assert read_manifest(config, artifact).config_digest == given
    assert finished_artifact(config) == artifact


def test_a_failing_writer_leaves_no_artifact(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        write_model(folder)
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "model.safetensors"))

    config = sft_config(tmp_path)
    with pytest.raises(StorageError, match=r"model\.safetensors"):
        write_artifact(config, ALONE, 7, write)

    assert list(Path(config.attempt_folder).iterdir()) == []
    assert finished_artifact(config) is None


def test_a_verified_artifact_is_opened(tmp_path: Path, artifact: Artifact) -> None:
    assert open_artifact(reward_config(tmp_path, artifact), StageName.SFT) == (
        tmp_path / artifact.uri
    )


def spoil_content(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"Weights")


def spoil_size(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"weight")


def remove_file(folder: Path) -> None:
    (folder / "extra" / "vocab.txt").unlink()


def add_file(folder: Path) -> None:
    (folder / "extra" / "modeling.py").write_text("")


def add_link(folder: Path) -> None:
    (folder / "more").symlink_to(folder.parent, target_is_directory=True)


def change_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"step": 7', '"step": 8'))


def remove_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (spoil_content, "file model.safetensors has 7 bytes with digest sha256:"),
        (spoil_size, "file model.safetensors has 6 bytes with digest sha256:"),
        (remove_file, "file extra/vocab.txt with digest sha256:"),
        (add_file, "file extra/modeling.py is not in manifest.json"),
        (add_link, "file more is not in manifest.json"),
        (change_manifest, "manifest.json has digest sha256:"),
        (remove_manifest, "manifest.json is missing"),
    ],
)
def test_an_artifact_that_differs_is_refused_with_stage_file_and_digests(
    tmp_path: Path, artifact: Artifact, spoil: Callable[[Path], None], named: str
) -> None:
    spoil(tmp_path / artifact.uri)

    with pytest.raises(InputError) as caught:
        open_artifact(reward_config(tmp_path, artifact), StageName.SFT)

    message = str(caught.value)
    assert caught.value.exit_code == ExitCode.INPUT
    assert named in message
    assert message.startswith("artifact of stage sft at ")
    # What was only added can be taken away; the work need not be done again.
    stray = spoil in (add_file, add_link)
    assert message.endswith("; remove it" if stray else "; run stage sft again")
    if spoil in (spoil_content, spoil_size, change_manifest):
        assert message.count("sha256:") == 2


def test_another_digest_than_promised_is_refused(tmp_path: Path, artifact: Artifact) -> None:
    other = Artifact(uri=artifact.uri, digest="sha256:" + "0" * 64)

    with pytest.raises(InputError, match="was promised"):
        open_artifact(reward_config(tmp_path, other), StageName.SFT)


def test_a_stage_without_artifact_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"artifacts\.sft.*run that stage first"):
        open_artifact(reward_config(tmp_path), StageName.SFT)


def test_an_artifact_outside_of_storage_is_refused(tmp_path: Path, artifact: Artifact) -> None:
    outside = Artifact(uri=f"../{tmp_path.name}/../../x", digest=artifact.digest)

    with pytest.raises(InputError, match=r"lies outside of storage"):
        open_artifact(reward_config(tmp_path, outside), StageName.SFT)


def test_finished_work_is_found_in_this_and_earlier_attempts(
    tmp_path: Path, artifact: Artifact
) -> None:
    assert finished_artifact(sft_config(tmp_path, attempt=1)) == artifact
    assert finished_artifact(sft_config(tmp_path, attempt=5)) == artifact


def test_the_latest_finished_attempt_wins(tmp_path: Path, artifact: Artifact) -> None:
    second = write_artifact(sft_config(tmp_path, attempt=2), ALONE, 7, write_model)

    assert finished_artifact(sft_config(tmp_path, attempt=3)) == second
    assert finished_artifact(sft_config(tmp_path, attempt=1)) == artifact


@pytest.mark.usefixtures("artifact")
def test_finished_work_of_another_configuration_is_not_passed_over(tmp_path: Path) -> None:
    config, made = sft_config(tmp_path, attempt=2, seed=2), sft_config(tmp_path)
    with pytest.raises(InputError) as caught:
        finished_artifact(config)
    for word in (config.config_digest, made.config_digest, str(tmp_path / made.artifact_uri)):
        assert word in str(caught.value)

    artifact = write_artifact(config, ALONE, 7, write_model)
    assert finished_artifact(config) == artifact


HIDDEN_FILES = (".DS_Store", "extra/.nfs000000000001", "._config.json", ".cache/hub/x.metadata")


@pytest.mark.parametrize("name", HIDDEN_FILES)
def test_what_desktops_and_servers_leave_makes_no_other_artifact(
    tmp_path: Path, artifact: Artifact, name: str
) -> None:
    path = tmp_path / artifact.uri / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\0\0\0\1Bud1")
    found = open_artifact(reward_config(tmp_path, artifact), StageName.SFT)
    assert found == tmp_path / artifact.uri
    assert finished_artifact(sft_config(tmp_path)) == artifact


def test_a_stray_file_does_not_have_finished_work_done_again(
    tmp_path: Path, artifact: Artifact
) -> None:
    add_file(tmp_path / artifact.uri)
    with pytest.raises(InputError, match=r"stage sft at .*modeling\.py is not in .*; remove it$"):
        finished_artifact(sft_config(tmp_path))


@pytest.mark.parametrize("spoil", [spoil_content, remove_file])
def test_broken_finished_work_does_not_count(
    tmp_path: Path,
    artifact: Artifact,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[Path], None],
) -> None:
    spoil(tmp_path / artifact.uri)
    with caplog.at_level(logging.WARNING):
        assert finished_artifact(sft_config(tmp_path)) is None
    assert "is not used" in caplog.text


def test_work_that_has_only_begun_is_not_finished(tmp_path: Path) -> None:
    assert finished_artifact(sft_config(tmp_path)) is None
    (tmp_path / "demo-12345678/sft/attempt-1/.artifact.partial").mkdir(parents=True)
    assert finished_artifact(sft_config(tmp_path)) is None


@pytest.mark.field("ModelSource.from_stage")
def test_a_model_from_a_stage_is_its_verified_artifact(tmp_path: Path, artifact: Artifact) -> None:
    source = ModelSource(from_stage=StageName.SFT)

    found = model_folder(source, reward_config(tmp_path, artifact), FIELD)
    assert found == ModelLocation(str(tmp_path / artifact.uri))

    spoil_content(tmp_path / artifact.uri)
    other = reward_config(tmp_path, Artifact(uri=artifact.uri, digest="sha256:" + "0" * 64))
    with pytest.raises(InputError):
        model_folder(source, other, FIELD)


@pytest.mark.field("ModelSource.uri", instead="hf://org/name")
def test_models_in_folders_and_claims(tmp_path: Path) -> None:
    folder = tmp_path / "模型" / "sft"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    config = reward_config(tmp_path, claims={"models": str(tmp_path / "模型")})

    for uri in (f"file://{folder}", "pvc://models/sft"):
        assert model_folder(ModelSource(uri=uri), config, FIELD) == ModelLocation(str(folder))


def test_a_model_on_the_hub(tmp_path: Path) -> None:
    config = reward_config(tmp_path)

    for uri, revision in (("hf://org/name@v1", "v1"), ("hf://org/name", None)):
        found = model_folder(ModelSource(uri=uri), config, FIELD)
        assert found == ModelLocation("org/name", revision, on_hub=True)


def test_a_scratch_model_is_its_sizes_and_its_tokenizer(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer"
    sizes = ScratchModel(layers=2, hidden_size=16, heads=2, tokenizer=f"file://{tokenizer}")
    source = ModelSource(uri="scratch://llama", scratch=sizes)
    config = reward_config(tmp_path)

    with pytest.raises(InputError, match=r"scratch\.tokenizer: .*tokenizer does not exist"):
        model_folder(source, config, FIELD)
    tokenizer.mkdir()
    with pytest.raises(InputError, match=r"scratch\.tokenizer: .*none of tokenizer\*, \*vocab\*"):
        model_folder(source, config, FIELD)
    (tokenizer / "tokenizer.json").write_text("{}")

    found = model_folder(source, config, FIELD)
    assert found == ModelLocation(str(tokenizer), None, sizes, "llama")


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("file://{root}/missing", "missing does not exist; check the path"),
        ("file://{root}/file", "file is a file, not a folder"),
        ("file://{root}", "has no config.json; name a folder that"),
        ("pvc://models/missing", "missing does not exist"),
        ("pvc://other/x", "claim other is not mounted"),
        ("pvc://models/../x", "leaves claim models"),
    ],
)
def test_a_model_that_is_not_there_names_field_value_and_remedy(
    tmp_path: Path, uri: str, problem: str
) -> None:
    (tmp_path / "file").write_text("")
    config = reward_config(tmp_path, claims={"models": str(tmp_path)})

    with pytest.raises((InputError, ConfigError)) as caught:
        model_folder(ModelSource(uri=uri.format(root=tmp_path)), config, FIELD)

    assert problem in str(caught.value)
    assert str(caught.value).startswith(f"{FIELD}.uri: ")


def test_two_ranks_write_one_artifact_and_both_know_it(tmp_path: Path) -> None:
    config = sft_config(tmp_path)
    program = str(Path(__file__).parents[1] / "programs" / "artifact_rank.py")
    ranks = [
        subprocess.Popen(
            [sys.executable, program, str(rank), str(tmp_path / "store"), config.to_json()],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=120)[0] for rank in ranks]

    assert [rank.returncode for rank in ranks] == [0, 0]
    first, second = (Artifact.model_validate_json(output) for output in outputs)
    assert first == second == finished_artifact(config)
    files = [entry.path for entry in read_manifest(config, first).files]
    assert files == ["model-0.safetensors", "model-1.safetensors"]
