"""The notebook, executed as it stands, on a smaller sweep."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

pytestmark = pytest.mark.sweeps
EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    cells = (EXAMPLES / "planning.ipynb").read_text()
    here = cells.replace(
        'idp(\\"run\\", \\"notebook.yaml\\")', 'idp(\\"run\\", \\"notebook.yaml\\", \\"--in-process\\")'
    )
    assert here != cells
    (tmp_path / "planning.ipynb").write_text(here)
    text = (EXAMPLES / "notebook.yaml").read_text()
    small = text.replace("train: 2048, valid: 128, test: 256", "train: 64, valid: 8, test: 8")
    small = small.replace("{epochs: 5,", "{epochs: 1,").replace("hidden_channels: 64", "hidden_channels: 8")
    assert small.count("train: 64") == small.count("epochs: 1,") == 1 and small.count("hidden_channels: 8") == 2
    (tmp_path / "notebook.yaml").write_text(f"{small}\nfigures: [success]\n")
    command = [sys.executable, "-c", "from nbclient.cli import main; main()", "planning.ipynb", "--output=out.ipynb"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    environment |= {"IPYTHONDIR": str(tmp_path), "JUPYTER_DATA_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment["MLFLOW_TRACKING_URI"] = "none"  # no cell looks at it
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    cells = nbformat.read(tmp_path / "out.ipynb", 4).cells
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    texts = [output["text"] for output in outputs if output.output_type == "stream"]
    assert any(text.count("  1/1  ") == 3 for text in texts), texts


def test_the_notebook_that_is_shown_was_executed():
    cells = nbformat.read(EXAMPLES / "planning.ipynb", 4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
