"""Every field of a stage and its kind: what determines the result, and what does not.

The tables name every field once, with its default and another value. Whoever adds a field has to
say here which kind it is; whoever changes a default has to raise CONTRACT_VERSION, since files and
digests leave defaults out.
"""

from typing import Any

from rlhf_api.contract import Contract
from rlhf_api.names import StageName
from rlhf_api.v1alpha1 import (
    Dataset,
    EndpointReward,
    FunctionReward,
    LoRA,
    ModelSource,
    Reward,
    ScratchModel,
)

REQUIRED = object()
Table = dict[str, tuple[Any, Any]]
"""Default and another value, by the field's name in a document."""

COMMON: Table = {
    "model": (REQUIRED, {"uri": "hf://org/other"}),
    "dataset": (REQUIRED, {"uri": "file://other.jsonl"}),
    "evalDataset": (None, {"uri": "hf://org/held-out"}),
    "evalEverySteps": (None, 5),
    "precision": ("BF16", "FP32"),
    "attentionImplementation": ("SDPA", "Eager"),
    "lora": (None, {"rank": 4, "alpha": 8}),
    "zeroStage": (2, 0),
    "offloadOptimizer": (False, True),
    "microBatchSize": (4, 2),
    "microBatchTokens": (None, 4096),
    "batchSize": (32, 64),
    "seed": (42, 1),
    "learningRate": (1e-5, 3e-4),
    "adamBetas": ([0.9, 0.95], [0.9, 0.99]),
    "adamEps": (1e-8, 1e-6),
    "weightDecay": (0.0, 0.1),
    "warmupRatio": (0.03, 0.1),
    "schedule": ("Cosine", "Linear"),
    "gradientClipping": (1.0, 0.5),
    "epochs": (None, 2),
    "maxSteps": (None, 7),
}
DETERMINING: dict[StageName, Table] = {
    StageName.SFT: COMMON | {"maxLength": (1024, 512), "packing": (True, False)},
    StageName.REWARD: COMMON
    | {
        "learningRate": (9e-6, 3e-4),
        "maxLength": (1024, 512),
        "margin": (0.0, 1.0),
        "centeringCoef": (0.0, 0.01),
    },
    StageName.PPO: COMMON
    | {
        "learningRate": (1e-6, 3e-4),
        "rewardModel": (None, {"uri": "hf://org/other-reward"}),
        "rewards": ([], [{"name": "model", "type": "RewardModel"}]),
        "criticModel": (None, {"uri": "hf://org/critic"}),
        "maxPromptLength": (512, 256),
        "maxResponseLength": (512, 256),
        "stopTokens": ([], ["</s>"]),
        "temperature": (1.0, 0.7),
        "topK": (0, 50),
        "topP": (1.0, 0.9),
        "minibatchSize": (None, 16),
        "updateEpochs": (1, 2),
        "rolloutMicroBatchSize": (64, 32),
        "oldLogprobs": ("Auto", "Recompute"),
        "criticLearningRate": (5e-6, 1e-5),
        "criticWarmupSteps": (0, 5),
        "klEstimator": ("K1", "K3"),
        "klCoef": (0.05, 0.1),
        "klController": ("Fixed", "Adaptive"),
        "klTarget": (None, 6.0),
        "klHorizon": (10_000, 5000),
        "gamma": (1.0, 0.99),
        "gaeLambda": (0.95, 0.9),
        "clipRange": (0.2, 0.1),
        "valueClipRange": (None, 0.2),
        "valueCoef": (1.0, 0.5),
        "entropyCoef": (0.0, 0.01),
        "scoreClip": (10.0, 5.0),
        "missingEosPenalty": (0.0, 1.0),
        "truncatedAnswers": ("Score", "Penalty"),
        "advantageNormalization": ("Batch", "Minibatch"),
        "rewardScaling": ("RunningStdTotal", "RunningStd"),
        "valueNormalization": ("None", "PopArt"),
        "valueHeadInit": ("Keep", "Zero"),
        "ptxDataset": (None, {"uri": "file://ptx.jsonl"}),
        "ptxCoef": (None, 1.0),
        "emaDecay": (None, 0.992),
    },
}
COSMETIC: dict[str, Any] = {
    "nodes": 2,
    "processesPerNode": 2,
    "resources": {"limits": {"memory": "8Gi"}},
    "nodeSelector": {"pool": "a"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "env": [{"name": "NCCL_DEBUG", "value": "INFO"}],
    "device": "CPU",
    "gradientCheckpointing": True,
    "priorityClassName": "low",
    "checkpoint": {"everySteps": 5, "keep": 1},
}
COSMETICS = {
    StageName.SFT: COSMETIC,
    StageName.REWARD: COSMETIC,
    StageName.PPO: COSMETIC | {"samplesEverySteps": 3, "offloadFrozenModels": True},
}
NEEDS: dict[str, dict[str, Any]] = {
    "klController": {"klTarget": 6.0},
    "ptxCoef": {"ptxDataset": {"uri": "file://ptx.jsonl"}},
    "truncatedAnswers": {"missingEosPenalty": 1.0},
}
"""What else has to be set for a value to be allowed."""
NEEDED = {"rewardModel"}
"""Fields that `document` has to set, whatever their default."""

SCRATCH = {"layers": 2, "hiddenSize": 32, "heads": 4, "tokenizer": "file://words"}
NESTED: dict[type[Contract], Table] = {
    Dataset: {
        "uri": (REQUIRED, "hf://org/other"),
        "subset": (None, "zh"),
        "split": ("train", "test"),
        "columns": ({}, {"prompt": "question"}),
        "maxRows": (None, 5),
        "overLong": ("Drop", "Truncate"),
        "titlePrefix": (False, True),
        "pairsPerQuery": (1, 2),
    },
    ScratchModel: {
        "layers": (REQUIRED, 3),
        "hiddenSize": (REQUIRED, 64),
        "heads": (REQUIRED, 2),
        "keyValueHeads": (None, 2),
        "intermediateSize": (None, 64),
        "maxPositions": (1024, 512),
        "tieEmbeddings": (True, False),
        "tokenizer": (REQUIRED, "file://other-words"),
    },
    LoRA: {
        "rank": (REQUIRED, 8),
        "alpha": (REQUIRED, 16),
        "targetModules": ([], ["q_proj"]),
    },
    ModelSource: {
        "uri": (None, "hf://org/other"),
        "fromStage": (None, "reward"),
        "scratch": (None, SCRATCH),
        "padToken": (None, "<pad>"),
        "chatTemplate": (None, "{{ messages }}"),
        "useChatTemplate": (True, False),
        "endOfTurn": (None, "<|end|>"),
    },
}
CONSENTS: dict[type[Contract], list[str]] = {Dataset: ["allowLoss"]}
FUNCTION = {"name": "rewards:exact"}
ENDPOINT = {"url": "http://scores/v1"}
REWARDS: dict[type[Contract], Table] = {
    Reward: {
        "name": (REQUIRED, "other"),
        "type": (REQUIRED, "Endpoint"),
        "weight": (1.0, 0.5),
        "function": (None, FUNCTION),
        "endpoint": (None, ENDPOINT),
    },
    FunctionReward: {
        "name": (REQUIRED, "rewards:close"),
        "uri": (None, "file://rewards"),
    },
    EndpointReward: {
        "url": (REQUIRED, "http://other/v1"),
        "timeoutSeconds": (30.0, 5.0),
        "retries": (5, 0),
        "batchSize": (64, 8),
        "tokenEnv": (None, "TOKEN"),
    },
}
NESTED |= REWARDS
PLACE: Table = {
    "attempt": (REQUIRED, 7),
    "masterAddress": ("127.0.0.1", "pod-0"),
    "masterPort": (0, 29500),
    "metricsPort": (0, 9400),
    "storage": (REQUIRED, "/elsewhere"),
    "claims": ({}, {"runs": "/mnt/other"}),
    "guardrails": ([], [{"rule": "NegativeKL", "action": "Suspend"}]),
    "guardrailAttempt": (0, 3),
    "gpusRequested": (0, 8),
}
DIGESTS = ["sha256:" + digit * 64 for digit in "01"]
WORK: Table = {
    "job": (REQUIRED, {"name": "reviews", "uid": "another-uid"}),
    "nodes": (1, 2),
    "processesPerNode": (1, 2),
    "artifacts": ({}, {"reward": {"uri": "a", "digest": DIGESTS[0]}}),
}
