"""The order of stages, derived from who reads whose artifact. Pure."""

from graphlib import CycleError, TopologicalSorter

from rlhf_api.names import StageName
from rlhf_api.v1alpha1.stages import Stages


def stage_inputs(stages: Stages) -> dict[StageName, dict[str, StageName]]:
    """For each stage that is there, the stages it reads by the path of the reading field.

    Raises:
        ValueError: a field reads a stage that is not there; names both.
    """
    present = stages.present()
    inputs: dict[StageName, dict[str, StageName]] = {}
    for name, stage in present.items():
        inputs[name] = {}
        for field, source in stage.sources().items():
            if source.from_stage is None:
                continue
            if source.from_stage not in present:
                raise ValueError(
                    f"stages.{name}.{field}.fromStage: stage {name} reads stage "
                    f"{source.from_stage}, which is not there; add stages.{source.from_stage}, "
                    f"or give the model by uri"
                )
            inputs[name][field] = source.from_stage
    return inputs


def stage_order(stages: Stages) -> tuple[StageName, ...]:
    """The stages so that each follows all that it reads; ties in the order of StageName.

    Raises:
        ValueError: stages read each other, or one that is not there; names the stages.
    """
    inputs = stage_inputs(stages)
    sorter = TopologicalSorter({name: set(read.values()) for name, read in inputs.items()})
    try:
        sorter.prepare()
    except CycleError as error:
        cycle = " reads ".join(reversed([str(name) for name in error.args[1]]))
        raise ValueError(
            f"stages read each other: {cycle}; give one of their models by uri"
        ) from error
    order: list[StageName] = []
    while sorter.is_active():
        ready = [name for name in StageName if name in sorter.get_ready()]
        order.extend(ready)
        sorter.done(*ready)
    return tuple(order)
