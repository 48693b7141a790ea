"""Systems: hard contact in the plane, differentiated; boxes learnt from tosses, and trajectories through contact."""

from typing import Literal

from pydantic import Field

from datagen.spec import Spec
from datagen.tasks.samples import Column, Samples
from orchestrator.sweep.systems import Metric, System


class TossOptions(Spec):
    """What is tossed, and how it is watched.

    Attributes:
        friction: Coulomb's coefficient between box and ground.
        width: Half the box's width, metre.
        height: Half its height.
        steps: Steps that a toss is watched for.
        seconds: Length of a step.
        noise: Standard deviation of what is seen of a velocity, metre (and radian) per second.
    """

    friction: float = Field(0.35, gt=0.0)
    width: float = Field(0.5, gt=0.0)
    height: float = Field(0.3, gt=0.0)
    steps: int = Field(12, ge=2)
    seconds: float = Field(0.05, gt=0.0)
    noise: float = Field(0.0, ge=0.0)


class IdentificationOptions(Spec):
    """How friction and size are identified.

    Attributes:
        central_path: kappa of the simulator that is fitted; its data are of 1e-6, next to hard.
        gradient: By the implicit function theorem, or by central differences of each parameter.
        friction: What is believed at first.
        width: The same.
        height: The same.
    """

    central_path: float = Field(1e-4, gt=0.0)
    gradient: Literal["implicit", "differences"] = "implicit"
    friction: float = Field(0.8, gt=0.0)
    width: float = Field(0.4, gt=0.0)
    height: float = Field(0.4, gt=0.0)


class MotionOptions(Spec):
    """What is to be moved.

    Attributes:
        scene: "push": a box, by a pusher that does not touch it at first; "stride": a hopper that stands.
        friction: Coulomb's coefficient with the ground.
        steps: Steps that a motion has.
        seconds: Length of a step.
    """

    scene: Literal["push", "stride"] = "push"
    friction: float = Field(0.4, gt=0.0)
    steps: int = Field(10, ge=1)
    seconds: float = Field(0.1, gt=0.0)


class TrajectoryOptions(Spec):
    """How forces are found.

    Attributes:
        central_path: kappa of the steps whose derivatives are taken; motions are hard all the same.
        damping: Of Levenberg and Marquardt, (metre per newton)^2.
        trust: Most that a force changes by in an iteration, newton.
    """

    central_path: float = Field(1e-2, gt=0.0)
    damping: float = Field(1e-5, gt=0.0)
    trust: float = Field(2.0, gt=0.0)


def _motion(options: MotionOptions) -> dict[str, Column]:
    return {
        "start": Column("coordinates of `contact.scenes` at first", (4,), "float64"),
        "target": Column("how far to the right it is to lead, metre", dtype="float64"),
    }


def _columns(options: TossOptions) -> dict[str, Column]:
    shape = (options.steps + 1, 3)
    return {
        "place": Column("right, up and angle of the centre after each step: metre, metre, radian", shape, "float64"),
        "velocity": Column("their velocities, per second", shape, "float64"),
    }


TASKS = {
    "tosses": Samples("contact.tosses:toss", options=TossOptions, columns=_columns, per_file=8),
    "motions": Samples("contact.trajectories:motion", options=MotionOptions, columns=_motion, distinct=False),
}
SYSTEMS = {
    "contact": System(
        "contact.identification:Identification",
        tasks=("tosses",),
        options=IdentificationOptions,
        training=("batch_size", "learning_rate"),
        small={"steps": 3},
        metrics={
            "loss": Metric("squared error of a velocity, in training"),
            "prediction": Metric("error of a place, one step ahead", "mm", "lower", scale=1e3),
            "friction": Metric("error of the friction", "%", "lower", scale=100, form=".1f"),
            "size": Metric("error of width and height", "%", "lower", scale=100, form=".1f"),
        },
    ),
    "trajectories": System(
        "contact.trajectories:Trajectories",
        tasks=("motions",),
        options=TrajectoryOptions,
        metrics={
            "slope": Metric("length of the way's gradient", "m/N", form=".1e"),
            "distance": Metric("distance from the target", "cm", "lower", scale=100, form=".1f"),
            "solved": Metric("motions that end within 2 cm of it", "%", "higher", scale=100, form=".0f"),
        },
    ),
}
