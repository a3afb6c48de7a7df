"""Where text comes from: local files and hub datasets, read document by document."""
