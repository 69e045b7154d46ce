// The logit lens: colour by any measure, follow any target; pointing at a cell, or the arrow keys, show its top tokens.
async function lens(panel) {
  const info = JSON.parse(decode(await inflate($("script.data", panel).textContent))), { rows, tokens, known } = info;
  const table = $("table.words", panel), detail = $("[data-detail]", panel);
  const choice = $("[data-colour]", panel), target = $("[data-target]", panel);
  const cells = [...table.tBodies[0].rows].map((row) => [...row.cells].slice(1));
  let at = null, locked = false;
  if (innerWidth < 700) table.classList.add("tall");

  // A measure's numbers [row][column]; those that speak of the target follow the choice of it.
  function numbers(measure) {
    const which = info.target_measures.indexOf(measure.name), id = Number(target.value), followed = info.candidates.indexOf(id);
    if (which < 0 || !target.value) return measure.values;
    if (followed >= 0) return info.candidate_values[which][followed];
    return info.top.map((row, i) => row.map((top, j) => {
      const k = top.indexOf(id);
      return k < 0 ? null : which ? k + 1 : info.top_values[i][j][k];
    }));
  }

  function shade({ scale: [low, high], diverging, log }, x) {
    if (!Number.isFinite(x)) return "";
    const bend = log ? Math.log : (v) => v;
    const step = round(20 * (diverging ? abs(x) / high : (bend(x) - bend(low)) / (bend(high) - bend(low) || 1)));
    return step > 0 ? `${!diverging ? "s" : x > 0 ? "p" : "n"} q${min(step, 20)}` : "";
  }

  function paint() {
    const chosen = choice.selectedIndex, measure = info.measures[chosen], values = numbers(measure);
    cells.forEach((row, i) => row.forEach((cell, j) => { cell.className = shade(measure, values[i][j]); }));
    $$(".legend", panel).forEach((node, i) => { node.hidden = i !== chosen; });
    $("[data-partial]", panel).hidden = !target.value || info.candidates.includes(Number(target.value));
    if (at) show(...at);
  }

  function show(i, j) {
    if (at) cells[at[0]][at[1]].classList.remove("at");
    at = [i, j];
    cells[i][j].classList.add("at");
    const head = make("p"), best = make("table"), facts = make("table");
    const aim = target.value ? known[target.value] : info.targets[j];
    head.append(make("b", `${info.row_axis} ${rows[i]}`), `, position ${info.first + j}, after `, token(tokens[j]));
    if (aim !== undefined) head.append("; target ", token(aim));
    (info.top[i]?.[j] ?? []).forEach((id, k) => best.insertRow().append(
      make("td", k + 1), make("td", token(known[id])), make("td", number(info.top_values?.[i][j][k]), "num")));
    for (const measure of info.measures) {
      facts.insertRow().append(make("td", measure.name), make("td", `${number(numbers(measure)[i][j])} ${measure.unit}`, "num"));
    }
    detail.replaceChildren(head, best, facts);
  }

  const place = (event) => {
    const cell = event.target.closest("td");
    return cell && [cell.parentElement.rowIndex - 1, cell.cellIndex - 1];
  };
  function keep() {
    remember(panel.id, { cell: locked ? at.join(".") : null, target: target.value, colour: choice.selectedIndex > 0 ? choice.value : null });
  }
  pointing(table, place, () => !locked, show, (i, j) => {
    locked = !(locked && at[0] === i && at[1] === j);
    show(i, j);
    keep();
  });
  keys(table.parentElement, (...way) => {
    const [down, right] = table.matches(".tall") ? way.reverse() : way;
    const [i, j] = at ? [at[0] + down, at[1] + right] : [0, 0];
    locked = true;
    show(clamp(i, 0, cells.length - 1), clamp(j, 0, cells[0].length - 1));
    say(`${rows[at[0]]}, position ${info.first + at[1]}, ${value(cells[at[0]][at[1]])}`);
    cells[at[0]][at[1]].scrollIntoView({ block: "nearest", inline: "nearest" });
    keep();
  }, () => { locked = false; keep(); });
  on(choice, "change", () => { paint(); keep(); });
  on(target, "change", () => {
    if (!info.target_measures.includes(choice.value)) choice.value = info.target_measures[0];
    paint();
    keep();
  });

  Object.assign(viewers[panel.id], {
    restore(asked) {
      pick(target, asked.get("target"));
      pick(choice, asked.get("colour"));
      paint();
      const [i, j] = (asked.get("cell") ?? "").split(".").map(Number);
      if (cells[i]?.[j]) { locked = true; show(i, j); cells[i][j].scrollIntoView({ block: "nearest", inline: "center" }); }
    },
    csv() { // one line a cell, with all that is known of it
      const tops = info.top[0]?.[0] ?? [];
      return lines([
        [info.row_axis, "position", "token", "shown", "target", ...info.measures.map((m) => m.name), ...tops.flatMap((_, k) => ["top " + (k + 1), "probability"])],
        ...cells.flatMap((row, i) => row.map((cell, j) => [rows[i], info.first + j, plain(tokens[j]), value(cell), plain((target.value ? known[target.value] : info.targets[j]) ?? ""),
          ...info.measures.map((m) => numbers(m)[i][j]),
          ...(info.top[i]?.[j] ?? []).flatMap((id, k) => [plain(known[id]), info.top_values?.[i][j][k]])])),
      ]);
    },
  });
}
opening("lens", lens);
