"""The checks of gpu_acceptance.py, a file for each of its rooms."""
