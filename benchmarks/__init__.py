"""Commands that measure speed; their results are in results/."""
