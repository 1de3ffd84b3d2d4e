"""Which device the ranks of this node compute on.

Called by `launch` before a rank is started and anything is loaded, and by every rank as it starts,
with the same answer. What decides is pure; `visible_gpus` alone asks PyTorch, and is not called
where the CPU is asked for.
"""

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Literal

from rlhf_api.errors import ConfigError
from rlhf_api.names import StageName
from rlhf_api.v1alpha1 import StageConfig

DeviceType = Literal["cuda", "cpu"]

WITHOUT_GPUS: Mapping[str, str] = {"CUDA_VISIBLE_DEVICES": "-1", "HIP_VISIBLE_DEVICES": "-1"}
"""Environment in which neither PyTorch nor a library finds a GPU. An empty value would hide those
of NVIDIA alone."""
_ACCELERATOR = "DS_ACCELERATOR"
"""What DeepSpeed would otherwise look for itself, and find more than was chosen here."""


@dataclass(frozen=True)
class GPUs:
    """What PyTorch sees.

    Attributes:
        count: number of GPUs that can be used.
        cause: why there are none, in the words of PyTorch or the driver.
    """

    count: int
    cause: str = ""


@dataclass(frozen=True)
class Wish:
    """What a stage asks of one node.

    Attributes:
        stage: whose it is.
        device: its field `device`.
        requested: GPUs in resources.limits.
        processes: ranks on the node.
    """

    stage: StageName
    device: str
    requested: int
    processes: int


def choose_device(wish: Wish, gpus: GPUs) -> DeviceType:
    """The device of every rank of the node.

    Raises:
        ConfigError: GPUs are asked for, by `device` or by resources.limits, and there are none, or
            fewer than ranks.
    """
    if wish.device == "CPU":
        return "cpu"
    asked = wish.device == "CUDA" or wish.requested > 0
    if gpus.count >= wish.processes:
        return "cuda"
    if not asked:
        return "cpu"
    if wish.device == "CUDA":
        why = (
            f"stages.{wish.stage}.device: CUDA needs a GPU for each rank ({wish.processes} on this "
            "node)"
        )
    else:
        why = (
            f"stages.{wish.stage}.device: Auto puts no CPU in the place of GPUs that "
            f"resources.limits asks for ({wish.requested}), and needs one for each rank "
            f"({wish.processes} on this node)"
        )
    if gpus.count == 0:
        raise ConfigError(
            f"{why}, but PyTorch finds none: {gpus.cause or 'no driver shows one'}; see that the "
            "node has the GPU's driver and device plugin (runtimeClassName may have to name its "
            "runtime) and that the image's PyTorch is built for it, or write device: CPU"
        )
    raise ConfigError(
        f"{why}, but PyTorch finds {gpus.count} GPU{'s' * (gpus.count > 1)}; lower "
        "processesPerNode, ask for as many GPUs in resources.limits, or write device: CPU"
    )


def visible_gpus() -> GPUs:
    """The GPUs that PyTorch can use here, or why there are none; takes no memory of them."""
    import torch

    if torch.cuda.is_available():
        return GPUs(torch.cuda.device_count())
    if torch.version.cuda is None and torch.version.hip is None:
        return GPUs(0, f"torch {torch.__version__} is built for the CPU alone")
    try:
        torch.cuda.init()
    except (AssertionError, RuntimeError) as error:
        return GPUs(0, " ".join(str(error).split()))
    return GPUs(0)


def settle_device(
    config: StageConfig,
    processes: int,
    environment: MutableMapping[str, str],
    look: Callable[[], GPUs] = visible_gpus,
) -> DeviceType:
    """Choose the device, and keep every library of this process and its children to it.

    Args:
        config: of the stage.
        processes: ranks on this node.
        environment: of the process; on the CPU no GPU is to be found in it.
        look: what counts GPUs; not called where the stage asks for the CPU.

    Raises:
        ConfigError: as `choose_device`.
    """
    wish = Wish(config.stage, config.spec.device, config.gpus_requested, processes)
    device = choose_device(wish, GPUs(0) if wish.device == "CPU" else look())
    environment[_ACCELERATOR] = device
    if device == "cpu":
        environment.update(WITHOUT_GPUS)
    return device
