"""What `operator_scale.py` is made of."""
