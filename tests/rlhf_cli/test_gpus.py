"""Which stages would share GPUs, by what they ask for and what the machine has; how they run."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf_api.v1alpha1 import RLHFJob
from rlhf_cli.gpus import stages_on_gpus

BASE = {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "file:///rows.jsonl"}}
LIMITS = {"resources": {"limits": {"amd.com/gpu": 1}}}


def hidden(value: str) -> dict[str, Any]:
    return {"env": [{"name": "CUDA_VISIBLE_DEVICES", "value": value}]}


@pytest.mark.parametrize("card", [None, "nvidia0", "kfd", "dxg", "nvidiactl"])
@pytest.mark.parametrize(
    ("own", "without", "beside"),
    [
        ({}, False, True),
        ({"device": "CPU"}, False, False),
        ({"device": "CPU"} | LIMITS, False, False),
        ({"device": "CUDA"}, True, True),
        (LIMITS, True, True),
        (hidden("-1"), False, False),
        (hidden(""), False, False),
        (hidden("0"), False, True),
    ],
)
def test_who_takes_gpus(
    tmp_path: Path, card: str | None, own: dict[str, Any], without: bool, beside: bool
) -> None:
    if card is not None:
        (tmp_path / card).touch()
    stages = {"sft": BASE | own, "reward": BASE | {"device": "CPU"}}
    job = RLHFJob.from_document(
        {
            "apiVersion": "rlhf.dev/v1alpha1",
            "kind": "RLHFJob",
            "metadata": {"name": "reviews"},
            "spec": {"stages": stages},
        }
    )
    there = card in ("nvidia0", "kfd", "dxg")
    expected = {"sft"} if (beside if there else without) else set()
    assert stages_on_gpus(job, {}, tmp_path) == expected
    if own == {}:
        assert stages_on_gpus(job, {"HIP_VISIBLE_DEVICES": "-1"}, tmp_path) == set()


@pytest.mark.parametrize(("device", "together"), [("CPU", True), ("CUDA", False)])
def test_independent_stages_share_processors_and_no_gpus(
    bench: Any, device: str, together: bool
) -> None:
    bench.write(("sft",))
    document = yaml.safe_load(bench.file.read_text())
    sft = document["spec"]["stages"]["sft"] | {"device": device}
    document["spec"]["stages"] = {"sft": sft, "reward": sft}
    bench.file.write_text(yaml.safe_dump(document))
    bench.go(sft=[{"seconds": 0.1}])
    assert bench.run() == 0
    began, ended = bench.stage("reward").attempt_start_time, bench.stage("sft").completion_time
    assert (began < ended) == together
