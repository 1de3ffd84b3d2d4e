"""Where a launcher stands: its node among the others, and how long it may take to stop.

Called by `launch`; reads the environment that the pod gives, never how to train.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from rlhf_api.errors import ConfigError, UsageError
from rlhf_api.names import EnvVar
from rlhf_api.v1alpha1 import StageConfig

DEFAULT_GRACE_PERIOD_SECONDS = 300.0
RESERVE_SECONDS = 10.0
"""What is left of the grace period when ranks that did not stop are killed: time to say so."""


@dataclass(frozen=True)
class Place:
    """This node among the others.

    Attributes:
        node: its number, from 0.
        nodes: number of nodes.
        processes: ranks on each.
        address: host of node 0.
        port: rendezvous port on it; 0, with a single node only, for any free one.
        run: name of the attempt, the same on every node.
    """

    node: int
    nodes: int
    processes: int
    address: str
    port: int
    run: str

    @property
    def ranks(self) -> range:
        """The ranks of this node."""
        return range(self.node * self.processes, (self.node + 1) * self.processes)


def place_of(config: StageConfig, environment: Mapping[str, str]) -> Place:
    """This node, by the pod's completion index.

    Raises:
        UsageError: no index, or none of this stage.
        ConfigError: several nodes and no port to meet on.
    """
    if config.nodes > 1 and config.master_port == 0:
        raise ConfigError(
            f"stage.json: masterPort is 0 with {config.nodes} nodes, which cannot agree on a free "
            "one; set it"
        )
    text = environment.get(EnvVar.COMPLETION_INDEX)
    if text is None and config.nodes == 1:
        text = "0"
    if text is None or not text.isdecimal() or int(text) >= config.nodes:
        raise UsageError(
            f"environment: {EnvVar.COMPLETION_INDEX} is {text!r}; with {config.nodes} nodes it "
            f"must be a number from 0 to {config.nodes - 1}"
        )
    return Place(
        node=int(text),
        nodes=config.nodes,
        processes=config.processes_per_node,
        address=config.master_address,
        port=config.master_port,
        run=f"{config.job.uid}-{config.stage}-{config.attempt}",
    )


def stop_patience(environment: Mapping[str, str]) -> float:
    """Seconds that ranks get to stop: the grace period without a reserve of ours.

    Raises:
        UsageError: the variable holds no positive number.
    """
    text = environment.get(EnvVar.GRACE_PERIOD_SECONDS, str(DEFAULT_GRACE_PERIOD_SECONDS))
    try:
        grace = float(text)
    except ValueError:
        grace = 0.0
    if not 0 < grace < float("inf"):
        raise UsageError(
            f"environment: {EnvVar.GRACE_PERIOD_SECONDS} is {text!r}; give a positive number of "
            "seconds"
        )
    return max(grace - RESERVE_SECONDS, grace / 2)
