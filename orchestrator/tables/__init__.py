"""Numbers: a sweep's results as rows, beside the paper's, as text, Markdown and LaTeX.

Begin with `summary.summarise`; `columns.Quantity` is where a column is added.

- What is read: `records.collect`; what of it may stand together: `freshness.of_one_version`.
- Numbers: `rows.rows`, `generalisation.further`, `measures.measured_tables`, `comparison.compared`,
  `aggregates.aggregates`, `paper.beside_paper`, `statistics.sample`.
- Searches: `studies.studies_of`; as Optuna has them: `optuna_study.write_journal`.
- How they look: `table.Table`, `layout.layout_table` as papers have it, `latex.fragment`, `formats.render`.
"""
