"""What is trained: a small model from random weights, whose prompts are two letters.

A response of random letters has few vowels, one of a trained policy nearly nothing else: returns
grow as the policy improves, as in the practitioner's report on DeepSpeed-Chat.
"""

import itertools
import json
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from critic.growing import LETTERS

Raw = dict[str, Any]

RESPONSE_TOKENS = 32

VARIANTS: dict[str, Raw] = {
    "none": {"gamma": 1.0, "rewardScaling": "None", "valueNormalization": "None"},
    "gamma99": {"gamma": 0.99, "rewardScaling": "None", "valueNormalization": "None"},
    "runningStd": {"gamma": 1.0, "rewardScaling": "RunningStd", "valueNormalization": "None"},
    "runningStdTotal": {
        "gamma": 1.0,
        "rewardScaling": "RunningStdTotal",
        "valueNormalization": "None",
    },
    "popArt": {"gamma": 1.0, "rewardScaling": "None", "valueNormalization": "PopArt"},
    "report": {"preset": "report"},
    "default": {},
}
"""What each variant says explicitly about the critic; the rest is the same for all."""

COMMON: Raw = {
    "precision": "FP32",
    "zeroStage": 0,
    "maxPromptLength": 4,
    "maxResponseLength": RESPONSE_TOKENS,
    "batchSize": 64,
    "minibatchSize": 32,
    "microBatchSize": 32,
    "rolloutMicroBatchSize": 64,
    "updateEpochs": 2,
    "learningRate": 1e-3,
    "criticLearningRate": 5e-4,
    "klCoef": 0.05,
    # The largest score is the number of letters: nothing is to be cut off.
    "scoreClip": 100,
    "schedule": "Constant",
    "samplesEverySteps": 1_000_000,
    "checkpoint": {"everySteps": 1_000_000},
}


def write_data(folder: Path) -> None:
    """The tokenizer, whose tokens are letters, and all prompts of two letters."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {text: number for number, text in enumerate(["<pad>", "<eos>", *LETTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>"
    ).save_pretrained(folder / "tokenizer")
    pairs = itertools.product(LETTERS, repeat=2)
    rows = [json.dumps({"prompt": "".join(pair)}) for pair in pairs]
    (folder / "prompts.jsonl").write_text("\n".join(rows) + "\n")


def job(name: str, variant: str, seed: int, updates: int, data: Path) -> Raw:
    """The RLHFJob of one variant with one seed."""
    ppo = {
        "model": {
            "uri": "scratch://llama",
            "scratch": {
                "layers": 2,
                "hiddenSize": 64,
                "heads": 4,
                "intermediateSize": 128,
                "maxPositions": 64,
                "tokenizer": f"file://{data}/tokenizer",
            },
        },
        "rewards": [
            {
                "name": "vowels",
                "type": "Function",
                "function": {
                    "name": "growing:good_letters",
                    "uri": f"file://{Path(__file__).parent}",
                },
            }
        ],
        "dataset": {"uri": f"file://{data}/prompts.jsonl"},
        "seed": seed,
        "maxSteps": updates,
        **COMMON,
        **VARIANTS[variant],
    }
    return {
        "apiVersion": "rlhf.dev/v1alpha1",
        "kind": "RLHFJob",
        "metadata": {"name": name},
        "spec": {"stages": {"ppo": ppo}},
    }
