// Second half of the report's script, after report_scene.js: scores and reasons in words, the cards of the
// scenes, refinement pairs, filter and sort.

// ------------------------------------------------------------------------------------------ score parts

function chips(scene, plan) {
  const list = element("span", "chips");
  if (scene.errors[plan]) list.append(element("span", "chip zero", "not scored"));
  for (const metric of failedRules(scene, plan)) {
    if (metric.key === "ego_progress") continue;
    const value = valueOf(scene, plan, metric.key);
    const chip = element("span", `chip ${metric.isMultiplied ? (value === 0 ? "zero" : "half") : "cost"}`, metric.short);
    chip.title = `${metric.long}: ${percent(value)}`;
    list.append(chip);
  }
  return list;
}

function scoreClass(value) {
  if (value === null) return "none";
  return value === 0 ? "zero" : value < 0.6 ? "low" : "fine";
}

function scoreTable(scene) {
  const table = element("table", "scores");
  const head = element("tr");
  head.append(element("th"));
  for (const metric of index.metrics) {
    const cell = element("th", "", metric.short);
    cell.title = metric.long;
    head.append(cell);
  }
  table.append(element("thead"));
  table.tHead.append(head);
  const body = element("tbody");
  for (const plan of index.plans) {
    if (!plan.isScored) continue;
    const row = element("tr");
    const name = element("th");
    const sample = element("i", "swatch");
    sample.style.background = plan.colour;
    name.append(sample, plan.label);
    row.append(name);
    const values = scene.scores[plan.id];
    if (!values) {
      const cell = element("td", "error", scene.errors[plan.id] || "not scored");
      cell.colSpan = index.metrics.length;
      row.append(cell);
    } else {
      values.forEach((value, i) => {
        const metric = index.metrics[i];
        const kind = metric.key === "score" ? "score" : value === null || value >= 1 ? "one"
          : metric.key === "ego_progress" && value > 0 ? "" : value > 0 ? "half" : "zero";
        row.append(element("td", kind, percent(value).replace(/^100\.0$/, "100").replace(/^0\.0$/, "0")));
      });
    }
    body.append(row);
  }
  table.append(body);
  return table;
}

function reasonList(scene, ids, onTime) {
  const list = element("div", "reasons");
  for (const id of ids) {
    const reasons = scene.reasons[id];
    if (!reasons && !scene.errors[id]) continue;
    const group = element("section");
    const title = element("h4");
    const sample = element("i", "swatch");
    sample.style.background = styleOf[id].colour;
    const score = element("b", scoreClass(scoreOf(scene, id)), percent(scoreOf(scene, id)));
    title.append(sample, `${styleOf[id].label} `, score);
    group.append(title);
    const items = element("ul");
    if (scene.errors[id]) items.append(element("li", "error", scene.errors[id]));
    for (const reason of reasons || []) {
      const metric = index.metrics.find((item) => item.key === reason.rule);
      const item = element("li", isCounted(reason) ? "" : "lifted");
      const kind = !isCounted(reason) ? "lifted" : metric.isMultiplied ? (reason.value === 0 ? "zero" : "half") : "cost";
      item.append(element("span", `chip ${kind}`, metric.short));
      const words = reason.text.replace(/(\d) (?=(s|m)\b)/g, "$1\u00a0");
      const text = element(reason.state === null ? "span" : "button", "reason", words);
      if (reason.state !== null) {
        text.type = "button";
        text.title = `show ${(reason.state * STEP_S).toFixed(1)} s`;
        text.addEventListener("click", () => onTime(reason.state));
      }
      const line = element("span");
      line.append(text);
      if (reason.isLifted) line.append(element("small", "", " (not counted: the recorded driver fails this too)"));
      else if (!isCounted(reason)) line.append(element("small", "", " (not counted: this rule has no weight)"));
      item.append(line);
      items.append(item);
    }
    if (!items.children.length) items.append(element("li", "one", "nothing to complain about"));
    group.append(items);
    list.append(group);
  }
  return list;
}

// Whether a reason cost points: its rule has weight, and the human-penalty filter does not lift it.
const isCounted = (reason) => !reason.isLifted && index.metrics.some((metric) => metric.key === reason.rule && metric.isRule);

// The state in which a trajectory first breaks a rule that counts, those that make the score 0 first; or null.
function firstTrouble(scene, ids) {
  const reasons = ids.flatMap((id) => scene.reasons[id] || []).filter((item) => item.state !== null && isCounted(item));
  const isFatal = (item) => index.metrics.some((metric) => metric.key === item.rule && metric.isMultiplied);
  const counted = reasons.some(isFatal) ? reasons.filter(isFatal) : reasons;
  return counted.length ? Math.min(...counted.map((item) => item.state)) : null;
}

// ------------------------------------------------------------------------------------------------ cards

const ARROWS = { left: "↰ left", straight: "↑ straight", right: "↱ right", unknown: "· unknown" };
const shownPlans = index.plans.filter((plan) => plan.isShown).map((plan) => plan.id);
const grid = document.getElementById("grid");
const cards = new Map();

const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    watcher.unobserve(entry.target);
    entry.target.fill();
  }
}, { rootMargin: "300px" });

function facts(scene) {
  const stage = scene.stage ? `stage ${scene.stage} · ` : "";
  return `${stage}${ARROWS[scene.command]} · ${scene.speed.toFixed(1)} m/s`;
}

function card(scene) {
  if (cards.has(scene.number)) return cards.get(scene.number);
  const article = element("article", "card");
  article.id = `card-${scene.number}`;
  article.append(closedCard(scene, article));
  cards.set(scene.number, article);
  return article;
}

function closedCard(scene, article) {
  const button = element("button", "closed");
  button.type = "button";
  button.setAttribute("aria-label", `open scene ${scene.token}`);
  const picture = element("div", "camera");
  const line = element("div", "headline");
  line.append(element("b", `value ${scoreClass(scoreOf(scene, MAIN))}`, percent(scoreOf(scene, MAIN))));
  const change = changeOf(scene);
  if (change !== null && Math.abs(change) > 1e-9) {
    const mark = element("span", `change ${change > 0 ? "up" : "down"}`, `${change > 0 ? "▲" : "▼"} ${percent(Math.abs(change))}`);
    mark.title = "change by refinement";
    line.append(mark);
  }
  line.append(chips(scene, MAIN));
  const reason = (scene.reasons[MAIN] || []).find((item) => isCounted(item) && item.rule !== "ego_progress");
  const text = scene.errors[MAIN] || (reason ? reason.text : "");
  button.append(picture, line, element("p", "why", text), element("p", "facts", facts(scene)));
  button.append(element("p", "token", `${scene.token} · ${scene.log}`));
  button.addEventListener("click", () => open(scene, article));
  article.fill = () => {
    const view = cameraView(scene, decode(scene), shownPlans);
    if (picture.isConnected) picture.replaceWith(view);
  };
  watcher.observe(article);
  return button;
}

function open(scene, article) {
  watcher.unobserve(article);
  article.className = "card open";
  const header = element("header");
  header.append(
    element("b", `value ${scoreClass(scoreOf(scene, MAIN))}`, percent(scoreOf(scene, MAIN))),
    element("h3", "", scene.token),
    element("span", "facts", `${facts(scene)} · ${scene.map} · ${scene.log}`),
  );
  const close = element("button", "close", "×");
  close.type = "button";
  close.setAttribute("aria-label", "close");
  close.addEventListener("click", () => {
    article.className = "card";
    article.replaceChildren(closedCard(scene, article));
    history.replaceState(null, "", location.pathname + location.search);
  });
  header.append(close);
  article.replaceChildren(header);
  const data = decode(scene);
  if (!data) {
    article.append(reasonList(scene, [MAIN], () => {}), scoreTable(scene));
    return article;
  }
  const chosen = new Set(shownPlans);
  const body = element("div", "body"), left = element("div", "left"), right = element("div", "right");
  const canvas = element("canvas", "birdseye");
  const ids = () => index.plans.map((plan) => plan.id).filter((id) => chosen.has(id) && data.plans[id]);
  const play = player(scene, data, [{ canvas, ids }]);
  let camera = cameraView(scene, data, ids());
  const jump = (state) => play.show(state);
  let reasons = reasonList(scene, ids(), jump);
  const legend = planLegend(data, chosen, () => {
    const freshCamera = cameraView(scene, data, ids()), freshReasons = reasonList(scene, ids(), jump);
    camera.replaceWith(freshCamera);
    reasons.replaceWith(freshReasons);
    [camera, reasons] = [freshCamera, freshReasons];
    play.redraw();
  });
  const scroll = element("div", "scroll");
  scroll.append(scoreTable(scene));
  left.append(camera, legend, scroll);
  right.append(canvas, play.bar, reasons);
  body.append(left, right);
  article.append(body);
  article.playTo = play.show;
  history.replaceState(null, "", `#${encodeURIComponent(scene.token)}`);
  play.show(firstTrouble(scene, [MAIN]) ?? 0);
  return article;
}

function planLegend(data, chosen, onChange) {
  const list = element("div", "legend plans");
  for (const plan of index.plans) {
    if (!data.plans[plan.id]) continue;
    const label = element("label");
    const tick = element("input");
    tick.type = "checkbox";
    tick.checked = chosen.has(plan.id);
    tick.addEventListener("change", () => {
      if (tick.checked) chosen.add(plan.id);
      else chosen.delete(plan.id);
      onChange();
    });
    label.append(tick, lineSample(plan), plan.label);
    list.append(label);
  }
  return list;
}

function lineSample(plan) {
  const drawing = svg("svg", { width: 30, height: 8, "aria-hidden": "true" });
  const dash = plan.dash ? plan.dash.map((m) => (m * 5).toFixed(1)).join(" ") : "none";
  drawing.append(svg("line", { x1: 0, x2: 30, y1: 4, y2: 4, stroke: plan.colour, "stroke-width": 3.5, "stroke-dasharray": dash }));
  return drawing;
}

// ------------------------------------------------------------------------------------- refinement pairs

function pairCard(scene) {
  const article = element("article", "pair");
  article.fill = () => {
    const data = decode(scene);
    const header = element("header");
    const change = changeOf(scene);
    header.append(
      element("b", `change ${change > 0 ? "up" : "down"}`, `${change > 0 ? "▲ +" : "▼ −"}${percent(Math.abs(change))}`),
      element("h3", "", scene.token),
      element("span", "facts", `${facts(scene)} · ${scene.log}`),
    );
    const body = element("div", "body three");
    const first = element("div");
    first.append(cameraView(scene, data, [MAIN, BEFORE, "human"]));
    const columns = [BEFORE, MAIN].map((id) => {
      const column = element("figure");
      const caption = element("figcaption", "", id === BEFORE ? "before: " : "after: ");
      caption.append(element("b", scoreClass(scoreOf(scene, id)), percent(scoreOf(scene, id))));
      const canvas = element("canvas", "birdseye");
      column.append(caption, canvas);
      return { column, canvas, ids: () => [id, "human"] };
    });
    const play = player(scene, data, columns);
    first.append(play.bar, reasonList(scene, [BEFORE, MAIN], (state) => play.show(state)));
    body.append(first, columns[0].column, columns[1].column);
    article.replaceChildren(header, body);
    play.show(firstTrouble(scene, [MAIN, BEFORE]) ?? 0);
    article.playTo = play.show;
  };
  watcher.observe(article);
  return article;
}

const pairs = document.getElementById("pairs");
if (pairs) {
  for (const token of index.pairs) pairs.append(pairCard(byToken.get(token)));
}

// ------------------------------------------------------------------------------------- filter and sort

const form = document.getElementById("filter");
const count = document.getElementById("count");
const SORTS = {
  worst: (a, b) => order(scoreOf(a, MAIN)) - order(scoreOf(b, MAIN)),
  best: (a, b) => order(scoreOf(b, MAIN)) - order(scoreOf(a, MAIN)),
  change: (a, b) => Math.abs(changeOf(b) ?? 0) - Math.abs(changeOf(a) ?? 0),
  time: (a, b) => (firstTrouble(a, [MAIN]) ?? NUM_STATES) - (firstTrouble(b, [MAIN]) ?? NUM_STATES),
  log: (a, b) => a.log.localeCompare(b.log) || a.number - b.number,
};
const order = (value) => (value === null ? -1 : value);

function hasFailed(scene, rule) {
  if (!rule) return true;
  if (rule === "not scored") return !isScored(scene, MAIN);
  if (rule === "none") return isScored(scene, MAIN) && failedRules(scene, MAIN).every((metric) => metric.key === "ego_progress");
  if (rule === "zero") return scoreOf(scene, MAIN) === 0;
  const value = valueOf(scene, MAIN, rule);
  return value !== null && value < 1;
}

function haystack(scene) {
  scene.text ??= [scene.token, scene.log, scene.map, ...Object.values(scene.reasons).flat().map((item) => item.text),
    ...Object.values(scene.errors)].join("\n").toLowerCase();
  return scene.text;
}

function update() {
  const wanted = Object.fromEntries(new FormData(form));
  const words = wanted.text.toLowerCase().split(/\s+/).filter(Boolean);
  const found = scenes.filter(
    (scene) => hasFailed(scene, wanted.rule)
      && (!wanted.command || scene.command === wanted.command)
      && (!wanted.log || scene.log === wanted.log)
      && (!wanted.stage || String(scene.stage) === wanted.stage)
      && words.every((word) => haystack(scene).includes(word)),
  );
  found.sort((a, b) => SORTS[wanted.sort](a, b) || a.number - b.number);
  grid.replaceChildren(...found.map(card));
  count.textContent = found.length === scenes.length ? `${scenes.length} scenes` : `${found.length} of ${scenes.length} scenes`;
  document.getElementById("nothing").hidden = found.length > 0;
}

for (const name of ["command", "log", "stage"]) {
  const values = [...new Set(scenes.map((scene) => scene[name]))].filter((value) => value !== 0).sort();
  const select = form.elements[name];
  for (const value of values) select.append(new Option(name === "stage" ? `stage ${value}` : value, value));
  select.closest("label").hidden = values.length < 2;
}
form.addEventListener("input", update);
form.addEventListener("reset", () => setTimeout(update));
form.addEventListener("submit", (event) => event.preventDefault());

// Links elsewhere on the page: a bar of the failures filters the list, a dot of the scatter opens a scene.
document.addEventListener("click", (event) => {
  const target = event.target.closest("[data-rule], [data-token]");
  if (!target) return;
  if (target.dataset.rule !== undefined) {
    form.reset();
    form.elements.rule.value = target.dataset.rule;
    update();
    document.getElementById("scenes").scrollIntoView();
  } else {
    goTo(target.dataset.token);
  }
});

function goTo(token) {
  const scene = byToken.get(token);
  if (!scene) return;
  form.reset();
  update();
  const article = card(scene);
  open(scene, article);
  article.scrollIntoView({ block: "start" });
}

window.addEventListener("beforeprint", () => {
  for (const article of [...grid.children].slice(0, 60)) if (!article.classList.contains("open")) article.fill();
});

update();
if (location.hash.length > 1) goTo(decodeURIComponent(location.hash.slice(1)));
document.documentElement.dataset.readyMs = Math.round(performance.now());
