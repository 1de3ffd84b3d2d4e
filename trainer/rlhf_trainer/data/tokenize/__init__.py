"""Validated rows as token sequences."""
