"""What is decided, and nothing else: no request, no file, no clock. Shared with `rlhf run`."""
