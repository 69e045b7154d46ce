"""The attention viewer beside CircuitsVis and BertViz: `python tests/benchmarks/report.py --peers FOLDER`.

For 144 heads (12 layers of 12) and several lengths of text: the bytes of the attention section and of the whole page,
the nodes of its document, and the time until it is drawn, in a headless Chromium that opens a file without network.
All three get the same arrays, causal softmax of normal scores, which hardly compress.

Drawn: the end of the last long task (over 50 ms) or the last change of the document, whichever is later, once neither
has come for QUIET seconds; from the start of navigation, and from the load event. For this project's page also when its
viewer says that it is ready. Medians over the rounds.

`--pages FILE ...` measures whole reports in place of that: bytes, elements, the load event, until drawn.

The peers are no dependency of this project, and fetch their libraries from the web. FOLDER holds them:
    pip install --no-deps --target FOLDER circuitsvis bertviz
    npm pack d3@5.7.0 jquery@2.1.0 requirejs@2.3.6     then d3.min.js, jquery.min.js and require.js out of them
CircuitsVis brings its bundle; for BertViz the three are put into its page, so that it can open without a network.
"""

import argparse
import importlib.metadata
import json
import shutil
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from timing import machine, table

sys.path.insert(0, str(Path(__file__).parent.parent))

from report_samples import Sample

from analyses.shared.panels import AttentionGrid, Tokens
from reports.page.html import Report, Section, render

LAYERS = HEADS = 12
QUIET = 2.0
PATIENCE = 180.0
LARGEST_PEER = 200_000_000
"""Bytes of a page beyond which Chromium is not asked to open it."""
GOALS = {64: (0.4, 0.5), 256: (4, None), 1024: (15, 3.0)}
"""Tokens: megabytes of the attention section, seconds from load to drawn."""

WATCH = """
window.busy = 0;
new MutationObserver(() => { busy = performance.now(); }).observe(document, {subtree: true, childList: true,
  attributes: true, characterData: true});
new PerformanceObserver(list => list.getEntries().forEach(e => { busy = Math.max(busy, e.startTime + e.duration); }))
  .observe({type: 'longtask', buffered: true});
"""


@dataclass(frozen=True)
class Drawn:
    """One visit of a page."""

    nodes: int
    load: float  # seconds from the start of navigation
    drawn: float
    ready: float  # of this project's viewer; NaN for others


def patterns(n_tokens: int, seed: int = 0) -> np.ndarray:
    """[layer head query key], float32, made a layer at a time to spare memory."""
    rng = np.random.default_rng(seed)
    out = np.empty((LAYERS, HEADS, n_tokens, n_tokens), np.float32)
    later = ~np.tri(n_tokens, dtype=bool)
    for layer in out:
        layer[:] = np.exp(rng.standard_normal(layer.shape, dtype=np.float32))
        layer[:, later] = 0
        layer /= layer.sum(-1, keepdims=True)
    return out


def ours(arrays: np.ndarray, words: list[str]) -> tuple[str, int]:
    """A report of the attention section alone; the bytes of that section."""
    rng = np.random.default_rng(1)
    norms, size = rng.uniform(0.2, 2, size=(LAYERS, HEADS, len(words))), (LAYERS, HEADS)
    grid = AttentionGrid(
        key="pattern", title="Every head", patterns=(arrays,), tokens=(Tokens(words),), value_norms=(norms,),
        measures={"induction": rng.random(size), "entropy": rng.random(size)},
    )  # fmt: skip
    page = render(Report("r", (Tokens(words),), (Section("attention", "A", "", Sample((grid,)), 0.0),), {}))
    section = page[page.index('<section id="attention"') : page.index('<section id="provenance"')]
    return page, len(section.encode())


def circuitsvis(arrays: np.ndarray, words: list[str]) -> tuple[str, int]:
    """Its grid of heads, with its bundle inside; the bytes without the bundle."""
    sys.modules.setdefault("importlib_metadata", importlib.metadata)  # all it wants of that package is in this one
    from circuitsvis.attention import attention_heads

    names = [f"L{layer}H{head}" for layer in range(LAYERS) for head in range(HEADS)]
    flat = arrays.reshape(-1, *arrays.shape[2:])
    made = attention_heads(attention=flat, tokens=words, attention_head_names=names)
    return f'<!doctype html><meta charset="utf-8"><body>{made.local_src}', len(made.cdn_src.encode())


def bertviz(arrays: np.ndarray, words: list[str], libraries: Path) -> tuple[str, int]:
    """Its view of all heads; the bytes without the libraries that it fetches."""
    import torch
    from bertviz import model_view

    made = model_view([torch.from_numpy(layer)[None] for layer in arrays], words, html_action="return").data
    d3, jquery, require = ((libraries / f"{name}.js").read_text() for name in ("d3.min", "jquery.min", "require"))
    shim = "define('jquery', [], () => jQuery); define('d3', [], () => d3);"
    scripts = "".join(f"<script>{code}</script>" for code in (d3, jquery, require, shim))
    start = made.index("</script>") + len("</script>")  # behind the link to require.js
    return f'<!doctype html><meta charset="utf-8"><body>{scripts}{made[start:]}', len(made.encode())


def visit(browser: Any, path: Path) -> Drawn | str:
    """The page opened once in a fresh profile; or why it was not drawn."""
    context = browser.new_context(offline=True, viewport={"width": 1300, "height": 900})
    page = context.new_page()
    page.set_default_timeout(1000 * PATIENCE)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error).splitlines()[0][:100]))
    page.add_init_script(WATCH)
    try:
        page.goto(path.as_uri(), wait_until="load")
        load = page.evaluate("(([n]) => n.loadEventStart)(performance.getEntriesByType('navigation'))")
        ready = page.evaluate(
            "async () => { if (typeof viewers === 'undefined') return null;"
            "await Promise.all(Object.values(viewers).map(v => v.ready)); return performance.now(); }"
        )
        if ready is None:  # a peer's page may be too busy to answer; this gives up in time
            page.wait_for_function(f"performance.now() - Math.max(busy, {load}) > {1000 * QUIET}", polling=200)
        else:  # its policy forbids what that call does
            page.evaluate(
                f"async () => {{ while (performance.now() - Math.max(busy, {load}) < {1000 * QUIET})"
                "await new Promise(later => setTimeout(later, 200)); }"
            )
        nodes, busy = page.evaluate("[document.querySelectorAll('*').length, busy]")
        filled = page.evaluate("document.querySelectorAll('canvas, svg, img').length > 0")
        if wrong or not filled:
            return wrong[0] if wrong else "nothing was drawn"
        late = float("nan") if ready is None else ready / 1000
        return Drawn(nodes, load / 1000, max(busy, load) / 1000, late)
    except Exception as error:
        return f"not drawn: {str(error).splitlines()[0][:80]}"
    finally:
        context.close()


def row(name: str, n: int, made: Callable[[], tuple[str, int]], browser: Any, folder: Path, rounds: int) -> list[str]:
    """One line of the table."""
    page, part = made()
    path = folder / "page.html"
    path.write_text(page, encoding="utf-8")
    size = path.stat().st_size
    start = [str(n), name, f"{part / 1e6:.3f}", f"{size / 1e6:.3f}"]
    if size > LARGEST_PEER:
        return [*start, f"not opened: over {LARGEST_PEER / 1e6:.0f} MB", "", ""]
    visits = [visit(browser, path) for _ in range(rounds)]
    good = [one for one in visits if isinstance(one, Drawn)]
    if not good:
        return [*start, str(visits[0]), "", ""]
    middle = {key: statistics.median(getattr(one, key) for one in good) for key in ("nodes", "load", "drawn", "ready")}
    drawn, after = middle["drawn"], middle["drawn"] - middle["load"]
    if np.isfinite(middle["ready"]):
        drawn, after = max(drawn, middle["ready"]), max(after, middle["ready"] - middle["load"])
    return [*start, f"{middle['nodes']:,.0f}", f"{drawn:.2f}", f"{max(0, after):.2f}"]


def whole_pages(files: list[Path], browser: Any, rounds: int) -> list[list[str]]:
    """One line a page."""
    rows = []
    for file in files:
        visits = [visit(browser, file.resolve()) for _ in range(rounds)]
        if wrong := [one for one in visits if not isinstance(one, Drawn)]:
            rows.append([file.name, f"{file.stat().st_size / 1e6:.2f}", str(wrong[0]), "", ""])
            continue
        middle = {key: statistics.median(getattr(one, key) for one in visits) for key in ("nodes", "load", "drawn")}
        size = f"{file.stat().st_size / 1e6:.2f}"
        rows.append([file.name, size, f"{middle['nodes']:,.0f}", f"{middle['load']:.2f}", f"{middle['drawn']:.2f}"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, help="folder that holds circuitsvis, bertviz and their libraries")
    parser.add_argument("--sizes", type=int, nargs="*", default=list(GOALS), help="tokens")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pages", type=Path, nargs="+", help="reports, measured whole in place of the comparison")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        sys.exit("no Chromium on this machine: apt-get install chromium")
    if options.peers:
        sys.path.append(str(options.peers.resolve()))
        warnings.simplefilter("ignore")
    per_number = {"CircuitsVis": 0.0, "BertViz": 0.0}
    rows = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        browser = play.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-background-networking"])
        print(machine("cpu"), f"Chromium {browser.version}", sep=", ", flush=True)
        if options.pages:
            found_rows = whole_pages(options.pages, browser, options.rounds)
            print(table(["page", "MB", "elements", "load event, s", "drawn, s"], found_rows))
            print("goals: GPT-2's shape with 77 tokens 4 MB, 15,000 elements, load event 1.5 s; tiny 1.5 MB")
            return
        for n in options.sizes:
            arrays, words = patterns(n), [f" w{i}" for i in range(n)]
            makers = {"interp": lambda a=arrays, w=words: ours(a, w)}
            if options.peers:
                makers["CircuitsVis"] = lambda a=arrays, w=words: circuitsvis(a, w)
                makers["BertViz"] = lambda a=arrays, w=words: bertviz(a, w, options.peers)
            for name, made in makers.items():
                expected = per_number.get(name, 0.0) * arrays.size
                if expected > LARGEST_PEER:
                    line = [str(n), name, f"about {expected / 1e6:,.0f}", "", "not made: too large to open", "", ""]
                else:
                    line = row(name, n, made, browser, Path(folder), options.rounds)
                    if name in per_number:
                        per_number[name] = float(line[2]) * 1e6 / arrays.size
                rows.append(line)
                print(json.dumps(line), file=sys.stderr, flush=True)
        browser.close()
    head = ("tokens", "tool", "its data and words, MB", "whole file, MB", "nodes", "s to drawn", "s from load to drawn")
    print(table(head, rows))
    for n, (size, seconds) in GOALS.items():
        for line in (line for line in rows if line[:2] == [str(n), "interp"]):
            wanted = f"{n} tokens: section {line[2]} MB, goal {size}"
            wanted += f"; drawn {line[6]} s after load, goal {seconds}" if seconds else ""
            print(wanted + (f"; {line[4]} nodes, goal 1,500" if n == 64 else ""))


if __name__ == "__main__":
    main()
