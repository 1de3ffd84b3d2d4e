"""Which device is chosen from what is asked and what is there, and what a stage without it says."""

import itertools
from pathlib import Path

import pytest
import torch
from launching import stage_config

from rlhf_api.errors import ConfigError
from rlhf_api.names import StageName
from rlhf_api.v1alpha1 import StageConfig
from rlhf_trainer.process.device import (
    WITHOUT_GPUS,
    GPUs,
    Wish,
    choose_device,
    settle_device,
    visible_gpus,
)

NONE = "CUDA needs a GPU for each rank"
AUTO = "Auto puts no CPU in the place of GPUs"


@pytest.mark.parametrize(
    ("device", "requested", "visible", "processes", "chosen"),
    [
        ("Auto", 0, 0, 1, "cpu"),
        ("Auto", 0, 0, 2, "cpu"),
        ("Auto", 0, 1, 1, "cuda"),
        ("Auto", 0, 1, 2, "cpu"),
        ("Auto", 0, 8, 2, "cuda"),
        ("Auto", 1, 0, 1, AUTO),
        ("Auto", 8, 0, 8, AUTO),
        ("Auto", 1, 1, 1, "cuda"),
        ("Auto", 1, 1, 2, AUTO),
        ("Auto", 8, 4, 8, AUTO),
        ("Auto", 8, 8, 8, "cuda"),
        ("Auto", 8, 8, 1, "cuda"),
        ("CUDA", 0, 0, 1, NONE),
        ("CUDA", 1, 0, 1, NONE),
        ("CUDA", 0, 1, 1, "cuda"),
        ("CUDA", 0, 1, 2, NONE),
        ("CUDA", 2, 2, 2, "cuda"),
        ("CPU", 0, 0, 1, "cpu"),
        ("CPU", 0, 8, 1, "cpu"),
        ("CPU", 8, 8, 8, "cpu"),
        ("CPU", 8, 0, 8, "cpu"),
    ],
)
def test_the_table(device: str, requested: int, visible: int, processes: int, chosen: str) -> None:
    wish = Wish(StageName.SFT, device, requested, processes)
    if chosen in ("cpu", "cuda"):
        assert choose_device(wish, GPUs(visible)) == chosen
        return
    with pytest.raises(ConfigError, match=chosen) as caught:
        choose_device(wish, GPUs(visible, "" if visible else "Found no NVIDIA driver"))
    told = str(caught.value)
    assert told.startswith("stages.sft.")
    assert told.endswith("or write device: CPU")
    found = f"finds {visible} GPU" if visible else "finds none: Found no NVIDIA driver; see that"
    assert found in told


def test_no_rank_goes_without_its_gpu_and_no_gpu_is_replaced_unasked() -> None:
    numbers = range(4)
    for device, requested, visible, processes in itertools.product(
        ("Auto", "CUDA", "CPU"), numbers, numbers, range(1, 4)
    ):
        wish = Wish(StageName.PPO, device, requested, processes)
        try:
            chosen = choose_device(wish, GPUs(visible))
        except ConfigError:
            assert device == "CUDA" or (device == "Auto" and requested)
            assert visible < processes
            continue
        if chosen == "cuda":
            assert device != "CPU"
            assert visible >= processes
        else:
            assert device != "CUDA"
            assert device == "CPU" or not requested


def with_device(folder: Path, device: str, requested: int = 0) -> StageConfig:
    config = stage_config(folder)
    assert config.sft is not None
    sft = config.sft.model_copy(update={"device": device})
    return config.model_copy(update={"sft": sft, "gpus_requested": requested})


@pytest.mark.field("StageSpec.device")
def test_the_cpu_is_taken_without_a_look_at_gpus(tmp_path: Path) -> None:
    def look() -> GPUs:
        raise AssertionError("GPUs were looked at")

    environment = {"CUDA_VISIBLE_DEVICES": "0,1", "DS_ACCELERATOR": "cuda"}
    assert settle_device(with_device(tmp_path, "CPU", 2), 1, environment, look) == "cpu"
    assert environment == {**WITHOUT_GPUS, "DS_ACCELERATOR": "cpu"}


def test_gpus_that_are_too_few_are_not_seen_by_anybody(tmp_path: Path) -> None:
    environment: dict[str, str] = {}
    config = with_device(tmp_path, "Auto")
    assert settle_device(config, 2, environment, lambda: GPUs(1)) == "cpu"
    assert environment == {**WITHOUT_GPUS, "DS_ACCELERATOR": "cpu"}


def test_gpus_that_are_chosen_stay_visible(tmp_path: Path) -> None:
    environment = {"CUDA_VISIBLE_DEVICES": "3"}
    config = with_device(tmp_path, "Auto", 1)
    assert settle_device(config, 1, environment, lambda: GPUs(1)) == "cuda"
    assert environment == {"CUDA_VISIBLE_DEVICES": "3", "DS_ACCELERATOR": "cuda"}


def test_tests_see_no_gpu_and_are_told_why() -> None:
    found = visible_gpus()
    assert found.count == 0
    assert found.cause
    assert "\n" not in found.cause


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_is_seen_and_taken_by_one_rank(tmp_path: Path) -> None:
    environment: dict[str, str] = {}
    assert visible_gpus() == GPUs(torch.cuda.device_count())
    assert settle_device(with_device(tmp_path, "CUDA", 1), 1, environment) == "cuda"
    assert environment == {"DS_ACCELERATOR": "cuda"}
