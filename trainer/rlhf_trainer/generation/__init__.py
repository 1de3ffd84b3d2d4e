"""Sampling responses from a causal model: a decode loop that computes no finished row.

Called by PPO through `ppo.samplers`. Nothing here learns, and nothing of the model changes.
"""
