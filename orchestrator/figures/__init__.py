"""Pictures: of a sweep's results, of a search, of a problem and its plan.

Begin with `registry.write_figures`.

- Of results: `success.success`, `solvers.residuals`, `measures.lengths`, of systems `metrics.metrics`.
- Of a search: `search.history`. Of one problem: `problem.write_trial_pictures`, drawn by `cells.board`.
- Of somebody's own map: `own_map.write_route`.
- What they share: `parts.pens_of`, `style.panels`; what others have published: `published.Published`.
"""
