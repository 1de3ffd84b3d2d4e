"""The processes of a stage: how they start, hear, end, and what they leave behind."""
