"""Hyperparameters that other PPO systems published, under our field names.

Read by `PPOStage`, which fills in what an object leaves out. Values that no source states are
absent. Every preset names `reward_scaling` and `value_normalization`, so that it means the same
whatever their defaults are. None names `batch_size` or `minibatch_size`, which the machine decides.
docs/presets.md shows this table with its sources, and what of those systems is not reproduced.
"""

from collections.abc import Collection, Mapping
from typing import Any, Literal

Preset = Literal["dschat", "colossalchat", "trlx", "nDetails", "openrlhf", "report"]

_COMMON: dict[str, Any] = {
    "kl_estimator": "K1",
    "kl_controller": "Fixed",
    "gamma": 1.0,
    "gae_lambda": 0.95,
    "clip_range": 0.2,
    "value_clip_range": 0.2,
    "entropy_coef": 0.0,
    "reward_scaling": "None",
    "value_normalization": "None",
}

PRESETS: Mapping[Preset, Mapping[str, Any]] = {
    # DeepSpeedExamples 45b4b715, DeepSpeed-Chat: ppo_trainer.py, step 3 main.py and its scripts.
    "dschat": _COMMON
    | {
        "kl_coef": 0.1,
        "score_clip": 5.0,
        "advantage_normalization": "None",
        "learning_rate": 9.65e-6,
        "critic_learning_rate": 5e-6,
        "schedule": "Cosine",
        "adam_betas": (0.9, 0.95),
        "weight_decay": 0.0,
        "gradient_clipping": 1.0,
        "update_epochs": 1,
        "max_prompt_length": 256,
        "max_response_length": 256,
        "ptx_coef": 27.8,
        "ema_decay": 0.992,
    },
    # ColossalAI 4f9953be, ColossalChat: models/utils.py, models/loss.py, train_ppo.py.
    "colossalchat": _COMMON
    | {
        "kl_coef": 0.1,
        "score_clip": 5.0,
        "advantage_normalization": "None",
        "learning_rate": 9e-6,
        "critic_learning_rate": 9e-6,
        "schedule": "Cosine",
        "adam_betas": (0.9, 0.95),
        "weight_decay": 0.1,
        "gradient_clipping": 1.0,
        "update_epochs": 5,
        "temperature": 0.7,
        "max_response_length": 256,
    },
    # trlX 3340c2f3: default_configs.py, accelerate_ppo_trainer.py. Its cosine ends where it starts;
    # one optimizer trains both heads there, so the critic has the actor's rate.
    "trlx": _COMMON
    | {
        "kl_coef": 0.001,
        "score_clip": 10.0,
        "advantage_normalization": "Minibatch",
        "value_coef": 1.0,
        "learning_rate": 3e-5,
        "critic_learning_rate": 3e-5,
        "schedule": "Constant",
        "warmup_ratio": 0.0,
        "adam_betas": (0.9, 0.95),
        "adam_eps": 1e-8,
        "weight_decay": 1e-6,
        "gradient_clipping": 1.0,
        "update_epochs": 4,
        "temperature": 1.0,
        "max_response_length": 40,
    },
    # lm-human-preference-details ccc19538, train_policy_accelerate.py (Huang et al., "The N
    # Implementation Details of RLHF with PPO", 2023).
    "nDetails": _COMMON
    | {
        "kl_coef": 0.15,
        "kl_controller": "Adaptive",
        "kl_target": 6.0,
        "kl_horizon": 10_000,
        "advantage_normalization": "Batch",
        "value_head_init": "Zero",
        "value_coef": 0.1,
        "learning_rate": 1e-5,
        "critic_learning_rate": 1e-5,
        "schedule": "Linear",
        "warmup_ratio": 0.0,
        "adam_betas": (0.9, 0.999),
        "adam_eps": 1e-5,
        "gradient_clipping": 0.0,
        "update_epochs": 4,
        "temperature": 0.7,
        "max_prompt_length": 64,
        "max_response_length": 24,
    },
    # OpenRLHF 3c3be623: models/loss.py, models/utils.py, the PPO command line's defaults.
    "openrlhf": _COMMON
    | {
        "kl_coef": 0.01,
        "gae_lambda": 1.0,
        "value_clip_range": 0.5,
        "score_clip": 10.0,
        "advantage_normalization": "Batch",
        "learning_rate": 1e-6,
        "critic_learning_rate": 9e-6,
        "schedule": "Cosine",
        "warmup_ratio": 0.03,
        "adam_betas": (0.9, 0.95),
        "gradient_clipping": 1.0,
        "update_epochs": 1,
        "temperature": 1.0,
    },
    # A practitioner's remedy for a critic that diverged in DeepSpeed-Chat (DeepSpeedExamples#556
    # shows the same data and figures); all else is our default.
    "report": {
        "gamma": 0.99,
        "reward_scaling": "RunningStd",
        "value_normalization": "None",
    },
}


def preset_values(preset: Preset | None, held: Collection[str]) -> Mapping[str, Any]:
    """What a preset adds to a stage, by field name.

    Args:
        preset: its name; None adds nothing.
        held: fields that the stage holds: the user's own, whatever their values. A weight of the
            loss on `ptx_dataset` counts only beside that dataset.
    """
    values = PRESETS[preset] if preset is not None else {}
    without = {*held, "ptx_coef"} if "ptx_dataset" not in held else held
    return {field: value for field, value in values.items() if field not in without}
