"""What breaks each rule of the contract and what does not, for pydantic and for the API server."""

from collections.abc import Iterator
from itertools import combinations, permutations
from typing import Any

from rlhf_api.contract import Contract
from rlhf_api.v1alpha1 import affinity, pod, rewards, sources, spec, stages, template, volumes

LLAMA = {"layers": 2, "hiddenSize": 64, "heads": 4, "tokenizer": "file://tokenizer"}
STAGE = {"model": {"uri": "hf://org/base"}, "dataset": {"uri": "file://rows.jsonl"}}
PPO = STAGE | {"rewardModel": {"uri": "hf://org/reward"}}
MODEL_STATS = STAGE | {"rewardModel": {"fromStage": "reward"}, "rewardScaling": "ModelStats"}
HUB_URIS = (
    "hf://gpt2",
    "hf://org/na-me_1.5/",
    "hf://org/name@refs/pr/1",
    "hf://datasets",
    "hf://gpt2@v1.0+cu",
)
HUB_PAGES = (
    "hf://gpt2/tree/main",
    "hf://datasets/a/b",
    "hf://datasets/a",
    "hf://models/gpt2",
    "hf://org/name/file.json",
    "hf://org/name@",
    "hf://org//name",
    "hf://a b",
)
VOLUME = {"name": "data", "emptyDir": {}}
KEY = {"name": "n", "key": "k"}
FUNCTION = {"name": "sum", "type": "Function", "function": {"name": "rewards:exact"}}
ENDPOINT = {"name": "web", "type": "Endpoint", "endpoint": {"url": "http://scores/v1"}}
# Where a volume of the user's may be mounted, where nothing but ours is, and what may hide that.
ALLOWED_MOUNTS = (
    *("/data", "/data/", "/data/..a/.b", "/etc/rlhf2", "/mnt/claims2", "/mnt/c"),
    *("/tmp", "/tmp/", "/dev/shm", "/home/rlhf", "/home/rlhf/.cache", "/dev/termination-logs"),
)
RESERVED_MOUNTS = (
    *("/etc/rlhf", "/etc/rlhf/", "/etc/rlhf/stage.json", "/mnt/claims", "/mnt/claims/c"),
    *("/mnt/claims/c/d", "/dev/termination-log"),
)
PARENT_MOUNTS = ("/etc", "/etc/", "/mnt", "/mnt/", "/dev", "/home")
ROUNDABOUT_MOUNTS = (
    *("/", "/.", "//etc/rlhf", "/etc//rlhf", "/etc/./rlhf", "/etc/x/../rlhf", "/mnt/claims2/.."),
    *("/etc/.", "/data//"),
)
# Paths within a folder, and such as lead out of it.
WITHIN = ("a", "a/b", "a/", "./a", "..a/b..", ".", "a//b", "...")
LEADING_OUT = ("/", "/a", "..", "../x", "a/..", "a/../b", "./..")

# For each model: an object, and which of the model's rules it breaks, counted from 0.
CASES: dict[type[Contract], list[tuple[dict[str, Any], set[int]]]] = {
    pod.EnvVarSource: [
        ({"secretKeyRef": KEY}, set()),
        ({"configMapKeyRef": KEY}, set()),
        ({"secretKeyRef": KEY, "configMapKeyRef": KEY}, {0}),
        ({}, {0}),
    ],
    pod.EnvVar: [
        ({"name": "A"}, set()),
        ({"name": "A", "value": "b"}, set()),
        ({"name": "A", "valueFrom": {"secretKeyRef": KEY}}, set()),
        ({"name": "A", "value": "b", "valueFrom": {"secretKeyRef": KEY}}, {0}),
        ({"name": "RLHF_X"}, {1}),
        ({"name": "RANK"}, {1}),
        ({"name": "RANKS"}, set()),
    ],
    pod.EnvFromSource: [
        ({"secretRef": {"name": "n"}}, set()),
        ({"configMapRef": {"name": "n"}, "prefix": "P_"}, set()),
        ({"secretRef": {"name": "n"}, "configMapRef": {"name": "n"}}, {0}),
        ({}, {0}),
    ],
    pod.Toleration: [
        ({"key": "gpu", "value": "yes", "effect": "NoSchedule"}, set()),
        ({"operator": "Exists"}, set()),
        ({"key": "gpu", "operator": "Equal", "value": "yes"}, set()),
        ({"key": "gpu", "operator": "Exists", "value": ""}, set()),
        ({"key": "gpu", "effect": "NoExecute", "tolerationSeconds": 5}, set()),
        ({}, {0}),
        ({"operator": "Equal"}, {0}),
        ({"key": "gpu", "operator": "Exists", "value": "yes"}, {1}),
        ({"key": "gpu", "tolerationSeconds": 5}, {2}),
        ({"key": "gpu", "effect": "NoSchedule", "tolerationSeconds": 5}, {2}),
    ],
    affinity.NodeSelectorRequirement: [
        ({"key": "k", "operator": "In", "values": ["a", "b"]}, set()),
        ({"key": "k", "operator": "Gt", "values": ["1"]}, set()),
        ({"key": "k", "operator": "Exists"}, set()),
        ({"key": "k", "operator": "DoesNotExist", "values": []}, set()),
        ({"key": "k", "operator": "NotIn"}, {0}),
        ({"key": "k", "operator": "In", "values": []}, {0}),
        ({"key": "k", "operator": "Lt", "values": ["1", "2"]}, {0}),
        ({"key": "k", "operator": "Gt", "values": ["1", "2"]}, {0}),
        ({"key": "k", "operator": "Lt"}, {0}),
        ({"key": "k", "operator": "Exists", "values": ["a"]}, {0}),
    ],
    affinity.LabelSelectorRequirement: [
        ({"key": "k", "operator": "In", "values": ["a", "b"]}, set()),
        ({"key": "k", "operator": "Exists"}, set()),
        ({"key": "k", "operator": "NotIn", "values": []}, {0}),
        ({"key": "k", "operator": "In"}, {0}),
        ({"key": "k", "operator": "DoesNotExist", "values": ["a"]}, {0}),
    ],
    volumes.Volume: [
        (VOLUME, set()),
        ({"name": "v", "persistentVolumeClaim": {"claimName": "c"}}, set()),
        ({"name": "v", "configMap": {"name": "c"}}, set()),
        ({"name": "v", "secret": {"secretName": "c"}}, set()),
        ({"name": "v"}, {0}),
        ({"name": "v", "emptyDir": {}, "secret": {"secretName": "c"}}, {0}),
        ({"name": "rlhf-config", "emptyDir": {}}, {1}),
    ],
    volumes.VolumeMount: [
        ({"name": "v", "mountPath": "data"}, {0}),
        ({"name": "v", "mountPath": "/a:b"}, {0}),
        *(({"name": "v", "mountPath": path}, set()) for path in ALLOWED_MOUNTS),
        *(({"name": "v", "mountPath": path}, {1}) for path in RESERVED_MOUNTS),
        *(({"name": "v", "mountPath": path}, {2}) for path in ROUNDABOUT_MOUNTS),
        *(({"name": "v", "mountPath": path}, {3}) for path in PARENT_MOUNTS),
        *(({"name": "v", "mountPath": "/d", "subPath": path}, set()) for path in WITHIN),
        *(({"name": "v", "mountPath": "/d", "subPath": path}, {4}) for path in LEADING_OUT),
    ],
    volumes.SeccompProfile: [
        ({"type": "RuntimeDefault"}, set()),
        ({"type": "Localhost", "localhostProfile": "p.json"}, set()),
        ({"type": "Localhost"}, {0}),
        ({"type": "Unconfined", "localhostProfile": "p.json"}, {0}),
        *(({"type": "Localhost", "localhostProfile": path}, set()) for path in WITHIN),
        *(({"type": "Localhost", "localhostProfile": path}, {1}) for path in LEADING_OUT),
    ],
    template.PodTemplate: [
        ({}, set()),
        ({"volumes": [VOLUME], "volumeMounts": [{"name": "data", "mountPath": "/d"}]}, set()),
        ({"labels": {"team": "a"}}, set()),
        ({"volumeMounts": [{"name": "data", "mountPath": "/d"}]}, {0}),
        ({"volumes": [VOLUME], "volumeMounts": [{"name": "dat", "mountPath": "/d"}]}, {0}),
        ({"labels": {"rlhf.dev/job": "a"}}, {1}),
        ({"labels": {"team": "a", "app.kubernetes.io/managed-by": "me"}}, {1}),
        ({"labels": {"kueue.x-k8s.io/queue-name": "q"}}, {1}),
        ({"labels": {"kueue.x-k8s.io/priority-class": "high", "job-names": "a"}}, set()),
        ({"labels": {"kueue.x-k8s.io/priority-class-x": "high"}}, {1}),
        ({"labels": {"job-name": "a"}}, {1}),
        ({"labels": {"controller-uid": "a"}}, {1}),
        ({"labels": {"batch.kubernetes.io/job-name": "a"}}, {1}),
        ({"annotations": {"kueue.x-k8s.io/podset-required-topology": "rack"}}, set()),
        ({"annotations": {"sidecar.istio.io/inject": "false", "job-name": "a"}}, set()),
        ({"annotations": {"rlhf.dev/guardrails": "a"}}, {2}),
        ({"annotations": {"batch.kubernetes.io/job-completion-index": "1"}}, {2}),
        ({"annotations": {"kueue.x-k8s.io/job-min-parallelism": "1"}}, {2}),
        ({"annotations": {"kueue.x-k8s.io/queue-name": "q"}}, {2}),
        ({"annotations": {"kueue.x-k8s.io/queue-names": "q"}}, set()),
        ({"labels": {"job-name": "a"}, "annotations": {"rlhf.dev/a": "b"}}, {1, 2}),
        ({"annotations": {f"a{n}": "x" * 16_382 for n in range(8)}}, set()),
        ({"annotations": {f"a{n}": "x" * 16_383 for n in range(8)}}, {3}),
        ({"annotations": {f"a{n}": "資" * 8192 for n in range(8)}}, {3}),
        ({"annotations": {f"a{n}": "x" * 16_384 for n in range(64)}}, {3}),
    ],
    sources.ScratchModel: [
        (LLAMA, set()),
        (LLAMA | {"keyValueHeads": 2}, set()),
        (LLAMA | {"heads": 5}, {0}),
        (LLAMA | {"keyValueHeads": 3}, {1}),
        (LLAMA | {"tokenizer": "hf://gpt2"}, set()),
        (LLAMA | {"tokenizer": "hf://gpt2/tokenizer.json/x"}, {2}),
    ],
    sources.ModelSource: [
        ({"uri": "hf://org/model"}, set()),
        ({"fromStage": "sft"}, set()),
        ({"uri": "scratch://llama", "scratch": LLAMA}, set()),
        ({}, {0}),
        ({"uri": "hf://org/model", "fromStage": "sft"}, {0}),
        ({"uri": "s3://b/m"}, {1}),
        ({"uri": "scratch://llama"}, {2}),
        ({"uri": "hf://org/model", "scratch": LLAMA}, {2}),
        ({"fromStage": "sft", "scratch": LLAMA}, {2}),
        ({"uri": "scratch://bert", "scratch": LLAMA}, {3}),
        ({"fromStage": "sft", "chatTemplate": "{{ messages }}"}, set()),
        ({"fromStage": "sft", "chatTemplate": "{{ messages }}", "useChatTemplate": True}, set()),
        ({"fromStage": "sft", "useChatTemplate": False}, set()),
        ({"fromStage": "sft", "chatTemplate": "{{ messages }}", "useChatTemplate": False}, {4}),
        *(({"uri": uri}, set()) for uri in HUB_URIS),
        *(({"uri": uri}, {5}) for uri in HUB_PAGES),
    ],
    sources.Dataset: [
        ({"uri": "file://rows.jsonl"}, set()),
        ({"uri": "s3://b/rows"}, {0}),
        ({"uri": "scratch://llama"}, {1}),
        *(({"uri": uri}, set()) for uri in HUB_URIS),
        *(({"uri": uri}, {2}) for uri in HUB_PAGES),
    ],
    rewards.Reward: [
        ({"name": "model", "type": "RewardModel"}, set()),
        (FUNCTION, set()),
        (ENDPOINT, set()),
        ({"name": "sum", "type": "Function"}, {0}),
        ({"name": "web", "type": "Endpoint"}, {0}),
        (FUNCTION | {"type": "RewardModel"}, {0}),
        (FUNCTION | {"type": "Endpoint"}, {0}),
        (FUNCTION | {"endpoint": ENDPOINT["endpoint"]}, {0}),
    ],
    stages.SFTStage: [
        (STAGE, set()),
        (STAGE | {"epochs": 1}, set()),
        (STAGE | {"maxSteps": 1}, set()),
        (STAGE | {"epochs": 1, "maxSteps": 1}, {0}),
        (STAGE | {"microBatchTokens": 1024}, set()),
        (STAGE | {"microBatchTokens": 1023}, {2}),
        (STAGE | {"microBatchTokens": 64, "maxLength": 64}, set()),
        (STAGE | {"microBatchTokens": 1024, "maxLength": 1025}, {2}),
        (STAGE | {"offloadOptimizer": True}, set()),
        (STAGE | {"offloadOptimizer": True, "zeroStage": 3}, set()),
        (STAGE | {"offloadOptimizer": False, "zeroStage": 0}, set()),
        (STAGE | {"offloadOptimizer": True, "zeroStage": 0}, {1}),
    ],
    stages.RewardStage: [
        (STAGE, set()),
        (STAGE | {"epochs": 1, "maxSteps": 1}, {0}),
        (STAGE | {"microBatchTokens": 2048}, set()),
        (STAGE | {"microBatchTokens": 2047}, {2}),
        (STAGE | {"microBatchTokens": 128, "maxLength": 64}, set()),
        (STAGE | {"microBatchTokens": 127, "maxLength": 64}, {2}),
        (STAGE | {"offloadOptimizer": True}, set()),
        (STAGE | {"offloadOptimizer": True, "zeroStage": 3}, set()),
        (STAGE | {"offloadOptimizer": False, "zeroStage": 0}, set()),
        (STAGE | {"offloadOptimizer": True, "zeroStage": 0}, {1}),
    ],
    stages.PPOStage: [
        (PPO, set()),
        (PPO | {"epochs": 1, "maxSteps": 1}, {0}),
        (PPO | {"klController": "Fixed"}, set()),
        (PPO | {"klController": "Adaptive", "klTarget": 6}, set()),
        (PPO | {"klController": "Adaptive"}, {2}),
        (PPO | {"klController": "Adaptive", "preset": "nDetails"}, set()),
        (PPO | {"klController": "Adaptive", "klTarget": 6, "klHorizon": 7}, set()),
        (PPO | {"klController": "Adaptive", "klTarget": 6, "klHorizon": 6}, {3}),
        (PPO | {"klController": "Adaptive", "klTarget": 6, "batchSize": 50_000}, {3}),
        (PPO | {"klController": "Fixed", "klHorizon": 1}, set()),
        (PPO | {"microBatchTokens": 1024}, set()),
        (PPO | {"microBatchTokens": 1023}, {9}),
        (PPO | {"microBatchTokens": 520, "maxPromptLength": 8}, set()),
        (PPO | {"microBatchTokens": 519, "maxPromptLength": 8}, {9}),
        (PPO | {"microBatchTokens": 519, "maxResponseLength": 8}, {9}),
        (PPO | {"microBatchTokens": 600, "preset": "dschat"}, set()),
        (PPO | {"minibatchSize": 16}, set()),
        (PPO | {"minibatchSize": 64}, {4}),
        (PPO | {"minibatchSize": 64, "batchSize": 128}, set()),
        (PPO | {"minibatchSize": 5}, {4}),
        (PPO | {"rewards": []}, set()),
        (STAGE | {"rewards": [FUNCTION]}, set()),
        (PPO | {"rewards": [FUNCTION, {"name": "model", "type": "RewardModel"}]}, set()),
        (STAGE, {5}),
        (STAGE | {"rewards": []}, {5}),
        (STAGE | {"rewards": [{"name": "model", "type": "RewardModel"}]}, {5}),
        (PPO | {"rewards": [FUNCTION]}, {5}),
        (PPO | {"rewardScaling": "ModelStats"}, set()),
        (PPO | {"rewardScaling": "ModelStats", "rewards": []}, set()),
        (STAGE | {"rewardScaling": "RunningStdTotal", "rewards": [FUNCTION]}, set()),
        (STAGE | {"rewardScaling": "ModelStats", "rewards": [FUNCTION]}, {6}),
        (PPO | {"ptxDataset": STAGE["dataset"]}, set()),
        (PPO | {"ptxDataset": STAGE["dataset"], "ptxCoef": 27.8}, set()),
        (PPO | {"ptxCoef": 27.8}, {7}),
        (PPO | {"truncatedAnswers": "Score"}, set()),
        (PPO | {"truncatedAnswers": "Penalty", "missingEosPenalty": 0.5}, set()),
        (PPO | {"truncatedAnswers": "Penalty", "missingEosPenalty": 1}, set()),
        (PPO | {"truncatedAnswers": "Penalty", "missingEosPenalty": 0}, {8}),
        (PPO | {"truncatedAnswers": "Penalty"}, {8}),
        (PPO | {"truncatedAnswers": "Penalty", "preset": "dschat"}, {8}),
        (PPO | {"offloadOptimizer": True}, set()),
        (PPO | {"offloadOptimizer": True, "zeroStage": 3}, set()),
        (PPO | {"offloadOptimizer": False, "zeroStage": 0}, set()),
        (PPO | {"offloadOptimizer": True, "zeroStage": 0}, {1}),
    ],
    stages.Stages: [
        ({"sft": STAGE}, set()),
        ({"reward": STAGE}, set()),
        ({"ppo": PPO}, set()),
        ({}, {0}),
        ({"reward": STAGE, "ppo": MODEL_STATS}, {1}),
        ({"reward": STAGE | {"evalDataset": STAGE["dataset"]}, "ppo": MODEL_STATS}, set()),
        ({"reward": STAGE, "ppo": MODEL_STATS | {"rewardModel": {"uri": "hf://a/b"}}}, set()),
        ({"reward": STAGE, "ppo": MODEL_STATS | {"rewardScaling": "RunningStd"}}, set()),
    ],
    spec.Storage: [
        ({"uri": "pvc://claim"}, set()),
        ({"uri": "pvc://claim/a..b/c"}, set()),
        ({"uri": "s3://b/p"}, {0}),
        ({"uri": "file://p"}, {1}),
        ({"uri": "pvc://claim/../p"}, {2}),
        ({"uri": "pvc://claim/p/.."}, {2}),
    ],
}

# Keys of labels, annotations and selectors.
KEYS = [
    *(("team", True), ("A.b_c-9", True), ("a" * 63, True), ("example.com/a", True)),
    *(("a-b.c/Team", True), (f"{'a' * 63}.{'b' * 189}/{'c' * 63}", True)),
    *(("a b", False), ("-x", False), ("x-", False), ("", False), ("a" * 64, False)),
    *(("prefix/with/two", False), ("/a", False), ("a/", False), ("a..b/c", False)),
    *(("Example.com/a", False), ("-a/b", False), ("資", False), ("a\n", False)),
    (f"{'a' * 63}.{'b' * 190}/c", False),
]
QUEUES = [
    ("team-a", True),
    ("team.a", True),
    ("a" * 63, True),
    ("a" * 64, False),
    ("Team", False),
    ("a/b", False),
    ("", False),
]
"""Names of queues, and whether they may be the value of a label."""


Whole = Iterator[tuple[dict[str, Any], str]]
STAGES = ("sft", "reward", "ppo")


def three_stages(**read: str) -> dict[str, Any]:
    """All three stages; `ppo="sft"` lets ppo read sft."""
    found: dict[str, Any] = {name: dict(STAGE) for name in STAGES}
    found["ppo"] = dict(PPO)
    for reader, source in read.items():
        found[reader]["model"] = {"fromStage": source}
    return found


def graphs() -> Whole:
    """Specs with the beginning of the message of the rule of the graph that each breaks, if any."""
    yield {"stages": three_stages(reward="sft", ppo="reward")}, ""
    yield {"stages": three_stages(sft="ppo", reward="ppo")}, ""
    for reader, source in permutations(STAGES, 2):
        found = three_stages(**{reader: source})
        del found[source]
        yield {"stages": found}, f"stage {reader} reads stage {source}, which is not there"
    for name in STAGES:
        yield {"stages": three_stages(**{name: name})}, f"stage {name} reads itself"
    for one, other in combinations(STAGES, 2):
        read = {one: other, other: one}
        yield {"stages": three_stages(**read)}, f"stages {one} and {other} read each other"
    for a, b, c in (STAGES, ("sft", "ppo", "reward")):
        said = f"stages read each other: {a} reads {b} reads {c}"
        yield {"stages": three_stages(**{a: b, b: c, c: a})}, said


def batches() -> Whole:
    """The same for the rules of batch sizes."""
    ranks = {"nodes": 2, "processesPerNode": 2}
    for name in STAGES:
        for size, said in ((8, ""), (9, f"stages.{name}.batchSize (")):
            found = three_stages()
            found[name] |= ranks | {"batchSize": size}
            yield {"stages": found}, said
    for size, said in ((4, ""), (2, "stages.ppo.minibatchSize must be a multiple")):
        found = three_stages()
        found["ppo"] |= ranks | {"batchSize": 16, "minibatchSize": size}
        yield {"stages": found}, said


NAMES = [
    ("a", True),
    ("a-1", True),
    ("a" * 40, True),
    ("a" * 41, False),
    ("1a", False),
    ("a.b", False),
]
"""Names of jobs that DNS allows, and whether we do."""


def keyed(key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Specs with a map that has this key, by the path of the map."""
    found = {key: "v"}
    for name in ("labels", "annotations", "nodeSelector"):
        yield f"spec.template.{name}", {"template": {name: found}}
    yield "spec.stages.sft.nodeSelector", {"stages": {"sft": STAGE | {"nodeSelector": found}}}
    term = {"topologyKey": "zone", "labelSelector": {"matchLabels": found}}
    near = {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    path = "podAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].labelSelector.matchLabels"
    yield f"spec.template.affinity.{path}", {"template": {"affinity": near}}
