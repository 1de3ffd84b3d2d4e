"""`rlhf`: validate and run RLHFJobs on one machine."""
