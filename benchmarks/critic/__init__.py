"""Parts of `critic_stability.py`."""
