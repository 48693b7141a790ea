"""A system: what cells cost, learnt from roll-outs compared in pairs, as the density that the annotator has in mind."""

from typing import Literal

from pydantic import Field

from datagen.spec import Spec
from datagen.tasks.samples import Column, Samples
from orchestrator.sweep.systems import Metric, System


class PairOptions(Spec):
    """The world that is walked, and two annotators who compare its ways, each asked as often as the other.

    Attributes:
        size: Rows and columns of the world.
        horizon: Most steps of a way.
        world: Seed of the costs.
        careful: Rationality of the first annotator: how much a cost weighs in a choice.
        noisy: Rationality of the second; there is one annotator where it is the same.
    """

    size: int = Field(8, ge=4, le=32)
    horizon: int = Field(24, ge=4, le=256)
    world: int = Field(0, ge=0)
    careful: float = Field(1.0, gt=0.0)
    noisy: float = Field(1.0, gt=0.0)


class LearningOptions(Spec):
    """What is learnt from, and who is thought to have answered.

    Attributes:
        compared: "ways": two roll-outs between the same ends are seen; "errands": the ends of two errands alone, each
            worth what the planner's cheapest way costs, and what is learnt flows through its fixed point.
        annotators: "one" is thought to have answered; or two, who are "told" apart, or are a "mixture" that nothing
            tells apart.
    """

    compared: Literal["ways", "errands"] = "ways"
    annotators: Literal["one", "told", "mixture"] = "one"


def _columns(options: PairOptions) -> dict[str, Column]:
    cells = (2, options.size, options.size)
    return {
        "visits": Column("how often each way enters each cell", cells),
        "start": Column("where the two errands begin, row by row; both ways are of the first", (2,), "int64"),
        "goal": Column("where they end", (2,), "int64"),
        "annotator": Column("who answers: 0 careful, 1 noisy", dtype="int64"),
        "first_way": Column("1 where the first way is preferred"),
        "first_errand": Column("1 where the first errand is preferred"),
    }


TASKS = {"pairs": Samples("preferences.pairs:pair", options=PairOptions, columns=_columns)}
SYSTEMS = {
    "preferences": System(
        "preferences.learning:Learning",
        tasks=("pairs",),
        options=LearningOptions,
        training=("batch_size", "learning_rate"),
        metrics={
            "loss": Metric("surprise of an answer, in training", "nat", "lower"),
            "from_careful": Metric("divergence from the careful annotator's density", "nat", "lower", form=".3f"),
            "from_noisy": Metric("divergence from the noisy annotator's density", "nat", "lower", form=".3f"),
            "agreement": Metric("test pairs ordered as their true costs", "%", "higher", scale=100, form=".1f"),
            "excess": Metric("planned ways above the cheapest", "%", "lower", scale=100, form=".2f"),
        },
    )
}
