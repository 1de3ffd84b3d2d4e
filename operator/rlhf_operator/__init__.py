"""The operator: observes RLHFJobs and their children, plans, acts."""
