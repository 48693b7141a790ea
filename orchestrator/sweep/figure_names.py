"""The names of the figures, for who must check one without the libraries that draw."""

FIGURE_NAMES = (
    "success",
    "runtime",
    "curves",
    "seconds",
    "residuals",
    "generalisation",
    "backward",
    "solvers",
    "jacobian",
    "distance",
    "lengths",
    "detours",
    "cost",
    "metrics",
    "epochs",
    "history",
    "importances",
    "slices",
    "intermediate",
)
