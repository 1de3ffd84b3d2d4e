"""The order of stages, derived from who reads whose artifact. Pure."""

from graphlib import CycleError, TopologicalSorter
from itertools import combinations, permutations

from rlhf_api.contract import CelRule
from rlhf_api.names import StageName
from rlhf_api.v1alpha1.stages import Stages

MODEL_FIELDS: dict[StageName, tuple[str, ...]] = {
    StageName.SFT: ("model",),
    StageName.REWARD: ("model",),
    StageName.PPO: ("model", "rewardModel", "criticModel"),
}
"""Fields of each stage that may read another stage's artifact."""

_OPTIONAL_FIELDS = frozenset({"rewardModel", "criticModel"})


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
        ValueError: stages read each other, or one that is not there; names field and stages.
    """
    inputs = stage_inputs(stages)
    # Lists in a fixed order, since the cycle that is found first depends on it.
    sorter = TopologicalSorter(
        {
            name: [other for other in StageName if other in read.values()]
            for name, read in inputs.items()
        }
    )
    try:
        sorter.prepare()
    except CycleError as error:
        cycle: list[StageName] = error.args[1][::-1]
        reader, source = cycle[:2]
        field = next(field for field, read in inputs[reader].items() if read is source)
        said = (
            f"stages read each other: {' reads '.join(cycle)}; give one of the models by uri"
            if reader is not source
            else f"stage {reader} reads itself; give its model by uri"
        )
        raise ValueError(f"stages.{reader}.{field}.fromStage: {said}") from error
    order: list[StageName] = []
    while sorter.is_active():
        ready = set(sorter.get_ready())
        order.extend(name for name in StageName if name in ready)
        sorter.done(*ready)
    return tuple(order)


def graph_rules() -> tuple[CelRule, ...]:
    """The same refusals as `stage_order`'s as CEL over `spec`."""
    rules = [
        CelRule(
            cel=f"!({_reads(reader, source)}) || has(self.stages.{source})",
            message=f"stage {reader} reads stage {source}, which is not there; add "
            f"stages.{source}, or give the model by uri",
        )
        for reader, source in permutations(StageName, 2)
    ]
    rules += [
        CelRule(
            cel=f"!({_reads(name, name)})",
            message=f"stage {name} reads itself; give its model by uri",
        )
        for name in StageName
    ]
    rules += [
        CelRule(
            cel=f"!(({_reads(one, other)}) && ({_reads(other, one)}))",
            message=f"stages {one} and {other} read each other; give one of their models by uri",
        )
        for one, other in combinations(StageName, 2)
    ]
    first, second, third = StageName
    rules += [
        CelRule(
            cel=f"!(({_reads(a, b)}) && ({_reads(b, c)}) && ({_reads(c, a)}))",
            message=f"stages read each other: {a} reads {b} reads {c} reads {a}; "
            "give one of their models by uri",
        )
        for a, b, c in ((first, second, third), (first, third, second))
    ]
    return tuple(rules)


def _reads(reader: StageName, source: StageName) -> str:
    stage = f"self.stages.{reader}"
    readings = []
    for field in MODEL_FIELDS[reader]:
        guard = f"has({stage}.{field}) && " if field in _OPTIONAL_FIELDS else ""
        model = f"{stage}.{field}"
        readings.append(f"{guard}has({model}.fromStage) && {model}.fromStage == '{source}'")
    anywhere = " || ".join(readings)
    return f"has({stage}) && ({anywhere})" if len(readings) > 1 else f"has({stage}) && {anywhere}"
