"""The front door: one file per command, and the only files that import Hydra."""
