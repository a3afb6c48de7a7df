"""Results on one page: report.json, report.md and report.html from a run folder."""
