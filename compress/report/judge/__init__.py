"""What the numbers mean: intervals, tests, comparisons, verdicts in words."""
