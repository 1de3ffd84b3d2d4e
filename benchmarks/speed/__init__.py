"""Parts of `ppo_step.py` and `supervised.py`."""
