"""What tests of the PPO stage share: its metrics, and models asked without the trainer's code."""

import math
from pathlib import Path

import stage_runs
import tiny
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from rlhf_api.v1alpha1 import ModelSource

METRICS = {
    "advantages_std",
    "approx_kl",
    "clip_share",
    "critic_gradient_norm",
    "critic_learning_rate",
    "critic_loss",
    "critic_loss_baseline",
    "critic_loss_of_mean",
    "distinct_2",
    "entropy",
    "eos_rate",
    "explained_variance",
    "gradient_norm",
    "kl",
    "kl_coef",
    "learning_rate",
    "policy_loss",
    "ratio_mean",
    "response_tokens",
    "response_tokens_p05",
    "response_tokens_p05_start",
    "response_tokens_p50",
    "response_tokens_p50_start",
    "response_tokens_p95",
    "response_tokens_p95_start",
    "returns_abs_mean",
    "returns_mean",
    "returns_std",
    "reward",
    "reward_scale",
    "reward_std",
    "sampler_drift",
    "truncated_share",
} | stage_runs.SPEED


def ids_of(text: str) -> list[int]:
    """Token ids, by hand."""
    return [3 + tiny.CHARACTERS.index(character) for character in text]


@torch.no_grad()
def logprob(model: PreTrainedModel, prompt: list[int], response: list[int]) -> float:
    """log p of a response at temperature 1, token by token."""
    logits = model(input_ids=torch.tensor([prompt + response])).logits[0]
    found = torch.log_softmax(logits, dim=-1)
    return math.fsum(float(found[at - 1, token]) for at, token in enumerate(response, len(prompt)))


@torch.no_grad()
def score(model: PreTrainedModel, ids: list[int]) -> float:
    """What a reward model gives to a whole sequence."""
    return float(model(input_ids=torch.tensor([ids])).logits[0, 0])


def causal(folder: Path) -> PreTrainedModel:
    """A policy, in FP32 and without dropout."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def judge(folder: Path) -> PreTrainedModel:
    """A reward model, in FP32 as it is on disk."""
    return AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)


def local(source: ModelSource) -> Path:
    """Folder of a `file://` source."""
    return Path(str(source.uri).removeprefix("file://"))
