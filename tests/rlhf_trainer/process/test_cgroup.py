"""The memory that control groups leave, of both versions; the rest of them is in test_place.py."""

from pathlib import Path

import pytest

from rlhf_trainer.process.cgroup import free_memory


def group(root: Path, folder: str, files: dict[str, str]) -> None:
    path = root / folder
    path.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (path / name).write_text(text)


def test_cgroup_2_in_a_container(tmp_path: Path) -> None:
    group(tmp_path, "proc/self", {"cgroup": "0::/\n"})
    group(
        tmp_path,
        "sys/fs/cgroup",
        {
            "memory.max": "1000\n",
            "memory.current": "600\n",
            "memory.stat": "anon 500\ninactive_file 80\n",
        },
    )

    assert free_memory(tmp_path) == 1000 - (600 - 80)


def test_cgroup_2_takes_the_tightest_limit_on_the_way_up(tmp_path: Path) -> None:
    group(tmp_path, "proc/self", {"cgroup": "0::/pods/pod1/trainer\n"})
    base = tmp_path / "sys/fs/cgroup"
    group(base, "pods/pod1/trainer", {"memory.max": "max\n", "memory.current": "100\n"})
    group(base, "pods/pod1", {"memory.max": "500\n", "memory.current": "200\n"})
    group(base, "pods", {"memory.max": "9000\n", "memory.current": "300\n"})

    assert free_memory(tmp_path) == 300


def test_cgroup_1_in_a_container_whose_path_is_the_hosts(tmp_path: Path) -> None:
    text = "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n1:name=systemd:/docker/abc\n"
    group(tmp_path, "proc/self", {"cgroup": text})
    group(
        tmp_path,
        "sys/fs/cgroup/memory",
        {
            "memory.limit_in_bytes": "1000\n",
            "memory.usage_in_bytes": "700\n",
            "memory.stat": "cache 90\ninactive_file 10\ntotal_inactive_file 50\n",
        },
    )

    assert free_memory(tmp_path) == 1000 - (700 - 50)


@pytest.mark.parametrize("limit", ["max", "9223372036854771712"])
def test_no_limit_is_none(tmp_path: Path, limit: str) -> None:
    group(tmp_path, "proc/self", {"cgroup": "0::/\n4:memory:/\n"})
    group(tmp_path, "sys/fs/cgroup", {"memory.max": limit, "memory.current": "1"})
    files = {"memory.limit_in_bytes": limit, "memory.usage_in_bytes": "1"}
    group(tmp_path, "sys/fs/cgroup/memory", files)

    assert free_memory(tmp_path) is None


def test_a_machine_without_cgroups_has_no_limit(tmp_path: Path) -> None:
    assert free_memory(tmp_path) is None
