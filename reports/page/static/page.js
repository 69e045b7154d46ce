"use strict";
// Shared by all viewers: small helpers, the theme, addresses (#panel?state), saving figures. Text is never markup.
const { abs, ceil, floor, max, min, round, sqrt } = Math;
const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
const on = (node, type, act) => node.addEventListener(type, act);
const clamp = (x, low, high) => min(max(x, low), high);
const viewers = {}; // panel id -> {restore(URLSearchParams), svg(), csv()}
const root = document.documentElement;
root.classList.add("on");

function make(tag, content = "", name = "") {
  const node = document.createElement(tag);
  node.append(content);
  node.className = name;
  return node;
}
const link = (text, address) => Object.assign(make("a", text), { href: "#" + address });

// A token's label: stand-in signs come between U+0001 and U+0002 and are drawn dim.
const plain = (coded) => coded.replace(/[\u0001\u0002]/g, "");
function token(coded) {
  const node = make("bdi");
  coded.split(/[\u0001\u0002]/).forEach((part, i) => part && node.append(i % 2 ? make("i", part) : part));
  return node;
}

function number(x) {
  if (!Number.isFinite(x)) return "–";
  const size = abs(x);
  if (size && (size < 1e-3 || size >= 1e5)) return x.toExponential(2).replace("e+", "e").replace(/-/g, "−");
  const text = size >= 1000 ? round(x).toLocaleString("en") : Number.isInteger(x) ? String(x)
    : x.toFixed(size < 1 ? 3 : size < 100 ? 2 : 1);
  return text.replace("-", "−");
}

const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const inflate = async (text) => new Uint8Array(
  await new Response(new Blob([bytes(text)]).stream().pipeThrough(new DecompressionStream("deflate-raw"))).arrayBuffer());
const decode = (raw) => new TextDecoder().decode(raw);
const data = (panel) => JSON.parse($("script.data", panel).textContent);
function opening(kind, open) { // viewers that first unpack what they show
  for (const panel of $$(".panel." + kind)) {
    const viewer = viewers[panel.id] = { restore: async (asked) => { await viewer.ready; viewer.restore(asked); } };
    viewer.ready = open(panel);
  }
}
const say = (text) => { $("#live").textContent = text; };

// What a pointer finds in a node is shown while nothing is held; a click takes it.
function pointing(node, find, free, show, take) {
  on(node, "pointermove", (event) => { const at = find(event); if (at && free()) show(...at); });
  on(node, "click", (event) => { const at = find(event); if (at) take(...at); });
}
// Keys of a viewer: arrows move by (down, right), Escape lets go, Enter chooses.
function keys(node, move, Escape, Enter) {
  const acts = { Escape, Enter, ArrowUp: () => move(-1, 0), ArrowDown: () => move(1, 0), ArrowLeft: () => move(0, -1), ArrowRight: () => move(0, 1) };
  on(node, "keydown", (event) => {
    if (!acts[event.key] || event.altKey || event.ctrlKey || event.metaKey) return;
    acts[event.key]();
    event.preventDefault();
  });
}

// Chooses an option by its value, the first if there is none such.
function pick(select, wanted) {
  select.value = wanted;
  if (select.selectedIndex < 0) select.selectedIndex = 0;
}

// Theme: light, dark, as the system says, in turn.
const themes = ["light", "dark", "system"];
on($("#theme"), "click", ({ target }) => {
  root.dataset.theme = themes[(themes.indexOf(root.dataset.theme) + 1) % 3];
  target.textContent = "Theme: " + root.dataset.theme;
});

// Addresses: "#panel?head=3.5&token=12".
function remember(id, state) {
  const query = new URLSearchParams(Object.entries(state).filter(([, value]) => value !== null && value !== ""));
  history.replaceState(null, "", "#" + id + (query.size ? "?" + query : ""));
}
function follow() {
  const [id, query] = location.hash.slice(1).split("?");
  const target = showHead(id) || document.getElementById(id);
  for (let box = target?.closest("details"); box; box = box.parentElement.closest("details")) box.open = true;
  if (!target || query === undefined) return;
  viewers[id]?.restore(new URLSearchParams(query));
  target.scrollIntoView();
}
on(window, "hashchange", follow);

// The list of contents shows where the reader is.
const links = new Map($$("#contents a").map((link) => [link.hash.slice(1), link]));
const seen = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    $(".here")?.classList.remove("here");
    links.get(target.id).classList.add("here");
  }
}, { rootMargin: "-10% 0px -80% 0px" });
$$("main [id]").forEach((node) => links.has(node.id) && seen.observe(node));

const save = (name, href) => Object.assign(make("a"), { href, download: name }).click();
const saveText = (name, text, type) => save(name, URL.createObjectURL(new Blob([text], { type })));
const xml = (text) => text.replace(/[&<>"]/g, (c) => "&#" + c.charCodeAt(0) + ";");
const svg = (width, height, inner) => `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" font-family="system-ui, sans-serif" font-size="11">${inner}</svg>`;

// HTML drawn as SVG: every shaded or written cell becomes a rectangle and its text.
function picture(node) {
  const box = node.getBoundingClientRect(), out = [];
  const rect = (r, fill) => out.push(`<rect x="${r.x - box.x}" y="${r.y - box.y}" width="${r.width}" height="${r.height}" fill="${fill}"/>`);
  rect(box, getComputedStyle(document.body).backgroundColor);
  for (const cell of $$("th, td, .text > span, .duo b", node)) {
    for (const r of cell.getClientRects()) rect(r, getComputedStyle(cell).backgroundColor);
    const walk = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT), range = new Range();
    for (let text = walk.nextNode(); text; text = walk.nextNode()) {
      range.selectNodeContents(text);
      const r = range.getBoundingClientRect(), look = getComputedStyle(text.parentElement);
      if (text.data.trim()) out.push(`<text x="${r.x - box.x}" y="${r.y - box.y + r.height * 0.78}" font-size="${look.fontSize}" fill="${look.color}">${xml(text.data)}</text>`);
    }
  }
  return svg(box.width, box.height, out.join(""));
}

async function raster(url, name) {
  const image = Object.assign(new Image(), { src: url });
  await image.decode();
  const width = image.naturalWidth * 2, height = image.naturalHeight * 2;
  const canvas = Object.assign(make("canvas"), { width, height }), pen = canvas.getContext("2d");
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, width, height);
  pen.drawImage(image, 0, 0, width, height);
  save(name, canvas.toDataURL("image/png"));
}

// Heat maps: the cell pointed at is read from the table of numbers below it.
$$("img.heat").forEach((image) => {
  const box = image.dataset.box.split(" ").map(Number), [rows, columns] = image.dataset.cells.split(" ").map(Number);
  const panel = image.closest(".panel"), table = $("table", panel), read = $("[data-read]", panel);
  const cell = ({ offsetX, offsetY }) => {
    const i = floor((offsetY / image.clientHeight - box[1]) / box[3] * rows), j = floor((offsetX / image.clientWidth - box[0]) / box[2] * columns);
    return i >= 0 && i < rows && j >= 0 && j < columns && [i, j];
  };
  pointing(image, cell, () => read, async (i, j) => {
    await allRows(table);
    const { cells } = table.tBodies[0].rows[i], title = table.tHead.rows[0].cells[j + 1];
    read.replaceChildren(`${cells[0].textContent}, ${title.textContent}: `, make("b", cells[j + 1].firstChild.textContent), ` ${$("small", cells[j + 1])?.textContent ?? ""}`);
  }, (i, j) => { if (heads && "heads" in image.dataset) location.hash = `head-${i}.${j}`; });
});

// The program that computes what a section shows, from the request that the page keeps.
function program(section) {
  const { model, request: { text, options = {} } = {} } = JSON.parse($("#provenance-data").textContent);
  const value = (x) => x === null ? "None" : x === true ? "True" : x === false ? "False" : Array.isArray(x) ? `[${x.map(value).join(", ")}]` : JSON.stringify(x);
  const given = Object.entries(options[section] ?? options).filter(([, x]) => x !== null).map(([name, x]) => `, ${name}=${value(x)}`);
  return `import analyses\nimport interp\n\nmodel = interp.load(${value(model)})\nresult = analyses.${section}(model, ${value(text ?? null)}${given.join("")})\nprint(result.to_dataframe())\n`;
}
function copy(text) {
  navigator.clipboard?.writeText(text).then(() => say("Copied"), () => prompt("Copy this", text)) ?? prompt("Copy this", text);
}

on(document, "change", async ({ target }) => {
  const kind = "take" in target.dataset && target.value;
  if (!kind) return;
  target.value = "";
  const panel = target.closest(".panel"), own = viewers[panel.id], image = $("img.figure", panel);
  if (kind === "link") return copy(location.href.split("#")[0] + "#" + panel.id);
  if (kind === "python") return copy(program(panel.id.split("-")[0]));
  if (kind === "csv") return saveText(panel.id + ".csv", own?.csv?.() ?? await csv($("table", panel)), "text/csv");
  const drawn = own?.svg?.() ?? (image ? decodeURIComponent(image.src.slice(image.src.indexOf(",") + 1)) : picture($("table, .shaded", panel)));
  if (kind === "svg") return saveText(panel.id + ".svg", drawn, "image/svg+xml");
  raster("data:image/svg+xml;charset=utf-8," + encodeURIComponent(drawn), panel.id + ".png");
});
