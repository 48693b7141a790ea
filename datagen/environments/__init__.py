"""Tasks as gymnasium environments: importing this registers one for each, `idp/Navigation-v0` for `navigation`.

Begin with `registration.make` and `episodes.Episodes`.

- What an action does and costs, who has arrived, what is told: `episodes.Episodes`.
- One episode at a time: `single.PlanningEnv`; many side by side: `vector.PlanningVectorEnv`.
- Ids and their arguments: `registration.register_tasks`.
"""

from datagen.environments.registration import make, make_vector, register_tasks
from datagen.environments.single import PlanningEnv
from datagen.environments.vector import PlanningVectorEnv

__all__ = ["PlanningEnv", "PlanningVectorEnv", "make", "make_vector", "register_tasks"]

register_tasks()
