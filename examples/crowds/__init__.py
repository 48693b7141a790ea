"""A system: members of a crowd that leaves a building are given personas, until it behaves as an expert's."""

from typing import Literal

from pydantic import Field

from datagen.spec import Spec
from datagen.tasks.samples import Column, Samples
from orchestrator.sweep.systems import Metric, System

CONDUCTS = ("goes its own way", "follows", "freezes", "waits")
"""What a member does in a step."""


class EvacuationOptions(Spec):
    """The expert's benchmark: how many leave, how long they are watched, and where.

    Attributes:
        members: Of a crowd.
        steps: That a crowd is watched for.
        elsewhere: Share of the crowds that leave another building, which no persona is sought in.
    """

    members: int = Field(48, ge=1, le=120)
    steps: int = Field(90, ge=10, le=1000)
    elsewhere: float = Field(0.3, ge=0.0, lt=1.0)


class SearchOptions(Spec):
    """How personas are found.

    Attributes:
        steering: Everybody plans and is nothing else; or personas say outright what was observed; or they are rewritten
            until the crowd behaves so; or, as the least that can be reached, members are of the expert's own kinds.
        proposer: Who rewrites: an evolutionary rewriter, or a language model at the endpoint that IDP_CROWDS_ENDPOINT
            names (and IDP_CROWDS_MODEL, IDP_CROWDS_KEY), OpenAI's chat completions.
        personas: Of a crowd, each for an equal share of its members.
        candidates: Crowds that are proposed in an epoch.
        kept: Best crowds so far that the next are made from.
    """

    steering: Literal["none", "instructed", "evolved", "expert"] = "evolved"
    proposer: Literal["rewriter", "endpoint"] = "rewriter"
    personas: int = Field(8, ge=1)
    candidates: int = Field(12, ge=1)
    kept: int = Field(3, ge=1)


def _columns(options: EvacuationOptions) -> dict[str, Column]:
    members = (options.members,)
    return {
        "building": Column("number of the building, 0 where personas are sought", (), "int8"),
        "start": Column("row and column of each member", (*members, 2), "int16"),
        "door": Column("number of the door that it left by, from 1; 0 where it has not", members, "int8"),
        "time": Column("steps until it left, or all", members, "int16"),
        "conduct": Column(f"steps that it {', '.join(CONDUCTS)}", (*members, len(CONDUCTS)), "int16"),
    }


TASKS = {"evacuations": Samples("crowds.expert:evacuation", options=EvacuationOptions, columns=_columns, per_file=16)}
SYSTEMS = {
    "persona_search": System(
        "crowds.search:PersonaSearch",
        tasks=("evacuations",),
        options=SearchOptions,
        metrics={
            "sought": Metric("divergence of the best crowd, on the crowds that it is sought with", "bit", form=".4f"),
            "divergence": Metric("divergence from the expert's crowds", "bit", "lower", form=".4f"),
            "elsewhere": Metric("the same in another building", "bit", "lower", form=".4f"),
            "leaving": Metric("divergence of doors and times", "bit", "lower", form=".4f"),
            "conduct": Metric("divergence of what members do", "bit", "lower", form=".4f"),
        },
    )
}
