"""The parts of PPO that the stage is composed of."""
