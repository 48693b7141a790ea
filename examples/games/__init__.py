"""A system: two cars that plan, and the outcome of their game, learnt from equilibria, as the value of a plan's end."""

from typing import Literal

from pydantic import Field

from datagen.spec import Spec
from datagen.tasks.samples import Column, Samples
from orchestrator.sweep.systems import Metric, System

GIVEN = 10
"""Numbers that a game depends on: places and speeds of both cars, and their top speeds."""


class GameOptions(Spec):
    """Which game, and how long it is.

    Attributes:
        scene: Two cars race on an oval; or each crosses the other's road.
        games: Of a sample, which are solved at once.
        steps: Of a game.
        seconds: Of a step.
        way: How much right of way who is ahead has, of equilibria that differ in who gives way: the other bears
            exp(way) times as much of what it costs to keep apart. With 0 both bear it alike.
    """

    scene: Literal["race", "crossing"] = "race"
    games: int = Field(20, ge=1, le=1000)
    steps: int = Field(12, ge=4, le=64)
    seconds: float = Field(0.25, gt=0.0, le=0.5)
    way: float = Field(3.0, ge=0.0, le=4.0)


class ControllerOptions(Spec):
    """How a car plans, and whom it meets.

    Attributes:
        horizon: Steps of its plan.
        value: Of a plan's end: how far the car has come, and nothing more; what it would bring a car alone; or the
            learned outcome of the game from there.
        against: Steps of the other car's plan, which ends at how far it has come.
        slopes: Weight of the outcome's derivatives in the loss, 0 to learn from outcomes alone.
        width: Of the network's two hidden layers.
        run: Steps that cars meet for in the test, longer than the game.
    """

    horizon: int = Field(4, ge=1, le=64)
    value: Literal["none", "alone", "game"] = "game"
    against: int = Field(4, ge=1, le=64)
    slopes: float = Field(0.1, ge=0.0)
    width: int = Field(32, ge=1)
    run: int = Field(24, ge=1)


def _columns(options: GameOptions) -> dict[str, Column]:
    cars = (options.games, 2)
    return {
        "start": Column("place and speed of each car along and across, metre, second", (*cars, 2, 2), "float64"),
        "top": Column("top speeds, metre/second", cars, "float64"),
        "progress": Column("how far each car comes at the equilibrium, metre", cars, "float64"),
        "slope": Column("its derivatives in start and top", (*cars, GIVEN), "float64"),
        "alone": Column("how far each comes where the other is not there, metre", cars, "float64"),
        "alone_slope": Column("its derivatives", (*cars, GIVEN), "float64"),
        "gain": Column("what each would gain by its best deviation, metre", cars, "float64"),
        "drawn": Column("starts that were drawn for as many with an equilibrium", (), "int16"),
    }


TASKS = {"games": Samples("games.starts:sample", options=GameOptions, columns=_columns, per_file=2)}
SYSTEMS = {
    "game_controller": System(
        "games.trial:Controllers",
        tasks=("games",),
        options=ControllerOptions,
        training=("batch_size", "learning_rate"),
        small={"games": 2, "steps": 6},
        metrics={
            "loss": Metric("squared error of the outcome in training, and of its derivatives"),
            "error": Metric("error of the outcome", "m", "lower", form=".3f"),
            "wins": Metric("races won", "%", "higher", scale=100, form=".1f"),
            "low": Metric("least share of wins, Wilson 95 %", "%", scale=100, form=".1f"),
            "high": Metric("most share of wins, Wilson 95 %", "%", scale=100, form=".1f"),
            "losses": Metric("races lost", "%", "lower", scale=100, form=".1f"),
            "collisions": Metric("races that end in a collision", "%", "lower", scale=100, form=".1f"),
            "lead": Metric("mean lead at the end", "m", "higher", form=".2f"),
            "together": Metric("how far both come", "m", "higher", form=".1f"),
            "unsolved": Metric("plans that are not solved", "%", "lower", scale=100, form=".2f"),
            "off_track": Metric("cars that leave the track", "%", "lower", scale=100, form=".2f"),
            "gain": Metric("most that a car of a test game gains by deviating", "mm", "lower", scale=1e3, form=".2f"),
            "plan": Metric("processor time of a plan", "ms", "lower", scale=1e3, measured=True),
        },
    )
}
