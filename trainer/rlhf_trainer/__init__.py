"""The trainer: one stage of an RLHFJob on its ranks."""
