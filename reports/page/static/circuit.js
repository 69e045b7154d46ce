// The circuit: as many of the best edges as the reader takes, layers upwards; drawn as reports/circuits.py has it.
// The address holds the size, what is chosen (names of nodes or the rank of an edge), pins in thousandths, and groups.
const set = (node, attributes) => { for (const name in attributes) node.setAttribute(name, attributes[name]); return node; };
function shape(tag, attributes, text = "") {
  const node = set(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes);
  node.append(text);
  return node;
}

async function circuit(panel) {
  const info = data(panel), { nodes, kinds, levels, across, wide, held, steps } = info, part = (name) => $(`[data-${name}]`, panel);
  const { buffer } = await inflate(part("edges").textContent), numbers = [0, 1, 2, 3, 4].map((k) => new Float32Array(buffer, 4 * k * held, held)), [scores, exact, low, high, stability] = numbers;
  // Links: the edges, then what leads from shared keys and values to their heads.
  const [from, to, inputs, later] = [0, 1, 2, 3].map((k) => [...new Uint16Array(buffer, 20 * held + 2 * k * info.links, info.links)]), input = (i) => info.inputs[inputs[i]];
  const known = Number.isFinite;
  const graph = part("graph"), slider = part("size"), group = part("group"), [strokes, hulls, boxes] = graph.children;
  let size, chosen, edge, links, edges, where, width, height, room, moved, shift; // chosen nodes, or one edge; whether a key comes with shift
  let pins, groups; // node -> its place in thousandths of the drawing; node -> its group's name, as the only one of an array

  function spread(row) {
    const x = row.map((i) => 34 + across[i] * (width - 90)), half = row.map((i) => wide[i] / 2);
    for (let k = 1; k < row.length; k++) x[k] = max(x[k], x[k - 1] + half[k - 1] + half[k]);
    for (let k = row.length - 1, right = width - 20; k >= 0; right = x[k] - half[k--]) x[k] = min(x[k], right - half[k]);
    return x;
  }
  function places() {
    const drawn = [...new Set(links.flatMap((i) => [from[i], to[i]]))].sort((i, j) => across[i] - across[j]);
    const rows = [...new Set(drawn.map((i) => levels[i]))].sort((a, b) => b - a).map((level) => drawn.filter((i) => levels[i] === level)), gap = clamp(640 / rows.length, 26, 64);
    width = max(room || 640, ...rows.map((row) => row.reduce((sum, i) => sum + wide[i], 90)));
    height = 32 + max(rows.length - 1, 0) * gap;
    where = new Map(rows.flatMap((row, k) => spread(row).map((x, j) => [row[j], pins.get(row[j])?.map((share, axis) => share * (axis ? height : width) / 1000) ?? [x, 16 + k * gap]])));
  }
  function curve(i) {
    const [x, y] = where.get(from[i]), [u, v] = where.get(to[i]), end = u + ({ q: -9, v: 9 }[input(i)] ?? 0), rise = y - v - 18;
    const aside = rise > 70 ? min(60, 0.16 * rise) * max(0, 1 - abs(end - x) / 120) : 0;
    return `M${x} ${y - 9}C${[x + aside, y - 9 - 0.4 * rise, end + aside, v + 9 + 0.4 * rise, end, v + 9]}`;
  }

  const box = (i) => $(`[data-node="${i}"]`, boxes), has = (i) => chosen.includes(i);
  const own = (i) => edge >= 0 ? i === edge : !chosen.length || has(from[i]) || has(to[i]);
  function draw() {
    const near = new Set(links.filter(own).flatMap((i) => [from[i], to[i]])), stop = chosen.at(-1) ?? [...where.keys()].at(-1);
    strokes.replaceChildren(...links.map((i) => {
      const share = i < held ? sqrt(abs(scores[i]) / info.largest) : 0.2;
      return shape("path", { d: curve(i), "data-edge": i, class: `${i >= held ? "link" : scores[i] > 0 ? "up" : "down"}${own(i) ? "" : " far"}`, "stroke-width": 0.7 + 3.8 * share, "stroke-opacity": 0.3 + 0.6 * share });
    }));
    hulls.replaceChildren(...[...new Set([...groups.values()].flat())].flatMap((name, k) => {
      const spots = [...where].filter(([i]) => groups.get(i)?.[0] === name).map(([, spot]) => spot).sort((a, b) => b[1] - a[1]), [x, y] = spots.at(-1) ?? [];
      return x ? [shape("path", { class: "m" + k % 8, d: `M${spots.join("L")}h.1` }), shape("text", { x, y: y - 24, "stroke-width": 4 }, name)] : [];
    }));
    for (const i of nodes.keys()) {
      let made = box(i); // made once, so that the focus stays
      if (!made && where.has(i)) {
        made = boxes.appendChild(shape("g", { "data-node": i, role: "button" }));
        made.append(shape("rect", { x: 6 - wide[i] / 2, y: -9, width: wide[i] - 12, height: 18, rx: kinds[i] === "mlp" ? 1 : 6 }), shape("text", { y: 4 }, nodes[i]));
      }
      if (made) set(made, { class: `node ${kinds[i]}${near.has(i) ? "" : " far"}`, display: where.has(i) ? "" : "none", transform: `translate(${where.get(i) ?? 0})`, tabindex: i === stop ? 0 : -1, "aria-pressed": has(i) });
    }
  }

  // What is read beside the drawing.
  const named = (e) => `${nodes[from[e]]} → ${nodes[to[e]]} ${input(e)}: ${number(scores[e])}`;
  function button(text, ...what) {
    const made = make("button", text);
    on(made, "click", () => choose(...what));
    return made;
  }
  function told() {
    const head = chosen.length < 2 && /^L(\d+)H(\d+)$/.exec(nodes[chosen[0]]);
    part("acts").hidden = !chosen.length;
    part("about").hidden = !head || !heads;
    if (head) part("about").href = `#head-${head[1]}.${head[2]}`;
    part("pin").textContent = pins.has(chosen[0]) ? "Let go" : "Hold here";
    group.value = groups.get(chosen.at(-1)) ?? "";
    part("told").textContent = edge < 0 ? chosen.map((i) => nodes[i]).join(", ") : `${named(edge)} ${info.unit}, rank ${number(edge + 1)}; exact: ${number(exact[edge])}`
      + (known(low[edge]) ? ` [${number(low[edge])}, ${number(high[edge])}]` : "") + (known(stability[edge]) ? `; found in ${round(100 * stability[edge])} % of resamples` : "");
    part("list").replaceChildren(...edge >= 0 ? [from, to].map((ends) => button(nodes[ends[edge]], [ends[edge]])) : edges.filter((e) => chosen.length && own(e)).map((e) => button(named(e), [], e)));
  }
  function show(keep = true) {
    links = [...later.keys()].filter((i) => (later[i] + i & 65535) <= size).reverse(); // the best on top
    edges = links.filter((i) => i < held).reverse();
    places();
    chosen = chosen.filter((i) => where.has(i)); // what is not drawn cannot be chosen
    if (!links.includes(edge)) edge = -1;
    set(graph, { width, height });
    draw();
    told();
    const [, near, mark] = steps.find(([k]) => k === size), lost = size - edges.length;
    slider.value = steps.findIndex(([k]) => k === size);
    part("count").textContent = slider.ariaValueText = `${number(size)} of ${number(info.total)} edges, ${Number((100 * size / info.total).toPrecision(2))} %${lost ? `; ${number(lost)} lead nowhere and are not drawn` : ""}`;
    if (part("said")) part("said").textContent = info.said[near];
    if (part("mark")) set(part("mark"), { transform: `translate(${mark})` });
    const rows = (map) => [...map].map(([i, values]) => [nodes[i], ...values].join(".")).join("*");
    if (keep) remember(panel.id, { size: size === info.chosen ? null : size, at: edge < 0 ? chosen.map((i) => nodes[i]).join("*") : edge + 1, pin: rows(pins), group: rows(groups) });
  }
  function choose(those, e = -1) {
    [chosen, edge] = [those, e];
    show();
    say(part("told").textContent);
  }
  const take = (i, more) => choose(!more ? [i] : has(i) ? chosen.filter((j) => j !== i) : [...chosen, i]);
  const pin = (i, [x, y] = where.get(i)) => pins.set(i, [x / width, y / height].map((share) => clamp(round(1000 * share), 0, 1000)));

  // A pointer finds a node, or a line within some pixels.
  const nodeAt = (target) => Number(target.closest("[data-node]")?.dataset.node ?? -1);
  function find({ target, clientX, clientY, shiftKey }) {
    const i = nodeAt(target);
    if (i >= 0) return [i, -1, shiftKey];
    for (const r of [0, 2, 4, 6]) for (const [u, v] of [[r, 0], [-r, 0], [0, r], [0, -r]]) {
      const e = Number(document.elementFromPoint(clientX + u, clientY + v)?.dataset.edge ?? held);
      if (e < held) return [-1, e];
    }
  }
  pointing(graph, find, () => false, null, (i, e, more) => moved || (e < 0 ? take(i, more) : choose([], e)));
  on(graph, "pointerdown", ({ target, pointerId, clientX, clientY }) => {
    const i = nodeAt(target), spot = where.get(i);
    moved = false;
    graph.onpointermove = spot && ((now) => {
      const by = [now.clientX - clientX, now.clientY - clientY];
      moved = now.buttons && (moved || Math.hypot(...by) > 4);
      if (!moved) return;
      graph.setPointerCapture(pointerId);
      where.set(i, spot.map((x, axis) => x + by[axis]));
      draw();
    });
    graph.onpointerup = () => {
      graph.onpointermove = null;
      if (moved) { pin(i); show(); }
    };
  });
  const focused = () => nodeAt(document.activeElement);
  on(graph, "keydown", ({ shiftKey }) => { shift = shiftKey; });
  keys(graph, (down, right) => {
    const i = focused(), [x, y] = where.get(i), along = ([u, v]) => (u - x) * right + (v - y) * down, far = ([u, v]) => abs(u - x) * (right ? 1 : 3) + abs(v - y) * (down ? 1 : 3);
    if (shift) { pin(i, [x + 8 * right, y + 8 * down]); return show(); }
    const [next] = [...where].filter(([, spot]) => along(spot) > 1).sort(([, a], [, b]) => far(a) - far(b));
    if (next) box(next[0]).focus();
  }, () => choose([]), () => take(focused(), shift));
  on(slider, "input", () => { [size] = steps[slider.value]; show(false); });
  on(slider, "change", () => show()); // the address only once: browsers take few a second
  on(part("pin"), "click", () => {
    const free = pins.has(chosen[0]);
    for (const i of chosen) if (free) pins.delete(i); else pin(i);
    show();
  });
  on(group, "change", () => {
    const name = group.value.replace(/[.*]/g, " ").trim();
    for (const i of chosen) if (name) groups.set(i, [name]); else groups.delete(i);
    show();
  });

  Object.assign(viewers[panel.id], {
    svg() { // with the colours that the style sheet gives
      const copy = graph.cloneNode(true), looks = $$("*", graph).map((node) => getComputedStyle(node));
      $$("*", copy).forEach((node, i) => { for (const name of ["fill", "stroke", "opacity"]) node.setAttribute(name, looks[i][name]); });
      return svg(width, height, `<rect width="100%" height="100%" fill="${getComputedStyle(document.body).backgroundColor}"/>${new XMLSerializer().serializeToString(copy)}`);
    },
    csv: () => lines([info.columns, ...[...scores.keys()].map((i) => [nodes[from[i]], nodes[to[i]], input(i), ...numbers.map((x) => known(x[i]) ? x[i] : "")])]),
    restore(asked) {
      const wanted = asked.get("size") || info.chosen, rows = (field) => (asked.get(field) ?? "").split("*").map((row) => row.split(".")).filter(([name]) => nodes.includes(name)).map(([name, ...values]) => [nodes.indexOf(name), values]);
      [size] = steps.reduce((a, b) => abs(b[0] - wanted) < abs(a[0] - wanted) ? b : a);
      [chosen, edge] = [rows("at").map(([i]) => i), asked.get("at") - 1 in scores ? asked.get("at") - 1 : -1];
      pins = new Map(rows("pin").filter(([, spot]) => spot[1] >= 0 && spot[0] >= 0));
      groups = new Map(rows("group").filter(([, [name]]) => name));
      show(false);
    },
  });
  new ResizeObserver(() => { if (room !== (room = graph.parentElement.clientWidth)) show(false); }).observe(panel);
  room = graph.parentElement.clientWidth;
  viewers[panel.id].restore(new Map());
}
opening("circuit", circuit);
