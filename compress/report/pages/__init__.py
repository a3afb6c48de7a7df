"""The report as pages: HTML with pictures, Markdown, the terminal."""
