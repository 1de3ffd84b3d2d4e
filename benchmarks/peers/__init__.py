"""Other systems that do the same work, each in a virtual environment of its own.

`environment` makes it; the scripts run in it, so they import nothing of this project.
"""
