"""The contract of rlhf-operator: resource, stage configuration and results. Pydantic only."""
