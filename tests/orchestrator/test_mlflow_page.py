"""MLflow's own pages over a sweep: a real server and a real browser, from the printed address to curves and report.

With IDP_SCREENSHOTS=FOLDER the pages are kept there as pictures.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
from mlflow_server import MLflowServer
from samples import put_curves, put_result, sample_run

from orchestrator.storage.layout import Storage
from orchestrator.storage.trial_directory import TrialDirectory
from orchestrator.sweep.specs import SweepSpec, expand
from orchestrator.tracking.tracker import default_uri, page_of, sync
from orchestrator.tracking.view import connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
SWEEP = SweepSpec.model_validate(
    {
        "name": "pages",
        "planners": {"vin": {"core": "vin", "adjoint": "unrolled"}, "id-vin": {"core": "vin"}},
        "grid": {"k": [30], "seed": [0, 1]},
        "figures": ["success"],
    }
)
PATIENCE = 60.0
"""Seconds for a page; it takes one or two, unless the machine is busy."""

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="needs Chromium and its driver"),
    pytest.mark.filterwarnings("ignore"),  # MLflow's, SQLAlchemy's and Selenium's own
]


@pytest.fixture(scope="module")
def storage(tmp_path_factory, database):
    """A storage with four plausible trials, sent to the MLflow database in it."""
    folder = tmp_path_factory.mktemp("storage")
    (folder / "mlflow.db").write_bytes(database)
    trials = expand(SWEEP)
    for trial in trials:
        run, directory = sample_run(trial), Storage(folder).trial(trial.trial_id).path
        TrialDirectory(directory).write_spec(trial.spec)
        put_curves(directory, run.curves)
        put_result(directory, run.result)
    assert sync(default_uri(Storage(folder)), SWEEP, trials, Storage(folder)) == 4
    return folder


@pytest.fixture(scope="module")
def address(storage):
    """The address of an MLflow server over the storage's database."""
    server = MLflowServer(default_uri(Storage(storage)), storage)
    try:
        server.start()
        yield server.address
    finally:
        server.stop()


def wait_for(condition, patience=PATIENCE, otherwise=lambda: ""):
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.2)
    pytest.fail(f"waited {patience} s; {otherwise()[-2000:]}")


class Page:
    """A browser that is asked for what stands on the page until it does."""

    def __init__(self, driver, address):
        self.driver, self.address = driver, address

    def open(self, place):
        # A page that only moves on to another view never ends loading; one of the same server keeps what is compiled.
        self.driver.get(f"{self.address}/health")
        self.driver.get(f"{self.address}/#{place}")

    def move(self, place):
        """Go to another view of the pages that are loaded: to load them takes the browser seconds."""
        self.driver.execute_script("location.hash = '/nowhere'")
        self.wait_for_text("Page Not Found")  # what stood there before is gone, and not taken for the view's
        self.driver.execute_script("location.hash = arguments[0]", place)

    def text(self):
        return self.driver.execute_script("return document.body ? document.body.innerText : ''")

    def wait_for_text(self, *words):
        wait_for(lambda: all(word in self.text() for word in words), otherwise=self._state)

    def wait_for_place(self, part):
        wait_for(lambda: part in self.driver.current_url, otherwise=self._state)

    def wait_for_all(self, selector, least=1):
        def enough():
            found = self.driver.find_elements("css selector", selector)
            return found if len(found) >= least else None

        return wait_for(enough, otherwise=self._state)

    def keep(self, name):
        """Take a picture of the page, which is not empty; keep it where pictures are asked for."""
        for button in self.driver.find_elements(
            "css selector", "button[data-component-id*='assistant'][aria-label*='lose']"
        ):
            self.click(button)
        picture = self.driver.get_screenshot_as_png()
        assert len(picture) > 20_000
        if folder := os.environ.get("IDP_SCREENSHOTS"):
            (Path(folder) / f"mlflow-{name}.png").write_bytes(picture)

    def click(self, element):
        # Past whatever floats above it: these pages greet with notices.
        self.driver.execute_script("arguments[0].click()", element)

    def _state(self):
        return f"{self.driver.current_url}: {self.text()}"


@pytest.fixture(scope="module")
def page(address, tmp_path_factory):
    """A page in headless Chromium."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp("profile")
    for flag in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
        "--disable-sync", "--disable-dev-shm-usage", "--window-size=1500,1000", f"--user-data-dir={profile}",
    ):  # fmt: skip
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield Page(driver, address)
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def experiment(storage):
    """The sweep's experiment, and its runs by name."""
    client = connect(default_uri(Storage(storage)))
    found = client.get_experiment_by_name(SWEEP.name).experiment_id
    return found, {run.info.run_name: run for run in client.search_runs([found])}


@pytest.mark.slow
def test_the_list_of_experiments_leads_to_the_runs(page, experiment, storage):
    page.open("/experiments")
    links = page.wait_for_all(f'main a[href$="/experiments/{experiment[0]}"]')
    page.click(links[0])
    # MLflow's pages are for language models until one says otherwise, once per browser; this address says it.
    page.wait_for_text("Model training")
    page.wait_for_place("workflowType=genai")  # it moves on once it knows: an address given before that would be lost
    page.open(page_of(Storage(storage), SWEEP, default_uri(Storage(storage))).removeprefix("/#"))
    page.wait_for_text(SWEEP.name, "Cells: success, divergence, runtime")


def test_the_printed_address_compares_the_cells(page, experiment, storage):
    """In one click: success, divergence and runtime of each cell, charts filled, and no trial among them."""
    page.open(page_of(Storage(storage), SWEEP, default_uri(Storage(storage))).removeprefix("/#"))
    page.wait_for_text("Cells: success, divergence, runtime", "Settings", "vin K=30", "id-vin K=30")
    titles = ("test_success_rate", "trials_diverged", "train_seconds", "Parallel Coordinates")
    page.wait_for_text(*titles)
    assert "Loading" not in page.text() and "invalid" not in page.text()
    bars = page.wait_for_all(".js-plotly-plot .bars .point path", 2 * 2)
    lengths = [bar.rect["width"] for bar in bars[:2]]
    means = [run.data.metrics for run in experiment[1].values() if run.data.tags["idp.kind"] == "mean"]
    rates = sorted(mean["test_success_rate"] for mean in means)
    assert len(rates) == 2 and min(lengths) / max(lengths) == pytest.approx(rates[0] / rates[1], abs=0.02)
    labels = page.wait_for_all(".js-plotly-plot .bars .point text", 2)
    assert {f"{rate:.2f}" for rate in rates} <= {label.text or label.get_attribute("textContent") for label in labels}
    page.keep("comparison")


def test_runs_are_listed_selected_and_compared(page, experiment):
    number, runs = experiment
    assert len(runs) == 1 + 4 + 2
    page.move(f"/experiments/{number}/runs?workflowType=machine_learning")
    page.wait_for_text("vin K=30", "id-vin K=30", SWEEP.name)
    boxes = page.wait_for_all(".ag-row .ag-selection-checkbox input", 3)
    # The means come first: two clicks for the paper's comparison.
    for box in boxes[:2]:
        page.click(box)
    (compare,) = wait_for(
        lambda: [b for b in page.driver.find_elements("css selector", "button") if b.text.strip() == "Compare"]
    )
    page.click(compare)
    page.wait_for_text("Comparing 2 Runs from 1 Experiment", "id-vin K=30", "vin K=30")
    page.wait_for_text("test_success_rate")
    for name in ("vin K=30", "id-vin K=30"):
        for metric in ("test_success_rate", "test_success_rate_std"):
            page.wait_for_text(f"{runs[name].data.metrics[metric]:.3f}".rstrip("0"))
    page.keep("compare-runs")


def test_a_run_shows_where_it_comes_from(page, experiment, storage):
    number, runs = experiment
    run = runs["id-vin navigation-15 K=30 seed=1"]
    page.move(f"/experiments/{number}/runs/{run.info.run_id}")
    directory = str(Storage(storage).trial(run.data.tags["idp.trial_id"]).path)
    page.wait_for_text("Datasets", run.inputs.dataset_inputs[0].dataset.name, "Its directory:", directory)
    page.keep("trial")
    page.move(f"/experiments/{number}/runs/{runs[SWEEP.name].info.run_id}")
    page.wait_for_text("test_success_rate/id-vin K 30", "Description")
    page.wait_for_all("table th", 5)  # the table of the description
    page.keep("sweep")


def test_a_trial_shows_its_curves(page, experiment):
    number, runs = experiment
    run = runs["id-vin navigation-15 K=30 seed=1"].info.run_id
    page.move(f"/experiments/{number}/runs/{run}/model-metrics")
    page.wait_for_text("epoch/", "valid_success_rate")
    lines = "document.querySelectorAll('.js-plotly-plot path.js-line')"
    paths = f"return [...{lines}].map(line => line.getAttribute('d') || '')"
    # Asked for anew each time: charts that are drawn later, or again, have other lines.
    wait_for(lambda: any(path.count("L") >= 11 for path in page.driver.execute_script(paths)), otherwise=page._state)


@pytest.mark.slow
def test_the_sweeps_run_carries_its_report(page, experiment):
    number, runs = experiment
    page.move(f"/experiments/{number}/runs/{runs[SWEEP.name].info.run_id}/artifacts/report.html")
    page.wait_for_text("plan.json", "table.md", "report.html", "figures")
    (frame,) = page.wait_for_all("iframe")
    page.driver.switch_to.frame(frame)
    try:
        page.wait_for_text(SWEEP.name, "Success rate over K", "Provenance")
    finally:
        page.driver.switch_to.default_content()
