"""What every run of a stage has: ranks, files, artifacts, checkpoints, the loop, reports."""
