"""What the numbers mean: intervals, tests, comparisons, verdicts in words, what a cut was chosen by."""
