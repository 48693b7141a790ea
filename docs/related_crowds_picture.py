"""The picture of crowds: `python docs/related_crowds_picture.py` searches for a minute and draws it again.

When members leave the office, of the expert's crowds, of crowds without steering, instructed ones, and evolved
personas; and the personas that were found.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from crowds import EvacuationOptions, SearchOptions
from crowds.evacuation import evacuate
from crowds.expert import evacuation
from crowds.personas import text, traits
from crowds.search import PersonaSearch

from orchestrator.trial.system import Setting
from planners import TrainingSpec

PICTURE = Path(__file__).parent / "images" / "related-crowds.png"
EPOCHS, SOUGHT_WITH, SHOWN = 30, 11, 30
STEERINGS = {"no steering": "none", "instructed": "instructed", "evolved": "evolved"}


def samples(options: EvacuationOptions, count: int, stream: int) -> dict[str, np.ndarray]:
    """Return crowds of the expert's."""
    made = [evacuation(options, np.random.default_rng([stream, number])) for number in range(count)]
    return {name: np.array([sample[name] for sample in made]) for name in made[0]}


def draw(path: Path) -> str:
    """Write the picture; return the personas that were found."""
    options = EvacuationOptions(elsewhere=0.0)
    home, fresh = samples(options, SOUGHT_WITH, 0), samples(options, SHOWN, 1)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    lines = {"the expert's": (fresh["door"], fresh["time"])}
    for label, steering in STEERINGS.items():
        setting = Setting(
            SearchOptions(steering=steering), options, TrainingSpec(), home, home, fresh, 0, "cpu", lambda: None
        )
        search = PersonaSearch(setting)
        for epoch in range(1, EPOCHS + 1 if steering == "evolved" else 1):
            search.run_epoch(epoch)
        like = traits([search.kept[0]] * SHOWN, options.members)
        did = evacuate(0, fresh["start"], like, options.steps, np.random.default_rng(2))
        lines[label] = (did.door, did.time)
    for door, panel in enumerate(axes, start=1):
        for label, (doors, times) in lines.items():
            gone = [((doors == door) & (times <= step)).mean() * 100 for step in range(options.steps + 1)]
            panel.plot(gone, label=label, color="black" if label == "the expert's" else None)
        panel.set(title=("entrance", "door of the signs", "staff's door")[door - 1], xlabel="step")
    axes[0].set_ylabel("members that have left, %")
    axes[0].legend()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return "\n".join(text(persona) for persona in sorted(search.kept[0].tolist()))


if __name__ == "__main__":
    print(draw(Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE))
