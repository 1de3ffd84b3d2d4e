"""The order of tests: those with a process group of their own before those that share one.

torch has one default process group in a process, and DeepSpeed keeps hold of it: whoever starts and
ends one has to come first.
"""

import os
import tempfile

import pytest
from hypothesis import settings

from rlhf_api.names import EnvVar
from rlhf_trainer.process.device import WITHOUT_GPUS

pytest_plugins = ["cluster.kube_fixtures", "ignored_fields"]

# No test depends on how fast the machine is.
settings.register_profile("any-machine", settings(), deadline=None)
settings.load_profile("any-machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("own_process_group") is None)


def pytest_configure(config: pytest.Config) -> None:
    """Tokens are kept for these tests alone, and go with them; GPUs are for `-m gpu` alone, since
    all other tests state what the CPU computes."""
    if config.option.markexpr != "gpu":
        os.environ.update(WITHOUT_GPUS)
    folder = tempfile.TemporaryDirectory(prefix="rlhf-cache-")
    config.add_cleanup(folder.cleanup)
    os.environ[EnvVar.CACHE] = folder.name
