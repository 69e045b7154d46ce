"""Make the README's pictures of the studies again, as a Chromium shows them. `make screenshots`."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent
PICTURES = {"study-potions": ("potions", "S1.1"), "study-weights": ("wolfram", "S0.4-weights-averages")}
"""Name of the picture -> the study, and what stands at the top."""


def main() -> None:
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    if browser_path is None:
        sys.exit("no Chromium on this machine: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=browser_path, args=arguments)
        page = browser.new_page(viewport={"width": 1180, "height": 1000}, device_scale_factor=1)
        for picture, (name, address) in PICTURES.items():
            page_file = Path(folder) / f"{name}.html"
            command = [sys.executable, "-m", "reports.cli", "study", name, "--quiet", "--out", str(page_file)]
            subprocess.run(command, check=True)
            page.goto(page_file.as_uri())
            page.wait_for_timeout(1000)
            page.evaluate(f"document.getElementById('{address}').scrollIntoView()")
            page.wait_for_timeout(500)
            page.screenshot(path=HERE / f"{picture}.png")
        browser.close()


if __name__ == "__main__":
    main()
