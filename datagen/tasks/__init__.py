"""The tasks, and the registry that names them.

Begin with `registry.DatasetSpec` and `registry.Task`.

- Mazes and open maps: `navigation.draw`, `mazes.draw` of the `kinds`, `maze_unique.draw`; as they are seen from inside:
  `visual_navigation.draw`.
- Tiles that cost something: `terrain.draw`.
- The two-link arm: `manipulation.draw` by `arm.configuration_space`.
- Of other people's: maps by `proposed.draw_proposed`, told apart by `distinct.distinct_hashes`; what are no maps:
  `samples.Samples`.
"""
