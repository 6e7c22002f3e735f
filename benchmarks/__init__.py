"""Measurements side by side with other ways to train; not installed, run from the checkout."""
