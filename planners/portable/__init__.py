"""A trained planner as one graph with its loop inside, for runtimes that know nothing of these packages.

- The planner in the form that is written, map and goal to actions: `inference_form.InferenceForm`.
- As a graph, as bytes, and run from bytes: `formats.exported`, `formats.written`, `formats.opened`.
- Whether what was written plans as the planner does: `agreement.check`.
"""
