"""Make the README's pictures again: the report on the bundled model, as a Chromium shows it. `make screenshots`."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent
SCENES = {
    "attention": "attention_patterns-patterns?head=2.0&token=30",
    "head": "head-2.0",
    "lens": "logit_lens-lens?cell=6.30&colour=KL+to+the+final+prediction",
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
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_file = Path(folder) / "report.html"
        subprocess.run([sys.executable, "-m", "reports.cli", "report", "--out", str(page_file)], check=True)
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
