"""`compress sweep`: one recipe, several runs that differ in some keys, and a page that sets them side by side."""
