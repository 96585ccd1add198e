"""Runs: how a search is driven, what it leaves, and how it goes on after a stop."""
