"""Rows in, token arrays out: reading, validating, tokenizing, packing and ordering data.

Called by the stages, on every rank alike: the same files, spec and seed give the same result
everywhere, and no rank ever drops a row that another keeps. Nothing here knows ranks, devices or
weights.
"""
