"""The report's tables, before they are HTML, Markdown or terminal text."""
