"""The order of tests: those with a process group of their own before those that share one.

torch has one default process group in a process, and DeepSpeed keeps hold of it: whoever starts and
ends one has to come first.
"""

import pytest

pytest_plugins = ["cluster.kube_fixtures"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("own_process_group") is None)
