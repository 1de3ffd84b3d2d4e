"""Sandboxes: what is done inside is not seen outside, and nothing is left, however they end."""

import os
import pty
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from ipaddress import IPv4Network
from pathlib import Path

import psutil
import pytest
from cluster import packages, sandbox_link
from cluster.cgroups import HIERARCHIES, CgroupError, find_cgroups, remove_cgroups
from cluster.machine import run
from cluster.sandbox import INSIDE, Sandbox, SandboxError, instance, named
from cluster.sandbox_init import HIDDEN_SYSCTLS, mount_points
from waiting import eventually

pytestmark = pytest.mark.timeout(60)

SECONDS = 20
BRIDGE, CHAIN = "sb-bridge", "SANDBOX-TEST"
MADE = ("/var/lib/cni/results", "/var/lib/new", "/var/log/containers/x", "/run/containerd")
SYSCTLS = [Path("/proc/sys") / name for name in HIDDEN_SYSCTLS]
Start = Callable[[str], tuple[subprocess.Popen[str], Sandbox]]
STARTER = """
import sys, threading, time
from pathlib import Path
from cluster.sandbox import instance
sandbox = instance(Path(sys.argv[1]), lasting=sys.argv[2] == "lasting")
thread = threading.Thread(target=sandbox.start)
thread.start()
thread.join()
print(sandbox.folder, flush=True)
if sys.argv[2] == "dying":
    time.sleep(1000)
"""


@pytest.fixture(scope="module", autouse=True)
def _root_only() -> None:
    if reason := packages.reason_against():
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    packages.require()


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """A running sandbox."""
    with instance(tmp_path_factory.mktemp("one")) as running:
        yield running


def told(sandbox: Sandbox | None, *argv: str) -> str:
    """What a program says that succeeds, inside or on the machine."""
    command = argv if sandbox is None else sandbox.command(list(argv))
    return run(*command, seconds=SECONDS)


def until(condition: Callable[[], object], what: str) -> None:
    """Wait no longer than a test may take."""
    eventually(condition, SECONDS, 0.02, what=what)


def mentioning(text: str) -> list[list[str]]:
    """Command lines of processes, on the machine or below, that hold a text."""
    found = (process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"]))
    return [line for line in found if text in " ".join(line)]


def trace(sandbox: Sandbox) -> dict[str, object]:
    """What the sandbox, or the programs of these tests in it, could leave on the machine."""
    links = [name for _, name in socket.if_nameindex()]
    fixed = ("/run", "/sys", "/proc", "/var/lib", "/var/log", str(sandbox.folder))
    return {
        "links": [name for name in links if name in (BRIDGE, sandbox.link)],
        "chains": CHAIN in told(None, "iptables-save"),
        "mounts": [str(point) for point in mount_points() if str(point).startswith(fixed)],
        "processes": mentioning(str(sandbox.folder)),
        "cgroups": find_cgroups(sandbox.cgroup_prefix),
        "sysctls": [path.read_text() for path in SYSCTLS],
        "places": [place for place in MADE if Path(place).exists()],
        "files": list(sandbox.folder.glob("*")),
    }


def disturb(sandbox: Sandbox) -> None:
    """Do what a cluster does: links, rules, mounts, files, sysctls, cgroups, processes."""
    cgroups = hierarchy() / f"{sandbox.cgroup_prefix}node"
    script = f"""set -eu
        ip link add {BRIDGE} type bridge
        iptables -N {CHAIN}
        mkdir -p {" ".join(MADE)}
        mount -t tmpfs tmpfs /var/lib/new
        for file in {" ".join(map(str, SYSCTLS))}; do echo 7 > $file; done
        mkdir -p {cgroups}/pod/container
        sh -c 'echo 0 > {cgroups}/pod/container/cgroup.procs; exec sleep 1000' {sandbox.folder} &
        setsid sh -c 'sleep 1000; : {sandbox.folder}' &
        """
    told(sandbox, "sh", "-c", f"({script}) </dev/null >/dev/null 2>&1")
    until(lambda: (cgroups / "pod/container/cgroup.procs").read_text(), "a process in the cgroup")


def hierarchy() -> Path:
    """Where a cgroup is made: any hierarchy of v1, or the only one of v2."""
    return HIERARCHIES / "pids" if (HIERARCHIES / "pids").is_dir() else HIERARCHIES


@pytest.fixture
def start_elsewhere(
    tmp_path: Path,
) -> Iterator[Start]:
    """Have another process, and a thread of it that ends, start a sandbox."""
    with ExitStack() as stack:

        def start(how: str) -> tuple[subprocess.Popen[str], Sandbox]:
            process = subprocess.Popen(
                [sys.executable, "-c", STARTER, str(tmp_path), how],
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
            )
            stack.callback(process.wait, SECONDS)
            stack.callback(process.kill)
            assert process.stdout is not None
            with process.stdout as output:
                sandbox = Sandbox(Path(output.readline().strip()))
            stack.callback(sandbox.stop)
            return process, sandbox

        yield start


def test_two_at_once_do_not_see_each_other_and_leave_nothing(tmp_path: Path) -> None:
    first, second = instance(tmp_path), instance(tmp_path)
    assert first.name != second.name
    before = trace(first)
    with first, second:
        clean = told(second, "ip", "-br", "link"), told(second, "iptables-save")
        disturb(first)
        assert set(told(first, "ls", "/sys/class/net").split()) == {BRIDGE, "lo"}
        assert (told(second, "ip", "-br", "link"), told(second, "iptables-save")) == clean
        assert str(first.folder) not in told(second, "ps", "ax", "-o", "args")
        assert not told(second, "ls", "/var/lib/cni", "/var/log/containers").count("result")
        assert "new" not in told(second, "ls", "/var/lib").split()
        disturb(second)
        outside = trace(first)
        for key in ("links", "chains", "mounts", "sysctls", "places"):
            assert outside[key] == before[key], key
    assert trace(first) == before
    assert not find_cgroups(second.cgroup_prefix)


@pytest.mark.parametrize("path", [*SYSCTLS, Path("/proc/sys/net/ipv4/ip_forward")], ids=str)
def test_a_sysctl_is_written_inside_only(one: Sandbox, path: Path) -> None:
    outside = path.read_text()
    other = str(int(outside) + 1)
    told(one, "sh", "-c", f"echo {other} > {path}")
    inside = told(one, "cat", str(path)).strip()
    assert inside == ("1" if path.name == "ip_forward" else other)
    assert path.read_text() == outside


def test_the_machine_is_seen_but_for_what_is_private(one: Sandbox) -> None:
    assert told(one, "ls", "/run").split() == ["lock", "sysctls"]
    assert "LOWER_UP" in told(one, "ip", "link", "show", "lo")
    for place in (Path("/var/lib/dpkg"), Path("/sys/fs/cgroup"), Path(__file__).parent):
        # Others may make and remove files there between the two looks.
        until(
            lambda at=place: set(told(one, "ls", "-A", str(at)).split()) == set(os.listdir(at)),
            f"{place} is the same inside",
        )


def test_a_program_inside_is_as_one_outside(one: Sandbox, tmp_path: Path) -> None:
    where = {"cwd": tmp_path, "env": os.environ | {"COLOUR": "red"}}
    script = "echo $PWD $COLOUR $(cat); exit 7"
    process = one.exec(
        ["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **where
    )
    assert process.communicate("in", timeout=SECONDS)[0] == f"{tmp_path} red in\n"
    assert process.returncode == 7
    assert one.exec(["/no/such"], stderr=subprocess.DEVNULL).wait(SECONDS) == 127


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("trap 'exit 5' TERM; echo; while :; do sleep 0.01; done", 5),
        ("echo; exec sleep 1000", -signal.SIGTERM),
    ],
    ids=["handled", "deadly"],
)
def test_a_signal_reaches_the_program(one: Sandbox, script: str, code: int) -> None:
    process = one.exec(["sh", "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout as output:
        output.readline()
    process.terminate()
    assert process.wait(SECONDS) == code


def test_a_program_dies_with_its_caller(one: Sandbox, tmp_path: Path) -> None:
    mark = str(tmp_path)
    line = one.command(["sh", "-c", "while :; do sleep 0.1; done", mark])
    caller = subprocess.Popen(["sh", "-c", '"$@"; :', "sh", *line])
    until(lambda: len(mentioning(mark)) > 2, "the program runs")
    caller.kill()
    caller.wait(SECONDS)
    until(lambda: not mentioning(mark), "the program has ended")


def test_orphans_are_reaped(one: Sandbox) -> None:
    told(one, "sh", "-c", "for i in 1 2 3; do (sleep 0.05 & sleep 0.01 &) ; done >/dev/null")
    until(lambda: "sleep" not in told(one, "ps", "ax", "-o", "comm"), "all of them are reaped")
    until(lambda: "Z" not in told(one, "ps", "ax", "-o", "stat"), "no zombie is left")


def test_a_link_reaches_a_server_inside_and_vanishes(tmp_path: Path, one: Sandbox) -> None:
    with instance(tmp_path, lasting=True) as sandbox:
        outside, inside = sandbox.connect()
        assert Sandbox(sandbox.folder).connect() == (outside, inside)
        assert one.connect()[0] != outside
        server = [sys.executable, "-m", "http.server", "8000", "--bind", inside]
        process = sandbox.exec(
            server, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path
        )

        def answer() -> bool:
            try:
                with socket.create_connection((inside, 8000), 1, (outside, 0)) as connection:
                    connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                    return b"200" in connection.recv(100)
            except OSError:
                return False

        until(answer, "the server answers")
    assert process.wait(SECONDS) == -signal.SIGKILL
    assert sandbox.link not in [name for _, name in socket.if_nameindex()]
    assert not answer()


@pytest.mark.parametrize(
    ("taken", "free"),
    [
        ([], "198.18.64.0/30"),
        (["198.18.64.1/30", "10.0.0.1/8"], "198.18.64.4/30"),
        (["198.18.64.6/30"], "198.18.64.0/30"),
        (["198.18.64.0/24"], "198.18.65.0/30"),
    ],
)
def test_the_first_free_network_is_taken(taken: list[str], free: str) -> None:
    networks = [IPv4Network(each, strict=False) for each in taken]
    assert sandbox_link.first_free(networks) == IPv4Network(free)


def test_no_network_is_free_when_one_covers_all() -> None:
    with pytest.raises(sandbox_link.LinkError, match=r"198\.18\.64\.0/18"):
        sandbox_link.first_free([IPv4Network("198.18.0.0/15")])


def test_a_killed_starter_leaves_files_and_empty_cgroups_for_the_next(
    tmp_path: Path, start_elsewhere: Start
) -> None:
    process, sandbox = start_elsewhere("dying")
    before = trace(sandbox)
    disturb(sandbox)
    process.kill()
    process.wait(SECONDS)
    until(sandbox.take_lock, "everything inside has ended")
    sandbox.release()
    left = trace(sandbox)
    assert left["processes"] == []
    for key in ("links", "chains", "mounts", "sysctls", "places"):
        assert left[key] == before[key], key
    assert left["cgroups"]
    with instance(tmp_path) as following:
        assert following.name == sandbox.name
        assert not find_cgroups(sandbox.cgroup_prefix)


def test_what_a_killed_one_has_left_goes_with_the_start_of_another(
    tmp_path: Path, start_elsewhere: Start
) -> None:
    process, killed = start_elsewhere("dying")
    disturb(killed)
    with named(tmp_path, "runs") as runs:
        disturb(runs)
        assert find_cgroups(killed.cgroup_prefix)
        process.kill()
        process.wait(SECONDS)
        until(killed.take_lock, "everything inside has ended")
        killed.release()
        with named(tmp_path, "next"):
            assert not find_cgroups(killed.cgroup_prefix)
            assert find_cgroups(runs.cgroup_prefix)
            assert killed.take_lock()


def test_a_lasting_one_outlives_its_starter_until_it_is_stopped(
    tmp_path: Path, start_elsewhere: Start
) -> None:
    process, sandbox = start_elsewhere("lasting")
    assert process.wait(SECONDS) == 0
    assert sandbox.init is not None
    assert os.getsid(sandbox.init) != os.getsid(0), "a terminal that closes would end it"
    disturb(sandbox)
    with pytest.raises(SandboxError, match="already running"):
        Sandbox(sandbox.folder).start()
    with instance(tmp_path) as other:
        assert other.name != sandbox.name
    sandbox.stop()
    assert not mentioning(str(sandbox.folder))
    assert not find_cgroups(sandbox.cgroup_prefix)
    sandbox.stop()
    with pytest.raises(SandboxError, match="not running"):
        sandbox.command(["true"])


def test_a_recycled_process_id_is_not_killed(start_elsewhere: Start) -> None:
    process, sandbox = start_elsewhere("lasting")
    process.wait(SECONDS)
    file = sandbox.folder / "sandbox" / "init.json"
    content, stranger = file.read_text(), subprocess.Popen(["sleep", "1000"])
    try:
        file.write_text(content.replace(f'"pid": {sandbox.init}', f'"pid": {stranger.pid}'))
        assert sandbox.init is None
        file.write_text(content)
        sandbox.stop()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait(SECONDS)


def test_a_sandbox_that_cannot_start_says_why_and_leaves_nothing() -> None:
    with pytest.raises(SandboxError, match="XDG_CACHE_HOME"):
        Sandbox(Path("/run/c0")).start()
    assert not Path("/run/c0").exists()


def test_a_cgroup_in_use_is_named(tmp_path: Path) -> None:
    prefix = f"rlhf-test-{os.getpid()}-"
    cgroup = hierarchy() / f"{prefix}a" / "b"
    cgroup.mkdir(parents=True)
    with subprocess.Popen(["sleep", "1000"]) as process:
        try:
            (cgroup / "cgroup.procs").write_text(str(process.pid))
            with pytest.raises(CgroupError, match=rf"{prefix}a/b.*\['{process.pid}'\]"):
                remove_cgroups(prefix, 0.1)
        finally:
            process.kill()
    remove_cgroups(prefix)
    assert not find_cgroups(prefix)


@pytest.mark.parametrize(("script", "code"), [("exit 3", 3), ("kill -KILL $$", 137)])
def test_a_command_is_run_in_a_new_one(tmp_path: Path, script: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cluster.sandbox", "--", "sh", "-c", f"echo ${INSIDE}; {script}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
        env=os.environ
        | {"PYTHONPATH": str(Path(__file__).parents[1]), "XDG_CACHE_HOME": str(tmp_path)},
    )
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout.startswith(str(tmp_path))
    assert not Path(done.stdout.strip(), "sandbox").exists()


def test_an_interrupt_of_the_terminal_reaches_the_program_once(tmp_path: Path) -> None:
    script = (
        "trap 'n=$((n+1))' INT; echo up; while [ -z $n ]; do sleep 0.1; done; sleep 0.5; exit $n"
    )
    place = {"PYTHONPATH": str(Path(__file__).parents[1]), "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "cluster.sandbox", "--", "sh", "-c", script]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(command[0], command, os.environ | place)
    shown = b""
    while b"up" not in shown:
        readable, _, _ = select.select([terminal], [], [], SECONDS)
        assert readable, f"the command did not say that it is up within {SECONDS} s: {shown!r}"
        shown += os.read(terminal, 100)
    os.write(terminal, b"\x03")
    ended: list[int] = []
    until(lambda: ended.extend(os.waitpid(pid, os.WNOHANG)) or ended[-2], "the command ends")
    os.close(terminal)
    assert os.waitstatus_to_exitcode(ended[-1]) == 1
