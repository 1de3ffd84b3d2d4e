"""A veth pair between the machine and a sandbox, with a network of its own."""

import json
import subprocess
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path

from cluster.binaries import locked

RANGE = IPv4Network("198.18.64.0/18")
PREFIX = 30
INNER = "machine"
"""Name of the sandbox's end."""
COMMAND_SECONDS = 20
NAME_LENGTH = 15
"""The kernel's limit."""


class LinkError(RuntimeError):
    """A link cannot be made."""


def connect(
    name: str, init: int, inside: Callable[[list[str]], list[str]], root: Path
) -> tuple[str, str]:
    """Make the link, unless it is there; gives the machine's address and the sandbox's.

    Args:
        name: of the machine's end.
        init: a process of the sandbox.
        inside: makes a command line that runs there.
        root: where the lock of all links lies.
    """
    if len(name) > NAME_LENGTH:
        raise LinkError(f"link {name}: longer than {NAME_LENGTH} characters; choose a shorter name")
    # An address on a link is what marks its network as taken.
    with locked(root / "links.lock"):
        links = _links()
        if name in links:
            outer = links[name][0]
            return str(outer.ip), str(outer.ip + 1)
        network = first_free(each.network for found in links.values() for each in found)
        outside, within = network[1], network[2]
        _make(name, init, inside, outside, within)
    return str(outside), str(within)


def first_free(taken: Iterable[IPv4Network]) -> IPv4Network:
    """The first network of the range that overlaps none of those."""
    own = [each for each in taken if each.overlaps(RANGE)]
    for network in RANGE.subnets(new_prefix=PREFIX):
        if not any(network.overlaps(each) for each in own):
            return network
    raise LinkError(f"all networks of {RANGE} are taken by links of this machine; remove one")


def _make(
    name: str,
    init: int,
    inside: Callable[[list[str]], list[str]],
    outside: IPv4Address,
    within: IPv4Address,
) -> None:
    peer = ["type", "veth", "peer", "name", INNER, "netns", str(init)]
    _run(["ip", "link", "add", name, *peer])
    try:
        _run(["ip", "address", "add", f"{outside}/{PREFIX}", "dev", name])
        _run(["ip", "link", "set", name, "up"])
        _run(inside(["ip", "address", "add", f"{within}/{PREFIX}", "dev", INNER]))
        _run(inside(["ip", "link", "set", INNER, "up"]))
    except LinkError:
        _run(["ip", "link", "delete", name])
        raise


def _links() -> dict[str, list[IPv4Interface]]:
    """The IPv4 addresses of the machine by link."""
    links = json.loads(_run(["ip", "-json", "-4", "address", "show"]))
    return {
        link["ifname"]: [
            IPv4Interface(f"{each['local']}/{each['prefixlen']}") for each in link["addr_info"]
        ]
        for link in links
        if link
    }


def _run(command: list[str]) -> str:
    line = " ".join(command)
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=COMMAND_SECONDS
        )
    except FileNotFoundError as error:
        raise LinkError(f"{line}: no such program; install iproute2") from error
    except subprocess.TimeoutExpired as error:
        raise LinkError(f"{line}: not finished after {COMMAND_SECONDS} s") from error
    if done.returncode:
        raise LinkError(f"{line}: {done.stderr.strip()}")
    return done.stdout
