// Tables: sorting by any column, all rows on request, links to heads, CSV.
const value = (cell) => cell.dataset.v ?? cell.textContent;

// A label such as "L2H3" leads to that head's page, a layer beside a table of layers by heads to its first head.
function toHeads(row) {
  if (heads) for (const cell of row.cells) {
    const text = cell.textContent, found = /^L(\d+)H(\d+)\b/.exec(cell.matches("[data-heads] th") ? `L${text}H0` : text);
    if (found) cell.replaceChildren(link(text, `head-${found[1]}.${found[2]}`));
  }
}

// Rows left out of the page's HTML are unpacked on request; a cell is its text, or [text, value, shade, low, high, interval].
async function allRows(table) {
  const below = table.parentElement.nextElementSibling, kept = below && $("[data-rows]", below);
  if (!kept) return;
  const numeric = [...table.tHead.rows[0].cells].map((th) => th.classList.contains("num"));
  below.unpacked ??= inflate(kept.textContent).then((raw) => {
    const { heads: first, rows } = JSON.parse(decode(raw));
    table.tBodies[0].append(...rows.map((cells) => {
      const row = make("tr");
      row.append(...cells.map((cell, i) => tableCell([cell].flat(), i < first, numeric[i])));
      toHeads(row);
      return row;
    }));
    rove(table);
    below.textContent = table.tBodies[0].rows.length > 24 ? table.tBodies[0].rows.length + " rows." : "";
  });
  await below.unpacked;
}
function tableCell([text, kept, shade = "", low, high, interval], isHead, numeric) {
  const cell = make(isHead ? "th" : "td", token(text), `${numeric ? "num " : ""}${shade}`.trim());
  if (isHead) cell.scope = "row";
  if (kept) cell.dataset.v = kept;
  if (interval) {
    Object.assign(cell.dataset, { lo: low, hi: high });
    cell.append(make("small", interval));
  }
  return cell;
}
document.addEventListener("toggle", ({ target }) => target.open && $$("table", target).forEach(allRows), true);
// A table is one tab stop for its headings and one for its links; arrow keys move among them.
const stops = ["thead button", "tbody a"];
function rove(table) {
  for (const kind of stops) $$(kind, table).forEach((node, i) => { node.tabIndex = i ? -1 : 0; });
}
on(document, "keydown", (event) => {
  const { target, key, altKey, ctrlKey, metaKey } = event, table = target.closest("table.sortable");
  const kind = table && stops.find((one) => target.matches(one)), by = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[key];
  if (!kind || !by || altKey || ctrlKey || metaKey || event.defaultPrevented) return;
  event.preventDefault();
  const all = $$(kind, table), next = all[all.indexOf(target) + by];
  if (!next) return;
  target.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
});
const amount = (text) => text.trim() ? Number(text.replace("inf", "Infinity")) : NaN;
function compare(a, b) { // numbers first
  const x = amount(a), y = amount(b);
  if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y) || a.localeCompare(b, "en", { numeric: true });
  return x === y ? 0 : x - y;
}

async function sort(table, column, down) {
  const head = table.tHead.rows[0].cells[column];
  if (!head) return;
  await allRows(table);
  table.tBodies[0].append(...[...table.tBodies[0].rows].sort((r, s) => {
    const a = value(r.cells[column]), b = value(s.cells[column]);
    if (!a !== !b) return a ? -1 : 1; // what was not measured stays last
    return (down ? -1 : 1) * compare(a, b);
  }));
  $("[aria-sort]", table)?.removeAttribute("aria-sort");
  head.ariaSort = down ? "descending" : "ascending";
  say(`Sorted by ${head.textContent}, ${head.ariaSort}`);
}

$$("table.sortable").forEach((table) => {
  const { id } = table.closest(".panel");
  [...table.tHead.rows[0].cells].forEach((th, column) => {
    const button = make("button");
    button.type = "button";
    button.append(...th.childNodes);
    th.append(button);
    on(button, "click", () => {
      const down = th.ariaSort ? th.ariaSort === "ascending" : th.classList.contains("num");
      sort(table, column, down);
      if (viewers[id].table) remember(id, { sort: column, down });
    });
  });
  [...table.tBodies[0].rows].forEach(toHeads);
  rove(table);
  table.parentElement.removeAttribute("tabindex"); // its first button scrolls it
  viewers[id] ??= { table, restore(asked) {
    table.closest("details")?.setAttribute("open", "");
    sort(table, Number(asked.get("sort") ?? -1), asked.get("down") === "true");
  } };
});
$$("[data-more]").forEach((button) => on(button, "click", () => allRows($("table", button.parentElement.previousElementSibling))));
on(document, "click", ({ target }) => { // a cell of a table of layers by heads
  const cell = target.closest("[data-heads] td"), at = cell?.cellIndex;
  if (cell && heads) location.hash = `head-${cell.parentElement.cells[0].textContent}.${cell.closest("table").tHead.rows[0].cells[at].textContent}`;
});

const quote = (text) => /[",\r\n]|^\s|\s$/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
const lines = (rows) => rows.map((row) => row.map((cell) => quote(String(cell ?? ""))).join(",") + "\r\n").join("");
// The whole table; intervals become two more columns.
async function csv(table) {
  await allRows(table);
  const rows = [...table.tBodies[0].rows];
  const titles = [...table.tHead.rows[0].cells].map((th) => th.textContent);
  const ranged = titles.map((_, i) => rows.some((row) => row.cells[i]?.dataset.lo !== undefined));
  const spread = (cells) => cells.flatMap((cell, i) => ranged[i] ? cell : cell.slice(0, 1));
  return lines([spread(titles.map((title) => [title, title + " low", title + " high"])),
    ...rows.map((row) => spread([...row.cells].map((c) => [value(c), c.dataset.lo, c.dataset.hi])))]);
}
