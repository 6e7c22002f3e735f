"""Programs that show the package at work on real data; not installed, run from the checkout."""
