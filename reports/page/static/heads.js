// Head pages (#head-2.3): all that the sections say about one head, in a dialog.
const heads = $("#head");

async function openHead(layer, head) {
  const info = await (heads.info ??= inflate($("[data-all]", heads).textContent).then((raw) => JSON.parse(decode(raw))));
  if (layer >= info.layers || head >= info.heads) return;
  const h = layer * info.heads + head, viewer = viewers[info.viewer];
  heads.at = [layer, head, info];
  $("h2", heads).textContent = `Layer ${layer}, head ${head}`;
  $("[data-groups]", heads).replaceChildren(...info.groups.flatMap((group) => {
    const box = make("div", make("h3", link(group.title, group.link)));
    for (const { title, link: address, columns, rows, more } of group.tables) {
      if (!rows[h]?.length) continue;
      const table = make("table");
      table.createTHead().insertRow().append(...columns.map((name) => make("th", name)));
      for (const cells of rows[h]) {
        const row = table.insertRow();
        row.append(...cells.map((cell) => make("td", Array.isArray(cell) ? link(...cell) : token(cell))));
        toHeads(row);
      }
      box.append(make("h4", link(title, address)), table, make("p", more[h] ? `and ${more[h]} more` : "", "small"));
    }
    return box.children[1] ? box : [];
  }));
  if (!heads.open) heads.showModal();
  heads.scrollTop = 0;
  if (!viewer) return;
  $("[data-viewer]", heads).href = `#${info.viewer}?head=${layer}.${head}`;
  viewer.small($("canvas", heads), h);
}

// Shows the head an address means; any other address closes the dialog.
function showHead(id) {
  const found = /^head-(\d+)\.(\d+)$/.exec(id);
  if (found && heads) openHead(...found.slice(1).map(Number)); else heads?.close();
}
if (heads) {
  on($("[data-close]", heads), "click", () => heads.close());
  on(heads, "close", () => { if (location.hash.startsWith("#head-")) remember("", {}); });
  $$("[data-step]", heads).forEach((button) => on(button, "click", () => {
    const [down, right] = button.dataset.step.split(",").map(Number), [layer, head, info] = heads.at;
    location.replace(`#head-${clamp(layer + down, 0, info.layers - 1)}.${clamp(head + right, 0, info.heads - 1)}`);
  }));
}
