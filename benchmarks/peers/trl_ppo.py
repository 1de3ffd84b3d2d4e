"""PPO by TRL on the models and prompts of a task: `python trl_ppo.py task.json measured.json`.

Runs in TRL's own environment. Writes seconds, score, KL and response tokens of each update.
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
    get_cosine_schedule_with_warmup,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

Task = dict[str, Any]


class Recorder(TrainerCallback):
    """Notes when each update ends, and what was told of it."""

    def __init__(self) -> None:
        self.updates: list[dict[str, float]] = []
        self.tokens: list[float] = []
        self._began = 0.0
        self._told: dict[str, float] = {}

    def truncating(self, truncate: Any) -> Any:
        """TRL's truncation at EOS, with the lengths noted that it leaves."""

        def truncated(stop_id: int, pad_id: int, responses: torch.Tensor) -> torch.Tensor:
            kept = truncate(stop_id, pad_id, responses)
            self.tokens += (kept != pad_id).sum(dim=1).tolist()
            return kept

        return truncated

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._began = time.perf_counter()

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        self._told = logs

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.updates.append(
            {
                "seconds": time.perf_counter() - self._began,
                "score": self._told["objective/scores"],
                "kl": self._told["objective/kl"],
                "response_tokens": sum(self.tokens) / len(self.tokens),
            }
        )
        self.tokens.clear()


def arguments(task: Task, folder: Path) -> PPOConfig:
    """The settings of the task in TRL's words; what it adds to a run is switched off."""
    return PPOConfig(
        output_dir=str(folder),
        seed=task["seed"],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        num_sample_generations=0,
        logging_steps=1,
        total_episodes=task["updates"] * task["batchSize"],
        per_device_train_batch_size=task["microBatchSize"],
        gradient_accumulation_steps=task["batchSize"] // task["microBatchSize"],
        num_mini_batches=1,
        num_ppo_epochs=task["updateEpochs"],
        local_rollout_forward_batch_size=task["rolloutMicroBatchSize"],
        response_length=task["maxResponseLength"],
        temperature=task["temperature"],
        stop_token="eos",
        kl_coef=task["klCoef"],
        kl_estimator=task["klEstimator"].lower(),
        gamma=task["gamma"],
        lam=task["gaeLambda"],
        cliprange=task["clipRange"],
        # Not clipped here either.
        cliprange_value=1e6,
        vf_coef=task["valueCoef"],
        whiten_rewards=False,
    )


def main(given: Path, made: Path) -> None:
    """Train and write what was measured."""
    task: Task = json.loads(given.read_text("utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(task["sft"], padding_side="left")
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(task["sft"], dtype=torch.float32) for _ in range(2)
    )
    reward, value = (
        AutoModelForSequenceClassification.from_pretrained(
            task["reward"], num_labels=1, dtype=torch.float32
        )
        for _ in range(2)
    )
    optimizer = torch.optim.AdamW(
        [
            {"params": list(policy.parameters()), "lr": task["learningRate"]},
            {"params": list(value.parameters()), "lr": task["criticLearningRate"]},
        ],
        betas=tuple(task["adamBetas"]),
        eps=task["adamEps"],
        weight_decay=task["weightDecay"],
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, task["warmupSteps"], task["updates"])
    recorder = Recorder()
    ppo_trainer.truncate_response = recorder.truncating(ppo_trainer.truncate_response)
    rows = Dataset.from_list([{"input_ids": row} for row in task["prompts"]])
    trainer = PPOTrainer(
        args=arguments(task, made.parent / "output"),
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=rows,
        eval_dataset=rows,
        optimizers=(optimizer, schedule),
        callbacks=[recorder],
    )
    trainer.train()
    made.write_text(json.dumps({"updates": recorder.updates}), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
