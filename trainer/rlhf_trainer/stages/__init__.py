"""The three stages, each a story of its own: they share parts and never import one another."""
