"""What REPRODUCTION.md says of how adjoint systems are solved, and of the paper's scale, is docs/results'."""

from __future__ import annotations

import json
import statistics
from itertools import chain, pairwise

from published import (
    ROOT,
    archive,
    chosen,
    epochs_before_the_fall,
    epochs_on_a_gpu,
    is_of_present_code,
    made,
    power,
    rates,
    says,
    span,
    spread,
    trials,
)

K = (30, 50, 80)
CONV_18, CONV_36, SYM_36 = ("id-convgppn", 18), ("id-convgppn", 36), ("id-symvin", 36)
CLIP = 40
CHEAP = ("vin", "id-vin", "contractive", "reachability")
DEAR = ("symvin", "convgppn", "id-symvin", "id-convgppn")


def at_scale(planner, size, **axes):
    """Return the trials of a planner at the paper's scale: mazes are of 15x15, configuration spaces of 18x18."""
    return chosen(made.at_the_papers_scale(), planner, size=size, **axes)


def best(trial):
    return 100 * max(epoch["valid_success_rate"] for epoch in trial.curves)


def fallen(trial):
    return epochs_before_the_fall(trial.curves)


def arrive(trials, bin=1):
    """Return how many percent of the starts 11 to 20 steps away arrive, or of another bin, for each trial."""
    numbers = ([trial.result[f"test_{what}_by_distance"][bin] for what in ("arrivals", "cells")] for trial in trials)
    return [100 * arrived / starts for arrived, starts in numbers]


def late(trials):
    """Return how often success falls by over 15 points in an epoch after the 20th, its least, and its last mean."""
    curves = [[100 * epoch["valid_success_rate"] for epoch in trial.curves] for trial in trials]
    falls = sum(before - after > 15 for curve in curves for before, after in pairwise(curve[19:]))
    return falls, min(min(curve[20:]) for curve in curves), statistics.mean(chain(*(curve[-10:] for curve in curves)))


def rows(name):
    return json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text())


def test_the_papers_scale_is_the_papers():
    found = made.at_the_papers_scale()
    for trial in found:
        data, training = trial.spec["data"], trial.spec["training"]
        assert (data["train"], data["valid"], data["test"], training["epochs"]) == (10000, 2000, 2000, 60)
        assert is_of_present_code(trial)
        assert (fallen(trial) is not None) == trial.result["forward_diverged"]
    assert len({(trial.planner, trial.size, trial.k, trial.spec["seed"]) for trial in found}) == len(found)
    assert len(found) == sum(trial.archive == "paper_scale" for trial in archive.archived().values())


def test_id_vin_at_the_papers_scale():
    found = at_scale("id-vin", 15)
    assert len(found) == 15
    short, settled = chosen(found, k=30), [trial for trial in found if fallen(trial) is None]
    others = [(trial.k, trial.spec["seed"], fallen(trial)) for trial in found if trial.k > 30 and trial not in settled]
    assert sorted(others) == [(50, 2, 0), (80, 2, 0)] and len(settled) == 8
    arms = at_scale("id-vin", 18)
    (kept,) = (trial for trial in arms if fallen(trial) is None)
    assert kept.k == 80 and len(chosen(arms, k=80)) == 5
    says(
        "On mazes by Anderson's method all five seeds diverge",
        f"after {span(map(fallen, short))} epochs in which they came to {span(map(best, short), 1)} % of",
        f"The eight others have {span(rates(settled), 1)} %, and at their best epochs {span(map(best, settled), 1)} %",
        f"{len(arms) - 1} of the {len(arms)} that were run diverge",
        f"the one that does not has {spread(rates([kept]))} %",
    )
    vin, own = (" / ".join(spread(rates(at_scale(planner, 15, k=k))) for k in K) for planner in ("vin", "id-vin"))
    says("VIN and ID-VIN are less affected by K", f"60 epochs, five seeds: VIN {vin} %, ID-VIN {own} %")


def test_the_dear_ones_at_the_papers_scale():
    found = [trial for trial in made.at_the_papers_scale() if trial.planner in DEAR]
    assert {(trial.k, trial.spec["seed"]) for trial in found} == {(30, 0)}
    assert all(fallen(trial) is None for trial in found)
    (layers,), (dear,), (symvin,) = at_scale("convgppn", 15), at_scale("id-convgppn", 15), at_scale("symvin", 18)
    explicit, implicit = (spread(rates([trial])) for trial in (layers, dear))
    (middle, far), (middle_too, far_too) = ([arrive([trial], bin)[0] for bin in (2, 3)] for trial in (layers, dear))
    valid = [100 * epoch["valid_success_rate"] for epoch in dear.curves]
    says(
        "Of the dear planners one seed",
        f"ConvGPPN has {explicit} % and ID-ConvGPPN {implicit} (",
        f"({spread(rates(chosen(trials('accuracy'), 'id-convgppn', k=30)))} after 12",
        f"21 to 40 steps away {middle:.1f} and {middle_too:.1f} % arrive",
        f"41 to 80 away {far:.1f} and {far_too:.1f}.",
        f"changes the value by {layers.result['forward_residual']:.2f})",
        f"leaves {dear.result['forward_residual']:.2f} and the adjoint {dear.result['backward_residual']:.2f}",
        f"it has {span(valid[3:], 1)} % of the validation maps",
    )
    twins = [at_scale(planner, 18)[0] for planner in ("id-symvin", "id-convgppn")]
    (layers,) = at_scale("convgppn", 18)
    gated = spread(rates([layers]))
    (success, *others), (turned, leaves) = ([spread(rates([trial])) for trial in (symvin, *twins)], twins)
    on_a_gpu = [len(epochs_on_a_gpu(trial)) for trial in twins]
    last, first = turned.curves[on_a_gpu[0] - 1 :][:2]
    least = min(epoch["train_loss"] for epoch in turned.curves)
    says(
        "In configuration space SymVIN",
        f"has {success} %, ConvGPPN {gated}, ID-SymVIN {others[0]} and ID-ConvGPPN {others[1]};",
        f"of ID-ConvGPPN leaves {leaves.result['forward_residual']:.2f}, that of ID-SymVIN",
        f"ID-SymVIN {turned.result['forward_residual']:.2f} and its adjoint {turned.result['backward_residual']:.2f}.",
        f"({on_a_gpu[1]}, {on_a_gpu[0]} and {len(epochs_on_a_gpu(layers))} epochs)",
        f"from {least:.3f} to {last['train_loss']:.3f} and is {first['train_loss']:.3f} in the next epoch",
        f"({100 * last['valid_success_rate']:.1f} and {100 * first['valid_success_rate']:.1f} % of the validation",
    )
    loss = [epoch["train_loss"] for epoch in layers.curves]
    rises = max(range(len(loss)), key=lambda epoch: loss[epoch] - loss[max(epoch - 1, 0)])
    beside = span([*loss[rises - 2 : rises], *loss[rises + 1 : rises + 3]], 2)
    told = f"loss is {loss[rises]:.2f} in its {rises + 1}st epoch and {beside} in the two before and after it."
    says("In configuration space SymVIN", told)
    says("VIN even outperforms", f"SymVIN {success} and ConvGPPN {gated} (one seed)")
    says("On manipulation ID-SymVIN", f"(K = 30, one seed: ID-SymVIN {others[0]}, ID-ConvGPPN {others[1]} %)")
    says(
        "ID-ConvGPPN is the best planner",
        f"with 60 epochs, K = 30, ID-ConvGPPN has {implicit} % and ConvGPPN {explicit} (VIN",
        f"ID-ConvGPPN {others[1]}, ConvGPPN {gated}, ID-SymVIN {others[0]} and SymVIN {success} (one seed each)",
    )
    says("Of the paper's", f"ConvGPPN {explicit}, ID-ConvGPPN {implicit} %)", page="README.md")
    classes = "ConvGPPN and ID-ConvGPPN are the best of their classes"
    says(classes, f"ConvGPPN {explicit} beside VIN's", f"ID-ConvGPPN {implicit}, which is above")
    others = chosen(made.at_the_papers_scale(), core="vin", adjoint="implicit", size=15)
    assert max(rates(others)) < rates([dear])[0]


def test_ours_on_mazes_at_the_papers_scale():
    ours, deeper = (at_scale("contractive", 15, k=k) for k in (30, 50))
    for found in (ours, deeper):
        assert [trial.spec["seed"] for trial in found] == [0, 1, 2, 3, 4] and not any(map(fallen, found))
    firsts = [100 * trial.curves[0]["valid_success_rate"] for trial in ours]
    (near, _, middle, far), (_, _, middle_too, far_too) = (
        [statistics.mean(arrive(found, bin)) for bin in range(4)] for found in (ours, deeper)
    )
    says(
        "On mazes ours has",
        f"{spread(rates(ours))} %, as after ten epochs",
        f"and {span(firsts, 1)} % of the validation maps after the first",
        f"of the starts up to 10 steps away {near:.1f} % arrive, of those 21 to 40 away {middle:.1f} %",
        f"of those 41 to 80 away {far:.1f} %",
        f"With K = 50 it has {spread(rates(deeper))} % ({middle_too:.1f} of",
        f"{far_too:.1f} of those 41 to 80 away)",
    )


def test_ours_in_configuration_space_settles_once_in_five_seeds():
    ours = at_scale("contractive", 18, k=30)
    (low,), others = (
        [trial for trial in ours if (rates([trial])[0] < made.SETTLED) is settled] for settled in (True, False)
    )
    assert [trial.spec["seed"] for trial in others] == [1, 2, 3, 4] and low.spec["seed"] == 0
    near, middle, far = (arrive([low], bin)[0] for bin in range(3))
    says(
        "In configuration space four of ours",
        f"five seeds have {spread(rates(others))} % (K = 30",
        f"21 to 40 steps away {statistics.mean(arrive(others, 2)):.1f})",
        f"Seed 0 has {spread(rates([low]))}: it settles in its first epoch",
        f"({100 * low.curves[0]['valid_success_rate']:.1f} % of the validation maps)",
        f"up to 10, 11 to 20 and 21 to 40 steps away {near:.0f}, {middle:.0f} and {far:.0f} % arrive",
        f"a seed under {made.SETTLED} % has settled",
    )
    deep, *rest = at_scale("contractive", 18, k=50)
    assert [trial.spec["seed"] for trial in (deep, *rest)] == [0, 1, 2, 3, 4]
    says(
        "In configuration space four of ours",
        f"With K = 50 seed 0 settles as well ({spread(rates([deep]))} %), and the other four",
        f"the other four have {spread(rates(rest))}.",
    )
    assert rates([deep])[0] < made.SETTLED < min(rates(rest))
    larger = at_scale("contractive-80-by-0.04", 18)
    assert [trial.spec["seed"] for trial in larger] == [0, 1, 2, 3, 4] and min(rates(larger)) > 99.95  # "have 100.0 %"
    begun = trials("contractive_start", None)
    assert {(trial.spec["training"]["epochs"], len(chosen(begun, trial.planner))) for trial in begun} == {(1, 8)}


def test_what_the_rest_would_take():
    (steps, *_), hours = {trial.result["steps"] for trial in at_scale("vin", 15)}, {}
    for trial in trials("table1_ours"):
        if trial.result["provenance"]["accelerator"] == "cpu":
            taken = steps * trial.result["train_seconds"] / trial.result["steps"] / 3600
            hours.setdefault((trial.planner, *column(trial)), []).append(taken)
    given = {place: found for place, found in hours.items() if place[1] == "manipulation"}
    cheap = [found for (planner, *_), found in given.items() if planner in CHEAP]
    dear = [found for (planner, *_), found in given.items() if planner not in CHEAP]
    learned = [found for place, found in hours.items() if place not in given]
    whole = archive.planned("table1_ours", None)
    pairs = {(trial.axes["planner"], *column(trial)) for trial in whole}
    every = sum(len(whole) / len(pairs) * statistics.mean(found) for found in hours.values())
    says(
        "What was not run",
        f"takes one core {span(chain(*cheap), 1)} hours where VIN",
        f"{span(chain(*dear), 1)} where SymVIN",
        f"and {span(chain(*learned), 1)} where the map is learned",
        f"without a profile, {len(whole)} trials, some {round(every, -2):,.0f} hours (three of its {len(pairs)} pairs",
    )
    assert len(pairs) - len(hours) == 3


def column(trial):
    data = trial.spec["data"] if isinstance(trial.spec, dict) else trial.spec.data.model_dump()
    return str(data["task"]), data["map_size"]


def test_vin_at_the_papers_scale():
    found = {
        (planner, size): at_scale(planner, size, k=30)
        for planner in ("vin", "id-vin-averaged", "id-vin")
        for size in (15, 18)
    }
    assert all([trial.spec["seed"] for trial in each] == [0, 1, 2, 3, 4] for each in found.values())
    vin, gaps = [found["vin", size] for size in (15, 18)], {}
    for size in (15, 18):
        twins = zip(rates(found["vin", size]), rates(found["id-vin-averaged", size]), strict=True)
        gaps[size] = [one - other for one, other in twins]
        assert min(gaps[size]) > 0 and all(fallen(trial) is None for trial in found["vin", size])
    assert statistics.mean(gaps[15]) < statistics.stdev(rates(vin[0]))
    mazes_of_all = at_scale("vin", 15)
    assert all(fallen(trial) is None for trial in mazes_of_all) and len(mazes_of_all) == 15
    far = {(t.spec["seed"], t.k): share for t, share in zip(mazes_of_all, arrive(mazes_of_all), strict=True)}
    learned = {(2, 30), (2, 50), (2, 80), (1, 30)}
    others = [share for at, share in far.items() if at not in learned]
    assert min(far[at] for at in learned) > 90 > 66 > max(others)
    mazes, arms = ([spread(rates(found[p, size])) for p in ("vin", "id-vin", "id-vin-averaged")] for size in (15, 18))
    says(
        "VIN does not diverge",
        f"On mazes it has {span(rates(mazes_of_all), 1)} %",
        f"at each K ({span(far[2, k] for k in K)} % of these",
        f"seed 1 with 30 layers alone ({far[1, 30]:.0f}), the others at none ({span(others)})",
        f"it has {arms[0]} %",
        f"by {span(gaps[15], 1)} points on mazes and by {span(gaps[18], 1)} in",
    )
    told = "VIN {}, ID-VIN {}, averaged {}".format(*mazes)
    sixteen = spread(rates(at_scale("id-vin-forward", 15, k=30)))
    says(
        "VIN and ID-VIN are comparable", f"60 epochs, five seeds: {told} %", f"it has {mazes[2]} and {sixteen} % after"
    )
    claim = "Implicit and algorithmic differentiation reach the same"
    says(claim, f"mazes {told} %; 18x18 manipulation {', '.join(arms)}.")
    says("IDPs are comparable", f"ID-VIN is {statistics.mean(gaps[18]):.1f} points below by it")
    left = {p: [trial.result["forward_residual"] for trial in found[p, 18]] for p in ("vin", "id-vin-averaged")}
    tops = [[best(trial) for trial in found[planner, 18]] for planner in ("vin", "id-vin-averaged")]
    says(
        claim,
        f"VIN is {statistics.mean(gaps[18]):.1f} points above ID-VIN averaged, each seed",
        f"they are alike ({spread(tops[0])} and {spread(tops[1])})",
        f"leaves {span(left['id-vin-averaged'], 2)} in the end (VIN's {statistics.mean(left['vin']):.2f})",
    )
    says(
        "On manipulation ID-SymVIN",
        f"{arms[0]} % for {arms[2]} by",
        f"maps: {statistics.mean(tops[0]):.1f} and {statistics.mean(tops[1]):.1f}), and for {arms[1]} by ours",
    )
    says("VIN even outperforms", f"VIN has {arms[0]} % on 18x18, SymVIN")


def test_averaged_it_does_not_diverge():
    mazes, arms = at_scale("id-vin-averaged", 15), at_scale("id-vin-averaged", 18)
    every = [*mazes, *arms]
    assert all(fallen(trial) is None for trial in every)
    short = chosen(mazes, k=30), chosen(arms, k=30)
    assert [len(found) for found in short] == [5, 5]
    fell = [trial for size in (15, 18) for trial in at_scale("id-vin", size, k=30) if fallen(trial) is not None]
    assert len(fell) == 10  # "all ten do"
    lucky, rest = ([trial for trial in mazes if (trial.spec["seed"] == 2) == is_it] for is_it in (True, False))
    assert [len(chosen(mazes, k=k)) for k in K] == [5, 5, 5]
    swings = {planner: late(at_scale(planner, 18, k=30)) for planner in ("id-vin-averaged", "vin")}
    (falls, least, last), others = swings["id-vin-averaged"], swings["vin"]
    assert others[0] == 1  # "VIN's once"
    says(
        "Averaged, none of the",
        f"none of the {len(every)} trials diverges",
        f"{falls} times after epoch 20 (VIN's once), down to {least:.1f} % in an epoch,",
        f"and is {last:.1f} % over the last ten epochs (VIN's {others[2]:.1f}).",
        f"it has {spread(rates(short[1]))} % there, beside",
        f"at each K seed 2 has {span(rates(lucky), 1)} %, the others {span(rates(rest), 1)}.",
    )
    of_k = [rates(chosen(mazes, k=k)) for k in K]
    means = list(map(statistics.mean, of_k))
    assert max(means) - min(means) < min(map(statistics.stdev, of_k))  # "K matters less than the seed"
    says("VIN and ID-VIN are less affected by K", f"averaged {' / '.join(map(spread, of_k))} %")
    says("IDPs train stably", f"by the authors' none of {len(every)} trials does")


def test_fewer_terms_cost_most_where_the_goal_is_far():
    ways = [at_scale(p, 15, k=30) for p in ("id-vin-six-terms", "id-vin-averaged", "id-vin-forward", "vin")]
    far, near = ([statistics.mean(arrive(found, bin)) for found in ways] for bin in (1, 0))
    assert far == sorted(far) and near == sorted(near)
    says(
        "Fewer terms cost most",
        "{:.0f} % arrive with six terms (K = 30, means of five seeds), {:.0f} averaged, {:.0f} with 16 terms and "
        "{:.0f} with VIN; of those at most 10 away {:.0f}, {:.0f}, {:.0f} and {:.0f}.".format(*far, *near),
    )


def test_a_short_sum_of_terms_trains():
    ways = ("id-vin-six-terms", "id-vin-averaged", "id-vin-forward", "id-vin", "vin")
    six, averaged, sixteen, solved, layers = (at_scale(planner, 15, k=30) for planner in ways)
    for found in (six, averaged, sixteen, solved, layers):
        assert [trial.spec["seed"] for trial in found] == [0, 1, 2, 3, 4]
        assert {fallen(trial) is None for trial in found} == {found is not solved}
    told = [spread(rates(found)) for found in (six, averaged, sixteen, solved, layers)]
    gained = [more - less for more, less in zip(rates(sixteen), rates(six), strict=True)]
    ahead = [unrolled - terms for unrolled, terms in zip(rates(layers), rates(sixteen), strict=True)]
    assert [gap > 0 for gap in ahead] == [True, True, True, False, True]
    early = [[trial.curves[19]["valid_success_rate"] for trial in found] for found in (sixteen, six)]
    assert sum(more > less for more, less in zip(*early, strict=True)) == 2  # "in two of five seeds only"
    says(
        "With K = 30 on mazes a short sum",
        f"no stopping) {told[0]} %, the authors' 6.4 terms {told[1]}, up to 16",
        f"`solver_bwd: forward`) {told[2]}; none",
        f"by Anderson's method: {told[3]}, all",
        f"through 30 layers, has {told[4]}.",
        f"above six, by {span(gained, 1)} points",
        f"but for seed 3 ({rates(layers)[3]:.1f} and {rates(sixteen)[3]:.1f}), and",
        f"by more than {sorted(ahead)[-2]:.1f} points with one seed alone ({max(ahead):.1f}).",
    )
    says("10 to 15 backward", f"six terms {told[0]} %, 16 terms {told[2]}, VIN's 30 layers {told[4]}.")
    says("10 to 15 backward", f"better than 5 (six terms), {told[2]} and {told[0]} %")
    behind = sum(one < other for one, other in zip(rates(averaged), rates(sixteen), strict=True))
    assert behind == 4  # "in four seeds of five"
    says(
        "Anderson backward beats",
        f"iteration backward {told[2]} %, Anderson's method {told[3]}, as all",
        f"code makes of it {told[1]} (behind",
    )


def test_the_two_solves_are_alike_in_trained_planners():
    found = rows("adjoint_solves")
    trained = {trial.result["trial_id"] for trial in archive.archived().values()}
    assert {row["trial_id"] for row in found} <= trained
    *worst, most = sorted(worst for row in found for worst in (row["worst"], row["next"]))
    samples = sum(row["samples"] for row in found)
    norms = [row["gradient"] for row in found]
    says(
        "The paper solves Eq. 6",
        f"(norms of {power(min(norms))} to {max(norms):.3f} in",
        f"apart by {100 * worst[-1]:.1f} % at most in {samples - 1} of {samples} samples",
        f"a batch of each of {len(found)} trained planners",
        f"by {100 * most:.0f} %, as ours",
    )


def test_how_long_gradients_are():
    planned = {trial.trial_id: trial for trial in archive.planned("adjoint_solves", None)}
    by = {
        name: {
            planned[row["trial_id"]].spec.seed: row
            for row in rows("gradients")
            if planned[row["trial_id"]].axes["planner"] == name
        }
        for name in ("id-vin", "id-vin-averaged")
    }
    assert all(sorted(found) == [0, 1, 2, 3, 4] for found in by.values())
    standing = [row for row in by["id-vin"].values() if row["median"][-1] < CLIP]
    (lost,) = (seed for seed, row in by["id-vin"].items() if row["median"][-1] >= CLIP)
    averaged = by["id-vin-averaged"].values()
    says(
        "What gradients look like",
        f"is never above {max(max(row['median']) for row in averaged):.1f} with any of the five seeds, and no gradient "
        f"is longer than {max(max(row['largest']) for row in averaged):.0f}.",
        f"seed {lost} has diverged by then",
        f"of {span((row['median'][-1] for row in standing), 1)}, with single gradients of up to "
        f"{max(max(row['largest']) for row in standing):.0f}.",
    )


def test_what_averaging_does_in_table_1():
    found = trials("table1_averaged")
    assert all(is_of_present_code(trial) for trial in found)

    def of(planner, size):
        return chosen(found, planner, task="manipulation", size=size, k=30)

    def gain(place, measure):
        planner, size = place
        return statistics.mean(measure(of(f"{planner}-averaged", size))) - statistics.mean(measure(of(planner, size)))

    devices = [
        {t.result["provenance"]["accelerator"] for t in of(p, 18)} for p in ("id-convgppn", "id-convgppn-averaged")
    ]
    assert devices == [{"NVIDIA H100 80GB HBM3"}, {"cpu"}]
    (large,) = rates(of("id-convgppn-averaged", 36))
    at_best = gain(CONV_18, lambda trials: [best(trial) for trial in trials])
    says(
        "Table 1's profile, columns and recipe",
        f"ID-ConvGPPN has {gain(CONV_18, rates):.1f} points more on 18x18 ({at_best:.1f} at best epochs",
        f"its one seed on 36x36 has {large:.1f} %, {-gain(CONV_36, rates):.1f} less; ID-SymVIN has"
        f" {gain(SYM_36, rates):.1f} more there at K = 30",
    )
    for planner, size in (CONV_18, CONV_36, SYM_36):
        averaged, twin = rates(of(f"{planner}-averaged", size)), rates(of(planner.removeprefix("id-"), size))
        anderson = rates(of(planner, size))
        assert statistics.mean(averaged) < statistics.mean(twin)
        assert abs(gain((planner, size), rates)) < 2 * statistics.stdev(anderson)
    averaged, anderson, twin = (spread(rates(of(p, 18))) for p in ("id-convgppn-averaged", "id-convgppn", "convgppn"))
    says(
        "ID-ConvGPPN is the best planner",
        f"{averaged} % for {anderson} on 18x18 at K = 30 (other devices), ConvGPPN {twin}",
    )
