"""The baselines: methods to compare with, each what may be chosen of it and the tuner it means."""
