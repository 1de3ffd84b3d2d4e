"""The fields that decide about weights, each with a value other than that of `test_training`.

Read by `test_training`, which trains with each, and by `test_list`, which finds what is missing.
"""

from typing import Any

# Answers that all are good become more likely: the KL lies on either side of a target above 0.
KL_CONTROL: dict[str, Any] = {"kl_controller": "Adaptive", "advantage_normalization": "None"}

SHARED: dict[str, dict[str, Any]] = {
    "model": {"model": "other"},
    "dataset": {"dataset": "other"},
    "batch_size": {"batch_size": 2},
    "seed": {"seed": 4},
    "learning_rate": {"learning_rate": 0.004},
    "adam_betas": {"adam_betas": (0.5, 0.7)},
    "adam_betas[1]": {"adam_betas": (0.9, 0.6)},
    "adam_eps": {"adam_eps": 0.1},
    "weight_decay": {"weight_decay": 0.5},
    "warmup_ratio": {"warmup_ratio": 0.5},
    "schedule": {"schedule": "Constant"},
    "schedule[Linear]": {"schedule": "Linear"},
    "gradient_clipping": {"gradient_clipping": 0.05},
    "gradient_clipping[0]": {"gradient_clipping": 0.0},
    "epochs": {"max_steps": None, "epochs": 2},
    "max_steps": {"max_steps": 2},
}
"""Of all three stages."""

OWN: dict[str, dict[str, dict[str, Any]]] = {
    "sft": {"max_length": {"max_length": 12}},
    "reward": {
        "max_length": {"max_length": 12},
        "margin": {"margin": 0.7},
        "centering_coef": {"centering_coef": 0.3},
    },
    "ppo": {
        "reward_model": {"reward_model": "other"},
        "critic_model": {"critic_model": "other"},
        "value_head_init": {"value_head_init": "Zero"},
        "max_prompt_length": {"max_prompt_length": 5},
        "temperature": {"temperature": 0.6},
        "minibatch_size": {"minibatch_size": 2},
        "update_epochs": {"update_epochs": 3},
        "critic_learning_rate": {"critic_learning_rate": 0.003},
        "critic_warmup_steps": {"critic_warmup_steps": 1},
        "kl_estimator": {"kl_estimator": "K2"},
        "kl_estimator[K3]": {"kl_estimator": "K3"},
        "kl_coef": {"kl_coef": 1.5},
        "kl_controller": {"kl_controller": "Adaptive"},
        "kl_target": KL_CONTROL | {"kl_target": 0.1},
        "kl_horizon": KL_CONTROL | {"kl_horizon": 40},
        "gamma": {"gamma": 0.5},
        "gae_lambda": {"gae_lambda": 0.3},
        "clip_range": {"clip_range": 0.01},
        "value_clip_range": {"value_clip_range": 0.002},
        "value_coef": {"value_coef": 0.1},
        "entropy_coef": {"entropy_coef": 0.5},
        "score_clip": {"score_clip": 0.1},
        "missing_eos_penalty": {"missing_eos_penalty": 0.5},
        "advantage_normalization": {"advantage_normalization": "Minibatch", "minibatch_size": 2},
        "advantage_normalization[None]": {"advantage_normalization": "None"},
        "reward_scaling": {"reward_scaling": "None"},
        "reward_scaling[RunningStd]": {"reward_scaling": "RunningStd"},
        "ptx_dataset": {"ptx_dataset": True},
        "ptx_coef": {"ptx_dataset": True, "ptx_coef": 0.5},
    },
}
"""Of one stage."""

BESIDE: dict[str, dict[str, Any]] = {
    "epochs": {"max_steps": None},
    "kl_target": KL_CONTROL,
    "kl_horizon": KL_CONTROL,
    "advantage_normalization": {"minibatch_size": 2},
    "ptx_coef": {"ptx_dataset": True},
}
"""What stands on both sides of a comparison, where a field acts beside another one only."""


def cases() -> list[tuple[str, str]]:
    """Every stage with every case."""
    return [(stage, case) for stage in OWN for case in (*SHARED, *OWN[stage])]


def change(stage: str, case: str) -> dict[str, Any]:
    """Fields of a case."""
    return SHARED[case] if case in SHARED else OWN[stage][case]


def trained(stage: str) -> set[str]:
    """Fields of a stage that have a case."""
    return {case.partition("[")[0] for case in (*SHARED, *OWN[stage])}
