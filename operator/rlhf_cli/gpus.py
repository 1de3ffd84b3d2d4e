"""Which stages of a local run would meet on this machine's GPUs. Called by `runner`.

Nothing is asked of a driver, which would need the training stack: where a GPU may be, stages that
would take one follow one another, and nothing else depends on the answer.
"""

from collections.abc import Mapping
from pathlib import Path

from rlhf_api.names import StageName
from rlhf_api.v1alpha1 import RLHFJob
from rlhf_cli.local_job import local_environment

_DEVICES = ("nvidia[0-9]*", "kfd", "dxg")
"""Device files of the drivers: of NVIDIA, of AMD, and of either under WSL."""
_VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
_HIDDEN = ("", "-1")


def stages_on_gpus(
    job: RLHFJob, environment: Mapping[str, str], devices: Path = Path("/dev")
) -> frozenset[StageName]:
    """The stages that take GPUs here, or may.

    Args:
        job: localized.
        environment: what the stages are given beside their own variables.
        devices: folder of device files.
    """
    found = set()
    for name, stage in job.spec.stages.present().items():
        given = {**environment, **local_environment(job, stage)}
        asked = stage.device == "CUDA" or job.spec.gpus(name) > 0
        if stage.device != "CPU" and (asked or _may_see_gpus(given, devices)):
            found.add(name)
    return frozenset(found)


def _may_see_gpus(environment: Mapping[str, str], devices: Path) -> bool:
    hidden = any(environment.get(name) in _HIDDEN for name in _VISIBLE)
    return not hidden and any(True for each in _DEVICES for _ in devices.glob(each))
