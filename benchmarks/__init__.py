"""Commands that measure speed; results stand in results/."""
