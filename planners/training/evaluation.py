"""Problems as a planner takes them, and how well it plans them (section 5.1)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from datagen.expert.graph import Links, read_links
from datagen.expert.grid import goal_distances, tied_actions
from datagen.problem import Moves, Problems
from datagen.shapes import shaped
from planners.edge import enclosed, plan_walled
from planners.fixed_points.transfers import sent
from planners.planner import Planner
from planners.registry import Measure
from planners.training.measures import Facts, cosines, measure
from planners.training.rollout import Evaluation, evaluate_by_squaring, evaluate_policy

if TYPE_CHECKING:
    from jaxtyping import Float, Int64, Shaped


class ProblemSource(Protocol):
    """Where a trainer reads problems: `Problems` in memory, or a stream of a set that does not fit there."""

    def __len__(self) -> int:
        """Return the number of problems."""

    def batches(self, size: int, seed: int, epoch: int) -> Iterator[Problems]:
        """Yield one epoch of full batches, shuffled by (seed, epoch) alone."""

    def in_order(self, size: int) -> Iterator[Problems]:
        """Yield all problems in order, at most `size` at a time."""


@shaped
@dataclass(frozen=True, eq=False)
class Inputs:
    """A batch as the planner takes it."""

    map: Float[Tensor, "B 1 h w"]
    goal: Float[Tensor, "B 1 h w"]
    label: Int64[Tensor, "B h w"]
    optimal_actions: Int64[Tensor, "B h w"]
    observation: Shaped[Tensor, "B ..."] | None
    open_edge: bool
    """Whether any map has a free cell at its edge."""
    start: Int64[Tensor, "B 2"] | None = None

    @classmethod
    def of(cls, batch: Problems, device: torch.device | str = "cpu") -> Inputs:
        """Return a batch's tensors on the device, the goal as a one in an image of zeros."""
        n, height, width = batch.map.shape
        goal = torch.zeros(n, 1, height, width)
        goal[torch.arange(n), 0, batch.goal[:, 0].astype("int64"), batch.goal[:, 1].astype("int64")] = 1.0

        def there(array: np.ndarray) -> Tensor:
            return sent(torch.from_numpy(array), torch.device(device))

        return cls(
            map=there(batch.map).float().unsqueeze(1),
            goal=sent(goal, torch.device(device)),
            label=there(batch.label).long(),
            optimal_actions=there(batch.optimal_actions).long(),
            observation=None if batch.observation is None else there(batch.observation),
            start=None if batch.start is None else there(batch.start).long(),
            open_edge=bool((batch.map[:, [0, -1]] > 0).any() or (batch.map[:, :, [0, -1]] > 0).any()),
        )


@torch.no_grad()
def evaluate(
    planner: Planner,
    problems: ProblemSource,
    *,
    moves: Moves,
    batch_size: int = 32,
    k_fwd: int | None = None,
    progress: Callable[[int], None] | None = None,
    measures: Collection[Measure] = (),
) -> Evaluation:
    """Plan every problem and roll the greedy policy out from every cell that can reach the goal.

    Args:
        planner: The planner; it stays on its device.
        problems: What to plan, of any map size.
        moves: What the actions do.
        batch_size: Problems planned at once; the result does not depend on it.
        k_fwd: Most forward steps, where they differ from the planner's own.
        progress: Called with the number of problems done so far.
        measures: What else to measure.

    Returns:
        Success rate, optimality, SPL and more.

    Raises:
        ValueError: There is no problem.
    """
    if not len(problems):
        raise ValueError("problems: expected at least one to plan, got none")
    was_training = planner.training
    planner.eval()
    try:
        parts = list(_planned(planner, problems, moves, batch_size, k_fwd, progress, "path_independence" in measures))
    finally:
        planner.train(was_training)
    residual, cosine, recovered, actions, searched, *told = (torch.cat(part) for part in zip(*parts, strict=True))
    free, goal, distance, optimal_actions, *more = told
    costs = more.pop() if len(more) > 2 and not moves.links else None
    roads = (more.pop(0), more.pop(0)) if moves.links or costs is not None else None
    if roads:
        found = evaluate_by_squaring(actions, free, goal, distance, optimal_actions, roads, *more)
    else:
        found = evaluate_policy(actions, free, goal, distance, optimal_actions, moves, *more)
        if searched.numel():
            there = evaluate_policy(searched, free, goal, distance, optimal_actions, moves, *more)
            found = replace(found, searched=there.success_rate)
    if not measures:
        return found
    facts = Facts(actions, free, goal, distance, optimal_actions, roads or moves, *more)
    return replace(found, measured=measure(measures, facts, residual, cosine, costs, recovered))


def _planned(
    planner: Planner,
    problems: ProblemSource,
    moves: Moves,
    batch_size: int,
    k_fwd: int | None,
    progress: Callable[[int], None] | None,
    twice: bool,
) -> Iterator[tuple[Tensor, ...]]:
    """Yield what `_plan` returns of each batch, with the facts that policies are judged by, costs of cells last."""
    device = next(planner.parameters()).device
    done = 0
    for batch in problems.in_order(batch_size):
        inputs = Inputs.of(batch, device)
        facts: tuple[Any, ...] = (batch.map, batch.goal, batch.distance, batch.optimal_actions)
        if moves.links or batch.costs is not None:
            links = _links(batch, moves)
            facts += (links.target, links.cost)
        if batch.start is not None:
            facts += (batch.start,)
        if batch.costs is not None:
            facts += (batch.costs,)
        found = _plan(planner, inputs, moves, k_fwd, done if twice else None)
        yield *found, *(torch.from_numpy(fact).to(device) for fact in facts)
        done += len(batch)
        if progress is not None:
            progress(done)


def _links(batch: Problems, moves: Moves) -> Links:
    """Return the roads of a batch, of graphs or of grids whose cells have costs."""
    if batch.costs is None:
        return read_links(moves, batch.observation)
    from datagen.expert.cells import cell_links  # compiled code, which other tasks' tests do without

    return cell_links(batch.map, batch.costs, moves)


def _plan(
    planner: Planner, inputs: Inputs, moves: Moves, k_fwd: int | None, first: int | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return each problem's residual, its cosine [B] (see `cosines`), costs of cells, and two policies.

    Costs are those that a mapper has recovered, in any order-preserving measure of theirs; nan without a mapper. The
    policies are the planner's greedy one, and that of `searched`, of which there is none without a mapper.

    Args:
        planner: The planner.
        inputs: The problems.
        moves: What the actions do.
        k_fwd: Most forward steps; None is the planner's own number.
        first: Number of the first problem, None to solve once and have no cosine.
    """
    inside = enclosed(planner, inputs.map, inputs.observation, moves)
    actions = torch.empty(inputs.label.shape, dtype=torch.int64, device=inputs.map.device)
    residual, cosine = torch.empty(len(actions)), torch.full((len(actions),), torch.nan)
    search = actions.new_empty((len(actions), 0, 0))
    recovered = torch.full(actions.shape, torch.nan)
    # Maps with and without a wall round them apart: no result may depend on the rest of its batch.
    for chosen in (inside, ~inside):
        if chosen.any():
            rows = slice(None) if chosen.all() else chosen
            here = rows if isinstance(rows, slice) else rows.cpu()
            observation = None if inputs.observation is None else inputs.observation[rows]
            plan = plan_walled(planner, inputs.map[rows], inputs.goal[rows], observation, moves=moves, k_fwd=k_fwd)
            actions[rows] = plan.logits.max(1).indices
            residual[here] = plan.solution.residual.float().cpu()
            if plan.map_logits is not None:
                # A mapper's maps are planned all at once.
                search = searched(plan.map_logits, inputs.goal, moves)
                recovered[here] = -plan.map_logits[:, 0].float().cpu()
            if first is not None:
                numbers = first + torch.arange(len(actions))[here]
                cosine[here] = cosines(planner, plan, numbers.tolist(), k_fwd).float()
    return residual, cosine, recovered, actions, search


def searched(
    map_logits: Float[Tensor, "B 1 h w"], goal: Float[Tensor, "B 1 h w"], moves: Moves
) -> Int64[Tensor, "B h w"]:
    """Return the actions of a graph search in the planner's place, int64 [B, h, w].

    It is told what the planner is told: the map that a mapper has drawn, free where that is more likely than not.

    Args:
        map_logits: [B, 1, h, w], the logit that a cell is free.
        goal: [B, 1, h, w], one at the goal.
        moves: What the actions do.

    Returns:
        In each cell the first of the actions that a shortest path begins with; any where the drawn map has no path.
    """
    at = goal[:, 0].flatten(1).argmax(1).cpu().numpy()
    drawn = (map_logits[:, 0] > 0).to(torch.uint8).cpu().numpy()
    places = np.stack(np.divmod(at, drawn.shape[2]), axis=1)
    drawn[np.arange(len(drawn)), places[:, 0], places[:, 1]] = 1
    tied = tied_actions(drawn, goal_distances(drawn, places.astype(np.int16), moves), moves)
    first = np.log2(tied & -tied.astype(np.int16)).astype(np.int64)
    return torch.from_numpy(first).to(map_logits.device)
