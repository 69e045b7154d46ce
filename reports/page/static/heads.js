// Head pages (#head-2.3): all that the sections say about one head, in a dialog, which follows the address.
const heads = $("#head");

async function openHead(layer, head, hash) {
  const info = await (heads.info ??= inflate($("[data-all]", heads).textContent).then((raw) => JSON.parse(decode(raw))));
  if (location.hash !== hash) return; // left meanwhile
  if (layer >= info.layers || head >= info.heads) return heads.close();
  const h = layer * info.heads + head, viewer = viewers[info.viewer];
  Object.assign(heads, { at: [layer, head, info], shown: hash });
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
  if (!heads.open) {
    heads.showModal();
    $("[data-close]", heads).focus();
    heads.scrollTop = 0;
  }
  if (!viewer) return;
  $("[data-viewer]", heads).href = `#${info.viewer}?head=${layer}.${head}`;
  viewer.small($("canvas", heads), h);
}

// Shows the head an address means; any other address closes the dialog.
function showHead(id) {
  const found = /^head-(\d+)\.(\d+)$/.exec(id);
  if (found && heads) return void openHead(...found.slice(1).map(Number), "#" + id);
  if (heads?.open) {
    heads.shown = null;
    heads.close();
  }
}
if (heads) {
  let before = ""; // the address a head page was opened from
  const visit = (hash) => {
    history.replaceState(null, "", hash || "#");
    showHead(hash.slice(1));
  };
  const leave = () => visit(before);
  const step = (down, right) => {
    const [layer, head, info] = heads.at;
    visit(`#head-${clamp(layer + down, 0, info.layers - 1)}.${clamp(head + right, 0, info.heads - 1)}`);
  };
  on(window, "hashchange", ({ oldURL }) => {
    const { hash } = new URL(oldURL || location);
    if (!hash.startsWith("#head-")) before = hash;
  });
  on($("[data-close]", heads), "click", leave);
  on(heads, "cancel", (event) => { event.preventDefault(); leave(); });
  on(heads, "close", () => { if (!heads.open && heads.shown === location.hash) leave(); }); // a browser may not ask first
  $$("[data-step]", heads).forEach((button) => on(button, "click", () => step(...button.dataset.step.split(",").map(Number))));
  on(heads, "keydown", (event) => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!move || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    step(...move);
  });
}
