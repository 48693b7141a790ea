"""What REPRODUCTION.md says of how adjoint systems are solved, and of the paper's scale, is docs/results'."""

from __future__ import annotations

import json
import statistics

from published import ROOT, chosen, epochs_before_the_fall, is_of_present_code, made, rates, says, span, spread

K = (30, 50, 80)


def at_scale(planner, size, **axes):
    """Return the trials of a planner at the paper's scale: mazes are of 15x15, configuration spaces of 18x18."""
    return chosen(made.at_the_papers_scale(), planner, size=size, **axes)


def best(trial):
    return 100 * max(epoch["valid_success_rate"] for epoch in trial.curves)


def fallen(trial):
    return epochs_before_the_fall(trial.curves)


def arrive(trials, distance=1):
    """Return how many percent of the starts 11 to 20 steps away arrive, for each trial."""
    numbers = (
        [trial.result[f"test_{what}_by_distance"][distance] for what in ("arrivals", "cells")] for trial in trials
    )
    return [100 * arrived / starts for arrived, starts in numbers]


def test_the_papers_scale_is_the_papers():
    found = made.at_the_papers_scale()
    for trial in found:
        data, training = trial.spec["data"], trial.spec["training"]
        assert (data["train"], data["valid"], data["test"], training["epochs"]) == (10000, 2000, 2000, 60)
        assert is_of_present_code(trial)
    assert len({(trial.planner, trial.size, trial.k, trial.spec["seed"]) for trial in found}) == len(found)
    assert len(found) == sum(trial.archive == "paper_scale" for trial in made.archived().values())


def test_id_vin_at_the_papers_scale():
    found = at_scale("id-vin", 15)
    assert len(found) == 15
    short, lost = chosen(found, k=30), [trial for trial in found if fallen(trial) is not None]
    assert all(trial.result["forward_diverged"] for trial in lost)
    settled = [trial for trial in found if trial not in lost]
    assert not any(trial.result["forward_diverged"] for trial in settled) and set(map(id, short)) <= set(map(id, lost))
    others = [(trial.k, trial.spec["seed"], fallen(trial)) for trial in lost if trial.k > 30]
    assert sorted(others) == [(50, 2, 0), (80, 2, 0)] and len(settled) == 8
    arms = at_scale("id-vin", 18, k=80)
    undone = sorted((trial for trial in arms if fallen(trial) is not None), key=lambda trial: trial.spec["seed"])
    (kept,) = (trial for trial in arms if trial not in undone)
    assert len(arms) == 5 and undone[0].spec["seed"] == 0 and fallen(undone[0]) == 0
    says(
        "On mazes by Anderson's method all five seeds diverge",
        f"after {span(map(fallen, short))} epochs in which they came to {span(map(best, short), 1)} % of",
        f"The eight others have {span(rates(settled), 1)} %, and at their best epochs {span(map(best, settled), 1)} %",
        f"the others after {span(map(fallen, undone[1:]))}, in which they came to {span(map(best, undone[1:]), 1)} %",
        f"the fifth has {spread(rates([kept]))} %",
    )
    by_k = {name: " / ".join(spread(rates(at_scale(name, 15, k=k))) for k in K) for name in ("id-vin",)}
    says("VIN and ID-VIN are less affected by K", f"60 epochs, five seeds: {by_k['id-vin']} %")


def test_averaged_it_does_not_diverge():
    mazes, arms = at_scale("id-vin-averaged", 15), at_scale("id-vin-averaged", 18)
    every = [*mazes, *arms]
    assert all(fallen(trial) is None and not trial.result["forward_diverged"] for trial in every)
    assert len(chosen(mazes, k=30)) == 5
    settled = [trial for trial in at_scale("id-vin", 15) if fallen(trial) is None]
    says(
        "Averaged, none of the",
        f"none of the {len(every)} trials diverges",
        f"at K = 30 they have {span(rates(chosen(mazes, k=30)), 1)} %",
        f"11 to 20 steps away {span(arrive(chosen(mazes, k=30)))} % arrive, and {span(arrive(settled))} % by",
        f"they have {spread(rates(chosen(arms, k=30)))} %, beside",
    )
    of_k = [rates(chosen(mazes, k=k)) for k in K if chosen(mazes, k=k)]
    says("VIN and ID-VIN are less affected by K", f"averaged {' / '.join(map(spread, of_k))} %")


def test_how_gradients_grow():
    planned = made.planned("adjoint_solves", None)
    planners = {trial.trial_id: str(trial.axes["planner"]) for trial in planned}
    seeds = {trial.trial_id: trial.spec.seed for trial in planned}
    rows = json.loads((ROOT / "docs" / "results" / "gradients.json").read_text())
    by = {name: [row for row in rows if planners[row["trial_id"]] == name] for name in ("id-vin", "id-vin-averaged")}
    assert all(sorted(seeds[row["trial_id"]] for row in found) == [0, 1, 2, 3, 4] for found in by.values())
    clip = 40
    standing = [row["median"][-1] for row in by["id-vin"] if row["median"][-1] < clip]
    (lost,) = (seeds[row["trial_id"]] for row in by["id-vin"] if row["median"][-1] >= clip)
    longest = {name: max(max(row["largest"]) for row in found) for name, found in by.items()}
    assert longest["id-vin"] == clip and len(standing) == 4
    says(
        "Why the one diverges",
        f"is never above {max(max(row['median']) for row in by['id-vin-averaged']):.1f} with any of the five seeds",
        f"the longest gradient is {longest['id-vin-averaged']:.0f}.",
        f"to {span(standing, 1)} in the fifth epoch's last steps",
        f"seed {lost} has fallen by then",
    )


def test_what_averaging_does_in_table_1():
    found = made.trials("table1_averaged")
    assert all(is_of_present_code(trial) for trial in found)
    for planner in ("id-convgppn", "id-symvin"):
        assert chosen(found, f"{planner}-averaged")
    assert statistics.mean(rates(chosen(found, "id-convgppn-averaged", size=18, k=30))) > 90
