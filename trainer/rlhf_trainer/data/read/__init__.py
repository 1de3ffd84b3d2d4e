"""Rows of files and hubs, as they stand."""
