"""SFT or a reward model by TRL on a task: `python trl_supervised.py task.json measured.json`.

Runs in TRL's own environment. Writes the seconds after which each step ended.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl import RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

Task = dict[str, Any]


class Recorder(TrainerCallback):
    """Notes when each step ends."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self._began)


def settings(task: Task, folder: Path) -> dict[str, Any]:
    """The settings of the task in TRL's words; what it adds to a run is switched off."""
    return {
        "output_dir": str(folder),
        "seed": task["seed"],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "max_steps": task["steps"],
        "max_length": task["maxLength"],
        "per_device_train_batch_size": task["microBatchSize"],
        "gradient_accumulation_steps": task["batchSize"] // task["microBatchSize"],
        "learning_rate": task["learningRate"],
        "lr_scheduler_type": "cosine",
        "warmup_steps": task["warmupSteps"],
        "adam_beta1": task["adamBetas"][0],
        "adam_beta2": task["adamBetas"][1],
        "adam_epsilon": task["adamEps"],
        "weight_decay": task["weightDecay"],
        "max_grad_norm": task["gradientClipping"],
    }


def sft_trainer(task: Task, folder: Path, recorder: Recorder) -> SFTTrainer:
    """Of the task's rows, with the loss on responses."""
    return SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32),
        args=SFTConfig(completion_only_loss=True, packing=False, **settings(task, folder)),
        train_dataset=Dataset.from_list(task["rows"]),
        processing_class=AutoTokenizer.from_pretrained(task["model"]),
        callbacks=[recorder],
    )


def reward_trainer(task: Task, folder: Path, recorder: Recorder) -> RewardTrainer:
    """Of the task's pairs."""
    return RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(
            task["model"], num_labels=1, dtype=torch.float32
        ),
        args=RewardConfig(**settings(task, folder)),
        train_dataset=Dataset.from_list(task["rows"]),
        processing_class=AutoTokenizer.from_pretrained(task["model"]),
        callbacks=[recorder],
    )


def main(given: Path, made: Path) -> None:
    """Train and write what was measured."""
    task: Task = json.loads(given.read_text("utf-8"))
    make = {"sft": sft_trainer, "reward": reward_trainer}[task["stage"]]
    recorder = Recorder()
    make(task, made.parent / "output", recorder).train()
    made.write_text(json.dumps({"seconds": recorder.seconds}), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
