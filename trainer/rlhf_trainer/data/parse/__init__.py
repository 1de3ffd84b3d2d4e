"""What rows mean: supervised rows, preferences and prompts, validated."""
