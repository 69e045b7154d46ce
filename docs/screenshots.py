"""Make the README's pictures again: a report as a Chromium shows it. `INTERP_MODELS=FOLDER make screenshots`.

FOLDER holds `smollm2`, SmolLM2-135M in Hugging Face layout: the pictures are of a real language model.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent
TEXT = (
    "When Mary and John went to the store, John gave a drink to Mary. "
    "When Anna and Tom went to the park, Tom gave a ball to Anna"
)
SCENES = {
    "attention": "attention_patterns-patterns?head=18.6&token=31",
    "head": "head-18.6",
    "lens": "logit_lens-lens?cell=54.30&colour=KL+to+the+final+prediction",
}
"""Picture -> address within the report."""
SCREENS = {
    "report": (1440, 900, "light"),
    "report-dark": (1440, 900, "dark"),
    "report-phone": (390, 844, "light"),
}
"""Picture of the first screen -> width, height, colours."""


def main() -> None:
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    if browser_path is None:
        sys.exit("no Chromium on this machine: apt-get install chromium")
    models = os.environ.get("INTERP_MODELS", "")
    if not (Path(models) / "smollm2").is_dir():
        sys.exit("no smollm2 in the folder that INTERP_MODELS names: the pictures are of SmolLM2-135M")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_file = Path(folder) / "report.html"
        command = [sys.executable, "-m", "reports.cli", "report", TEXT, "--model", "smollm2", "--out", str(page_file)]
        subprocess.run(command, check=True, cwd=models)
        arguments = ["--no-sandbox", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=browser_path, args=arguments)
        for name, (width, height, scheme) in SCREENS.items():
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            page.goto(page_file.as_uri())
            page.wait_for_timeout(1000)
            page.screenshot(path=HERE / f"{name}.png")
        page = browser.new_page(viewport={"width": 1180, "height": 1000}, device_scale_factor=1)
        for name, address in SCENES.items():
            page.goto(f"{page_file.as_uri()}#{address}")
            page.wait_for_timeout(700)
            page.screenshot(path=HERE / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    main()
