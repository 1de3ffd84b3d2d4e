"""A job as one machine runs it: absolute paths, one node, inputs that are there.

Called by `rlhf validate` and `rlhf run` before anything is written or started.
"""

from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from rlhf_api.errors import InputError, UsageError
from rlhf_api.names import FileName
from rlhf_api.v1alpha1 import (
    CLAIM,
    DATASETS,
    ModelSource,
    PPOStage,
    Resources,
    Reward,
    RLHFJob,
    StageSpec,
    claim_of,
    stage_order,
    uris,
)

FILE = "file://"


def parse_mounts(texts: Sequence[str]) -> dict[str, str]:
    """`claim=path` options as a mapping of claims to absolute folders.

    Raises:
        UsageError: of another form, or a claim that stands twice.
        InputError: the folder is not there.
    """
    mounts: dict[str, str] = {}
    for text in texts:
        claim, separator, path = text.partition("=")
        if not (claim and separator and path):
            raise UsageError(f"--mount {text}: is not of the form claim=path; write it so")
        if claim in mounts:
            raise UsageError(f"--mount {text}: claim {claim} stands twice; keep one of them")
        folder = Path(path).absolute()
        if not folder.is_dir():
            raise InputError(f"--mount {text}: {folder} is no folder; make it or correct the path")
        mounts[claim] = str(folder)
    return mounts


def localized(job: RLHFJob, folder: Path) -> RLHFJob:
    """The job with file:// paths taken from `folder`, and each stage's ranks on a single node."""
    changes: dict[str, Any] = {}
    for name, stage in job.spec.stages.present().items():
        nodes, gpus = job.spec.nodes(name), job.spec.gpus(name)
        size: dict[str, Any] = {
            "nodes": 1,
            "processes_per_node": nodes * job.spec.processes_per_node(name),
        }
        if gpus and nodes > 1:
            # All nodes' GPUs; of the resources nothing else counts here.
            size["resources"] = Resources(limits={"nvidia.com/gpu": str(nodes * gpus)})
        changes[name.value] = stage.model_copy(update=size | _absolute_inputs(stage, folder))
    stages = job.spec.stages.model_copy(update=changes)
    return job.model_copy(update={"spec": job.spec.model_copy(update={"stages": stages})})


def check_inputs(job: RLHFJob, mounts: Mapping[str, str], *, all_claims: bool = True) -> None:
    """See that every file:// and pvc:// input of a localized job is there, and what it must hold.

    Args:
        job: localized.
        mounts: folders of claims.
        all_claims: whether a claim without a folder is an error.

    Raises:
        InputError: one line for each that is not.
    """
    mistakes = []
    for field, uri in _inputs(job):
        claim = claim_of(uri)
        if claim is not None and claim not in mounts:
            if all_claims:
                mistakes.append(
                    f"{field}: {uri}: claim {claim} has no folder here; add --mount {claim}=path"
                )
            continue
        path = _path_of(uri, mounts)
        if path is not None and not path.exists():
            mistakes.append(f"{field}: {uri}: {path} does not exist; make it or correct the uri")
    mistakes += _missing_contents(job, mounts)
    if mistakes:
        raise InputError("\n".join(mistakes))


def unmounted_claims(job: RLHFJob, mounts: Mapping[str, str]) -> list[str]:
    """Claims that the job reads and for which no folder is given."""
    claims = {claim_of(uri) for _, uri in _inputs(job)}
    return sorted(claim for claim in claims if claim is not None and claim not in mounts)


def local_warnings(job: RLHFJob) -> Iterator[str]:
    """What of the job, as it is written, a single machine does in another way."""
    for name, stage in job.spec.stages.present().items():
        nodes, processes = job.spec.nodes(name), job.spec.processes_per_node(name)
        if nodes > 1:
            yield (
                f"spec.stages.{name}: nodes is {nodes}; here all {nodes * processes} ranks run on "
                "this machine"
            )
        for variable in (*(job.spec.template.env or ()), *(stage.env or ())):
            if variable.value is None:
                yield (
                    f"spec.stages.{name}: environment variable {variable.name} comes from the "
                    "cluster and is not set here; set it in the shell"
                )


def sampling_warnings(job: RLHFJob) -> Iterator[str]:
    """A sentence where metrics of the job are biased by how it samples."""
    stage = job.spec.stages.ppo
    if stage is None:
        return
    truncated = {"topK": stage.top_k > 0, "topP": stage.top_p < 1}
    set_fields = [field for field, is_set in truncated.items() if is_set]
    if set_fields:
        yield (
            f"spec.stages.ppo: {' and '.join(set_fields)} leave{'s' * (len(set_fields) == 1)} "
            "tokens out of sampling, while log-probabilities are those of all tokens: KL, that of "
            "held-out answers too, and probability ratio are biased, and KL may be below 0; remove "
            f"{'it' if len(set_fields) == 1 else 'them'} unless that is meant"
        )


def local_environment(job: RLHFJob, stage: StageSpec) -> dict[str, str]:
    """The environment variables that the job gives a stage by value."""
    given = (*(job.spec.template.env or ()), *(stage.env or ()))
    return {each.name: each.value for each in given if each.value is not None}


def describe(job: RLHFJob) -> Iterator[str]:
    """A line for each stage, in the order in which they run."""
    present = job.spec.stages.present()
    for name in stage_order(job.spec.stages):
        stage = present[name]
        nodes, processes = job.spec.nodes(name), job.spec.processes_per_node(name)
        place = f"{nodes} node{'s' * (nodes > 1)} x {processes} rank{'s' * (processes > 1)}"
        if stage.max_steps is not None:
            length = f"{stage.max_steps} steps"
        else:
            length = f"{stage.epochs or 1} epoch{'s' * ((stage.epochs or 1) > 1)}"
        reads = ", ".join(
            f"{field} from {source.uri or f'stage {source.from_stage}'}"
            for field, source in stage.sources().items()
        )
        yield f"{name}: {place}, {length}, batch {stage.batch_size}, {reads}"


def _inputs(job: RLHFJob) -> Iterator[tuple[str, str]]:
    for name, stage in job.spec.stages.present().items():
        for path, uri in uris(stage):
            yield f"spec.stages.{name}.{path}", uri


def _missing_contents(job: RLHFJob, mounts: Mapping[str, str]) -> Iterator[str]:
    """What PPO would find missing in its inputs when the stages before it have trained."""
    ppo = job.spec.stages.ppo
    if ppo is None:
        return
    model = _there(ppo.reward_model.uri, mounts) if ppo.reward_model is not None else None
    if ppo.reward_scaling == "ModelStats" and model is not None:
        statistics = model / FileName.REWARD_STATISTICS
        if not statistics.is_file():
            yield (
                f"spec.stages.ppo.rewardScaling: ModelStats: {statistics} does not exist; name a "
                "rewardModel that stages.reward has trained with an evalDataset, or choose "
                "RunningStdTotal"
            )
    for index, reward in enumerate(ppo.rewards):
        function = reward.function
        folder = _there(function.uri, mounts) if function is not None else None
        if function is None or folder is None:
            continue
        field = f"spec.stages.ppo.rewards[{index}].function"
        module = function.name.partition(":")[0]
        if not folder.is_dir():
            yield (
                f"{field}.uri: {function.uri}: {folder} is no folder; name the folder that holds "
                "the module"
            )
        elif not _holds_module(folder, module):
            yield (
                f"{field}.name: {function.name}: {folder} holds no module {module}; put it there, "
                "or correct name or uri"
            )


def _there(uri: str | None, mounts: Mapping[str, str]) -> Path | None:
    """The path of a local input that exists; of what is elsewhere or missing nothing is known."""
    path = _path_of(uri, mounts) if uri is not None else None
    return path if path is not None and path.exists() else None


def _holds_module(folder: Path, name: str) -> bool:
    """Whether Python would find the module in `folder`; nothing of it is run."""
    PathFinder.invalidate_caches()
    places = [str(folder)]
    for part in name.split("."):
        found = PathFinder.find_spec(part, places)
        if found is None:
            return False
        places = list(found.submodule_search_locations or ())
    return True


def _path_of(uri: str, mounts: Mapping[str, str]) -> Path | None:
    """Where a file:// or pvc:// input is; None for others, and for a claim without a folder."""
    if uri.startswith(FILE):
        return Path(uri.removeprefix(FILE))
    claim = claim_of(uri)
    if claim is None or claim not in mounts:
        return None
    return Path(mounts[claim]) / uri.removeprefix(f"{CLAIM}{claim}").lstrip("/")


def _absolute(uri: str, folder: Path) -> str:
    if not uri.startswith(FILE):
        return uri
    return FILE + str(folder.absolute() / uri.removeprefix(FILE))


def _absolute_inputs(stage: StageSpec, folder: Path) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for name in ("model", "reward_model", "critic_model"):
        source: ModelSource | None = getattr(stage, name, None)
        if source is None:
            continue
        update: dict[str, Any] = {"uri": _absolute(source.uri, folder)} if source.uri else {}
        if source.scratch is not None:
            tokenizer = _absolute(source.scratch.tokenizer, folder)
            update["scratch"] = source.scratch.model_copy(update={"tokenizer": tokenizer})
        changes[name] = source.model_copy(update=update)
    for name in DATASETS:
        dataset = getattr(stage, name, None)
        if dataset is not None:
            uri = _absolute(dataset.uri, folder)
            changes[name] = dataset.model_copy(update={"uri": uri})
    if isinstance(stage, PPOStage):
        changes["rewards"] = tuple(_absolute_reward(reward, folder) for reward in stage.rewards)
    return changes


def _absolute_reward(reward: Reward, folder: Path) -> Reward:
    function = reward.function
    if function is None or function.uri is None:
        return reward
    found = function.model_copy(update={"uri": _absolute(function.uri, folder)})
    return reward.model_copy(update={"function": found})
