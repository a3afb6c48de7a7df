"""`compress sweep`: one recipe, several runs that differ in some of its keys, and a page that sets them side by side."""
