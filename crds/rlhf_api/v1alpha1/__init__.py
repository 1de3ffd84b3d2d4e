"""Version v1alpha1 of the contract: the public list."""

from rlhf_api.v1alpha1.graph import stage_inputs, stage_order
from rlhf_api.v1alpha1.job import ObjectMeta, RLHFJob
from rlhf_api.v1alpha1.pod import EnvVar, EnvVarSource, KeyReference, Resources, Toleration
from rlhf_api.v1alpha1.sources import Columns, Dataset, ModelSource, ScratchModel
from rlhf_api.v1alpha1.spec import MUTABLE_FIELDS, RLHFJobSpec, RunPolicy, Storage
from rlhf_api.v1alpha1.stage_config import JobReference, StageConfig, StageResult
from rlhf_api.v1alpha1.stages import (
    CheckpointPolicy,
    PPOStage,
    RewardStage,
    SFTStage,
    Stages,
    StageSpec,
)
from rlhf_api.v1alpha1.status import (
    Artifact,
    Condition,
    Progress,
    RLHFJobStatus,
    StageStatus,
    StageStatuses,
    Summary,
)
from rlhf_api.v1alpha1.template import PodTemplate

__all__ = [
    "MUTABLE_FIELDS",
    "Artifact",
    "CheckpointPolicy",
    "Columns",
    "Condition",
    "Dataset",
    "EnvVar",
    "EnvVarSource",
    "JobReference",
    "KeyReference",
    "ModelSource",
    "ObjectMeta",
    "PPOStage",
    "PodTemplate",
    "Progress",
    "RLHFJob",
    "RLHFJobSpec",
    "RLHFJobStatus",
    "Resources",
    "RewardStage",
    "RunPolicy",
    "SFTStage",
    "ScratchModel",
    "StageConfig",
    "StageResult",
    "StageSpec",
    "StageStatus",
    "StageStatuses",
    "Stages",
    "Storage",
    "Summary",
    "Toleration",
    "stage_inputs",
    "stage_order",
]
