"""Numbers: a sweep's results as rows, beside the paper's, as text, Markdown and LaTeX."""
