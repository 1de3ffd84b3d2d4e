"""Models: where they come from, how they are loaded, trained and measured."""
