// The attention viewer: all heads as thumbnails on one canvas, one head large on another, the text below.
const INK = "#1b1f24", SOFT = "#59616b", FROM = "194 87 26";
const triangle = (n) => n * (n + 1) / 2;

// The inverse of packing.pack: the heads' lower triangles of one layer, as steps of 1/(2^bits - 1).
async function unpack(text, bits, count) {
  const raw = await inflate(text);
  if (bits === 10) return Uint16Array.from(raw.subarray(0, count), (low, i) => low | raw[count + i] << 8);
  const steps = new Uint8Array(count);
  for (let i = 0, next = ceil(count / 4); i < count; i++) {
    const small = raw[i >> 2] >> 2 * (i & 3) & 3;
    steps[i] = small < 3 ? small : raw[next++];
  }
  return steps;
}

function sharp(canvas, width, height) { // a canvas in CSS pixels, sharp on any screen
  const ratio = devicePixelRatio || 1, pen = canvas.getContext("2d");
  canvas.width = round(width * ratio);
  canvas.height = round(height * ratio);
  canvas.style.height = height + "px";
  pen.scale(ratio, ratio);
  return pen;
}
function write(pen, text, x, y, align, colour = SOFT, font = "10px", most) {
  pen.textAlign = align;
  pen.fillStyle = colour;
  pen.font = `${font} system-ui, sans-serif`;
  pen.fillText(text, x, y, most);
}
const short = (coded) => plain(coded).replace(/^(.{13}).{2,}$/, "$1…");

// One pattern with its tokens on both axes: its image, where things are, and its drawing. `first` is the first query
// where keys and queries are different tokens, else 0.
function imageOf(weights, { tokens: { length: n }, first }, shade) {
  const sheet = make("canvas"), pixels = new ImageData(n, n), colours = new Uint32Array(pixels.data.buffer);
  sheet.width = first || n;
  sheet.height = n - first;
  for (let q = 0, i = 0; q < n; q++) for (let k = 0; k <= q; k++, i++) colours[q * n + k] = shade(weights[i]);
  sheet.getContext("2d").putImageData(pixels, 0, -first);
  return sheet;
}
function draw(canvas, sheet, { tokens, first }, query = null, key = query) {
  const words = tokens.map(short), width = canvas.clientWidth, edge = clamp(max(...words.map((word) => word.length)) * 6.6 + 10, 46, width / 4);
  const room = min((width - edge - 6) / sheet.width, 28), cell = room < 3 ? room : floor(room), every = ceil(8 / cell), font = `${clamp(cell + 1, 9, 11)}px`;
  const [wide, high] = [sheet.width * cell, sheet.height * cell], at = (i) => edge + i * cell, top = max(key - first, 0);
  const pen = sharp(canvas, width, edge + high + 6);
  pen.imageSmoothingEnabled = cell < 1;
  pen.drawImage(sheet, edge, edge, wide, high);
  pen.strokeStyle = "#c9ced5";
  pen.stroke(new Path2D(`M${edge} ${edge}v${high}h${wide}`));
  const label = (i, chosen, x, y, align) => { // every so many, and the chosen one with room around it
    if (i === chosen) write(pen, words[i], x, y, align, INK, "bold 11px", edge - 6);
    else if (i % every === 0 && !(abs(i - (chosen ?? NaN)) < every)) write(pen, words[i], x, y, align, SOFT, font, edge - 6);
  };
  pen.textBaseline = "middle";
  for (let i = first; i < words.length; i++) label(i, query, edge - 4, at(i - first + 0.5), "right");
  pen.rotate(-Math.PI / 2);
  for (let i = 0; i < sheet.width; i++) label(i, key, 4 - edge, at(i + 0.5), "left");
  pen.rotate(Math.PI / 2);
  write(pen, "query ↓", edge - 6, edge - 8, "right");
  write(pen, "key →", edge - 6, edge - 22, "right");
  pen.lineWidth = 1.5;
  pen.strokeStyle = INK;
  if (query !== null && query >= first) pen.strokeRect(edge, at(query - first), min(query + 1, sheet.width) * cell, max(cell, 2));
  pen.strokeStyle = `rgb(${FROM})`;
  if (key !== null && key < sheet.width) pen.strokeRect(at(key), at(top), max(cell, 2), high - top * cell);
  return { words, edge, cell, every };
}

function attention(panel) {
  const info = data(panel), L = info.layers, H = info.heads, blues = bytes(info.blues);
  const grid = $("canvas.grid", panel), big = $("canvas.view", panel), beside = $("canvas.beside", panel), strip = $(".tokens", panel);
  const images = $$("img.mosaic", panel);
  const set = Object.fromEntries($$("[data-set]", panel).map((select) => [select.dataset.set, select]));
  const all = [...Array(L * H).keys()], layerOf = (h) => floor(h / H), part = (name) => $(`[data-${name}]`, panel);
  const sorting = () => info.measures.find((m) => m.name === set.sort.value);
  let head = info.best, locked = false, query = null, key = null, held = false;
  let order = all, cols = H, tile = 0, inset = 0, tops = 0, extra = 0; // the layout of the thumbnails
  let weights, sheet, place, twin = null, ticket = 0;
  const text = () => info.texts[set.text.value], other = () => info.texts[set.other.value];
  const size = () => text().tokens.length;
  const members = () => set.scope.value === "head" ? [head] : all.filter((h) => set.scope.value === "all" || layerOf(h) === layerOf(head));
  const bent = (x) => min(set.contrast.value === "sqrt" ? sqrt(x) : x, 1);
  const p = (q, k) => k > q ? 0 : weights[triangle(q) + k];
  const colour = (x) => { const i = 3 * round(bent(x) * 63); return 255 << 24 | blues[i + 2] << 16 | blues[i + 1] << 8 | blues[i]; };

  const opened = new Map(); // "text.layer" -> promise of steps; a few layers are kept
  function layer(t, l) {
    const at = `${t}.${l}`, n = info.texts[t].tokens.length;
    if (!opened.has(at)) {
      if (opened.size >= (n > 300 ? 3 : 64)) opened.delete(opened.keys().next().value);
      opened.set(at, unpack($(`[data-pack="${at}"]`, panel).textContent, info.texts[t].bits, H * triangle(n)));
    }
    return opened.get(at);
  }
  async function pattern(t, h, weight) { // lower triangle, row by row
    const { tokens, bits, norms } = info.texts[t], n = tokens.length, count = triangle(n);
    const steps = await layer(t, layerOf(h)), from = (h % H) * count;
    const out = Float32Array.from(steps.subarray(from, from + count), (step) => step / (2 ** bits - 1));
    if (weight !== "value") return out;
    const lengths = info.texts[t].lengths ??= new Uint16Array(bytes(norms).buffer);
    for (let q = 0, i = 0; q < n; i += ++q) {
      let sum = 0;
      for (let k = 0; k <= q; k++) sum += out[i + k] *= lengths[h * n + k];
      for (let k = 0; k <= q && sum > 0; k++) out[i + k] /= sum;
    }
    return out;
  }
  async function summed(t, heads) {
    let total;
    for (const h of heads) {
      const one = await pattern(t, h, set.weight.value);
      if (total) one.forEach((x, i) => { total[i] += x; }); else total = one;
    }
    return total;
  }

  // The thumbnails.
  function thumbs() {
    const measure = sorting(), width = grid.clientWidth;
    if (!width) return;
    [inset, tops, extra] = measure ? [0, 0, 24] : [22, 16, 0];
    cols = measure ? min(H, max(4, floor(width / 44))) : H;
    tile = min((width - inset) / cols, 110);
    const pen = sharp(grid, width, tops + ceil(L * H / cols) * (tile + extra) + 4);
    const image = images[set.text.value], side = text().side, s = tile - (tile > 30 ? 3 : 1);
    pen.imageSmoothingEnabled = side > tile * devicePixelRatio;
    const fits = (i) => !measure && (tile > 13 || i % 5 === 0);
    for (let h = 0; h < H; h++) if (fits(h)) write(pen, h, inset + (h + 0.5) * tile, 11, "center");
    for (let l = 0; l < L; l++) if (fits(l)) write(pen, l, 10, tops + (l + 0.5) * tile + 3, "center");
    order.forEach((h, i) => {
      const x = inset + (i % cols) * tile + 1, y = tops + floor(i / cols) * (tile + extra) + 1;
      if (image.naturalWidth) pen.drawImage(image, (h % H) * side, layerOf(h) * side, side, side, x, y, s, s);
      pen.lineWidth = h === head ? 2.5 : 0.5;
      pen.strokeStyle = h !== head ? "#b8bec6" : locked ? `rgb(${FROM})` : INK;
      pen.strokeRect(x, y, s, s);
      if (!measure) return;
      write(pen, `L${layerOf(h)}H${h % H}`, x + s / 2, y + s + 10, "center", INK);
      write(pen, number(measure.values[layerOf(h)][h % H]), x + s / 2, y + s + 20, "center");
    });
  }
  function under(event) {
    const c = floor((event.offsetX - inset) / tile), r = floor((event.offsetY - tops) / (tile + extra));
    return c >= 0 && c < cols && order[r * cols + c] !== undefined && [order[r * cols + c]];
  }

  // One head, large.
  async function load() {
    const turn = ++ticket, heads = members(), shade = (x) => colour(x / heads.length);
    const fresh = await summed(set.text.value, heads), second = other() ? await summed(set.other.value, heads) : null;
    if (turn !== ticket) return;
    weights = fresh;
    twin = second && { weights: second, text: other(), sheet: imageOf(second, other(), shade) };
    beside.hidden = !twin;
    if (query >= size()) { query = key = null; held = false; }
    sheet = imageOf(weights, text(), shade);
    const steps = new ImageData(64, 1), pixels = new Uint32Array(steps.data.buffer);
    pixels.forEach((_, i) => { pixels[i] = colour(i / 63); });
    part("ramp").getContext("2d").putImageData(steps, 0, 0);
    part("scale").textContent = `${heads.length}${set.contrast.value === "sqrt" ? ", square root" : ""}`;
    mark();
  }
  function view() {
    if (!sheet || !big.clientWidth) return;
    place = draw(big, sheet, text(), query, key ?? query);
    if (twin) draw(beside, twin.sheet, twin.text, same(query), key === null ? same(query) : same(key, key < text().first));
  }
  function same(i, isKey = false) { // the place of the other text that has the same number, or null
    const at = i === null ? NaN : isKey ? i : i - text().first + twin.text.first;
    return at in twin.text.tokens ? at : null;
  }
  function shown() { // the large pictures as numbers
    const both = [[set.text.value, text(), weights], ...twin ? [[set.other.value, twin.text, twin.weights]] : []];
    return lines([["text", "query", "query token", "key", "key token", "weight"], ...both.flatMap(([t, { tokens, first }, w]) => tokens.slice(first).flatMap((word, i) =>
      tokens.slice(0, first || i + 1).map((of, k) => [Number(t) + 1, i, plain(word), k, plain(of), w[triangle(i + first) + k]])))]);
  }

  // The text below, and the words that say what is seen.
  function mark() {
    if (!weights) return;
    view();
    const parts = members().length;
    [...strip.children].forEach((span, i) => {
      const to = query === null ? 0 : round(bent(p(query, i) / parts) * 20);
      const from = query === null || i < query ? 0 : bent(p(i, query) / parts);
      span.className = `${i === query ? "at " : ""}${to ? "s q" + to : ""}`;
      span.style.borderBottomColor = from > 0.05 ? `rgb(${FROM} / ${from.toFixed(2)})` : "";
    });
    const { tokens, first } = text(), word = (i) => `“${plain(tokens[i])}” (${i < first ? i : i - first})`;
    const seen = query < first, share = (i) => seen ? p(i, query) : p(query, i); // a key that is no query is only seen
    const top = key !== null ? [key] : [...Array(seen ? tokens.length : query + 1).keys()].sort((a, b) => share(b) - share(a)).slice(0, 3);
    part("read").textContent = query === null ? "Point at the picture or at a token."
      : `${word(query)} ${seen ? "is attended to by" : "attends to"} ${top.map((k) => `${word(k)}: ${number(share(k))}`).join(", ")}`;
  }
  function facts() {
    const l = layerOf(head), h = head % H, one = set.scope.value === "head";
    part("name").textContent = one ? `Layer ${l}, head ${h}`
      : `Sum of the ${members().length} heads of ${set.scope.value === "all" ? "the model" : "layer " + l}`;
    part("facts").textContent = one
      ? info.measures.slice(0, 6).map((m) => `${m.name} ${number(m.values[l][h])}`).join(" · ") : "";
    part("page").href = `#head-${l}.${h}`;
    part("page").hidden = !heads;
    part("unlock").hidden = !locked;
  }

  // State.
  function keep() {
    const state = { head: locked ? `${layerOf(head)}.${head % H}` : null, ...held ? { token: query, key } : {} };
    for (const field in set) if (set[field].selectedIndex) state[field] = set[field].value;
    remember(panel.id, state);
  }
  function choose(h, lock = locked) {
    const changed = h !== head || !weights;
    head = h; locked = lock;
    thumbs();
    facts();
    if (changed) load();
  }
  function point(q, k = null, hold = held) { query = q; key = k; held = hold; mark(); }
  function letGo() {
    if (held) point(null, null, false); else choose(head, false);
    keep();
  }
  function refresh() {
    order = sorting()?.order ?? all;
    part("order").hidden = !!sorting();
    strip.replaceChildren(...text().tokens.map((t) => { const span = make("span"); span.append(token(t)); return span; }));
    if (text().first) strip.children[text().first].style.marginLeft = "2em";
    thumbs();
    facts();
    return load();
  }

  pointing(grid, under, () => !locked, (h) => h !== head && choose(h), (h) => { choose(h, !(locked && h === head)); keep(); });
  on(part("numbers"), "click", () => saveText(`${panel.id}-pattern.csv`, shown(), "text/csv"));
  on(part("unlock"), "click", () => { choose(head, false); keep(); grid.focus(); });
  const tell = () => { keep(); say(part("name").textContent + (locked ? ", locked" : "")); };
  keys(grid, (down, right) => {
    choose(order[order.indexOf(head) + down * cols + right] ?? head);
    tell();
  }, letGo, () => { choose(head, !locked); tell(); });

  // A place is [query, key]; the key is null where a whole token is meant.
  function cellAt(event) {
    const { first } = text(), [k, q] = [event.offsetX, event.offsetY].map((x) => floor((x - place.edge) / place.cell));
    if (k >= sheet.width || q >= sheet.height) return null;
    return q >= 0 ? [q + first, k < 0 || k > q + first ? null : k] : k >= 0 ? [k, null] : null;
  }
  function spanAt(event) {
    const i = [...strip.children].indexOf(event.target.closest("span"));
    return i < 0 ? null : [i, null];
  }
  for (const [node, find] of [[big, cellAt], [strip, spanAt]]) {
    const same = (q, k) => q === query && k === key;
    pointing(node, find, () => !held, (q, k) => same(q, k) || point(q, k), (q, k) => { point(q, k, !(held && same(q, k))); keep(); });
    on(node, "pointerleave", () => held || point(null));
  }
  keys(big, (down, right) => {
    const q = clamp(query === null ? 0 : query + down, text().first, size() - 1);
    point(q, clamp(key === null ? q : key + right, 0, min(q, sheet.width - 1)), true);
    say(part("read").textContent);
    keep();
  }, letGo);
  for (const field in set) on(set[field], "change", () => { refresh(); keep(); });
  new ResizeObserver(() => { thumbs(); view(); }).observe(panel);

  viewers[panel.id] = {
    pattern: (t, l, h, weight) => pattern(t, l * H + h, weight),
    state: () => ({ head, locked, query, key, held }),
    async small(canvas, h) { draw(canvas, imageOf(await pattern(set.text.value, h), text(), colour), text()); },
    svg() { // the large view as it stands: the picture as an image, labels as text
      const { words, edge, cell, every } = place, { first } = text(), wide = sheet.width * cell, high = sheet.height * cell, at = (i) => edge + (i + 0.5) * cell + 4;
      const marks = words.map((w, i) => i % every ? "" : (i < first ? "" : `<text x="${edge - 4}" y="${at(i - first)}" text-anchor="end">${xml(w)}</text>`)
        + (i < sheet.width ? `<text transform="translate(${at(i)} ${edge - 4}) rotate(-90)">${xml(w)}</text>` : "")).join("");
      return svg(edge + wide + 8, edge + high + 8, `<image x="${edge}" y="${edge}" width="${wide}" height="${high}" `
        + `style="image-rendering:pixelated" href="${sheet.toDataURL("image/png")}"/>${marks}`);
    },
    restore(asked) {
      for (const field in set) pick(set[field], asked.get(field));
      const [l, h] = (asked.get("head") ?? "").split(".").map(Number), wanted = l * H + h;
      locked = wanted in all && h < H;
      head = locked ? wanted : info.best;
      [query, key] = ["token", "key"].map((field) => Number(asked.get(field) ?? NaN)).map((i) => i in text().tokens ? i : null);
      held = query !== null;
      if (!held) key = null;
      return refresh();
    },
  };
  viewers[panel.id].ready = Promise.all(images.map((image) => image.decode().catch(() => null))).then(refresh);
}
$$(".panel.attention").forEach(attention);
follow();
