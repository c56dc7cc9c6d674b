// The report's script: scene cards, filters, the bird's-eye view over time. No library, nothing is fetched.
// The page holds the list of scenes in #index and each scene's picture and surroundings in #scene-<number>,
// which is decoded only when the scene comes into view (scene_json.py describes the format).
"use strict";

const index = JSON.parse(document.getElementById("index").textContent);
const NUM_STATES = 41;
const STEP_S = 0.1;
const MAIN = "final";
const BEFORE = "generated";
const styleOf = Object.fromEntries(index.plans.map((plan) => [plan.id, plan]));
const scenes = index.scenes.map((row, number) => ({ number, ...row }));
const byToken = new Map(scenes.map((scene) => [scene.token, scene]));

// ---------------------------------------------------------------------------------------------- helpers

function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function svg(tag, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

const percent = (value) => (value === null || value === undefined ? "–" : (100 * value).toFixed(1));

function scoreOf(scene, plan) {
  const row = scene.scores[plan];
  return row ? row[row.length - 1] : null;
}

const isScored = (scene, plan) => Boolean(scene.scores[plan]) && scoreOf(scene, plan) !== null;

function changeOf(scene) {
  return isScored(scene, MAIN) && isScored(scene, BEFORE) ? scoreOf(scene, MAIN) - scoreOf(scene, BEFORE) : null;
}

function valueOf(scene, plan, rule) {
  const row = scene.scores[plan];
  return row ? row[index.metrics.findIndex((metric) => metric.key === rule)] : null;
}

function failedRules(scene, plan) {
  return index.metrics.filter(
    (metric) => metric.isRule && scene.scores[plan] && valueOf(scene, plan, metric.key) !== null
      && valueOf(scene, plan, metric.key) < 1,
  );
}

// Flat differences back to points of `width` numbers, in metres (and radians).
function points(flat, width, scale) {
  const rows = [];
  for (let start = 0; start < flat.length; start += width) {
    const row = flat.slice(start, start + width);
    if (rows.length) for (let i = 0; i < width; i++) row[i] += rows[rows.length - 1][i];
    rows.push(row);
  }
  return rows.map((row) => row.map((value, i) => (i === 2 ? value / 1000 : value / scale)));
}

// ------------------------------------------------------------------------------------- decoding a scene

const decoded = new Map();

function decode(scene) {
  if (!scene.hasData) return null;
  if (decoded.has(scene.number)) return decoded.get(scene.number);
  const raw = JSON.parse(document.getElementById(`scene-${scene.number}`).textContent);
  const data = {
    window: raw.window,
    image: raw.image ? `data:image/jpeg;base64,${raw.image}` : null,
    size: raw.size,
    areas: raw.areas.map(([kind, ...rings]) => ({ kind, rings: rings.map((ring) => points(ring, 2, 10)) })),
    lines: raw.lines.map((line) => points(line, 2, 10)),
    route: (raw.route || []).map((line) => points(line, 2, 10)),
    tracks: raw.tracks.map(decodeTrack),
    plans: {},
  };
  for (const [id, plan] of Object.entries(raw.plans)) {
    data.plans[id] = {
      poses: points(plan.poses, 3, 100),
      states: plan.states ? points(plan.states, 3, 100) : null,
      tracks: plan.tracks ? plan.tracks.map(decodeTrack) : null,
      road: plan.road || null,
    };
  }
  decoded.set(scene.number, data);
  if (decoded.size > 60) decoded.delete(decoded.keys().next().value); // the oldest: memory stays small
  return data;
}

function decodeTrack(raw) {
  const poses = points(raw.p, 3, 100);
  const at = new Array(NUM_STATES).fill(null);
  const runs = raw.t || [0, NUM_STATES - 1];
  let next = 0;
  for (let i = 0; i < runs.length; i += 2) {
    for (let state = runs[i]; state <= runs[i + 1]; state++) at[state] = poses.length > 1 ? poses[next++] : poses[0];
  }
  return { index: raw.i, kind: raw.k, name: raw.n, length: raw.s[0] / 100, width: raw.s[1] / 100, at };
}

// ------------------------------------------------------------------------------------------ bird's eye

// Draws a scene at simulated state `state`; `ids` are the trajectories that are shown, the main one first.
function drawBirdseye(canvas, scene, data, state, ids) {
  const ratio = window.devicePixelRatio || 1;
  const width = canvas.clientWidth || 320;
  const height = Math.round(width * index.aspect);
  if (canvas.width !== Math.round(width * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const pen = canvas.getContext("2d");
  const [xLow, xHigh, , yHigh] = data.window;
  const zoom = height / (xHigh - xLow);
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.fillStyle = index.colours.background;
  pen.fillRect(0, 0, width, height);
  const place = ([x, y]) => [(yHigh - y) * zoom, (xHigh - x) * zoom];
  const trace = (line) => line.forEach((point, i) => (i ? pen.lineTo(...place(point)) : pen.moveTo(...place(point))));

  for (const kind of Object.keys(index.colours.areas)) {
    for (const area of data.areas) {
      if (area.kind !== kind) continue;
      pen.beginPath();
      for (const ring of area.rings) { trace(ring); pen.closePath(); }
      pen.fillStyle = index.colours.areas[kind];
      pen.fill("evenodd");
      if (kind === "lane" || kind === "route_lane") { pen.strokeStyle = "#fff"; pen.lineWidth = 0.8; pen.stroke(); }
    }
  }
  strokeLines(pen, trace, data.lines, "#aeb5bf", 0.8, [6, 5]);
  strokeLines(pen, trace, data.route, "#7f9cc0", 1.3, [1.5, 3]);

  const shownFirst = ids.find((id) => data.plans[id] && data.plans[id].states);
  const tracks = (shownFirst && data.plans[shownFirst].tracks) || data.tracks;
  const blamed = new Set();
  for (const id of ids) {
    for (const reason of scene.reasons[id] || []) {
      if (reason.track !== null && reason.state !== null && state >= reason.state) blamed.add(reason.track);
    }
  }
  for (const track of tracks) {
    const pose = track.at[state];
    if (!pose) continue;
    const isBlamed = blamed.has(track.index);
    pen.beginPath();
    trace(box(pose, Math.max(track.length, 0.8), Math.max(track.width, 0.8)));
    pen.closePath();
    pen.fillStyle = index.colours.users[track.kind];
    pen.fill();
    pen.strokeStyle = isBlamed ? "#ffb000" : "#fff";
    pen.lineWidth = isBlamed ? 3 : 0.9;
    pen.stroke();
    if (track.kind === "vehicle" && track.length > 3) drawNose(pen, place, pose, track.length, track.width);
    if (isBlamed) label(pen, place(pose), track.name, width);
  }
  for (const id of [...ids].reverse()) {
    const plan = data.plans[id];
    if (plan) drawPlan(pen, trace, place, plan, styleOf[id], state, id === ids[0], zoom);
  }
  drawScale(pen, height, zoom);
}

function strokeLines(pen, trace, lines, colour, width, dash) {
  pen.strokeStyle = colour;
  pen.lineWidth = width;
  pen.setLineDash(dash);
  for (const line of lines) { pen.beginPath(); trace(line); pen.stroke(); }
  pen.setLineDash([]);
}

function box([x, y, heading], length, width) {
  const c = Math.cos(heading), s = Math.sin(heading);
  return [[1, 1], [-1, 1], [-1, -1], [1, -1]].map(([a, b]) => [
    x + (a * length * c - b * width * s) / 2,
    y + (a * length * s + b * width * c) / 2,
  ]);
}

// A small wedge that tells the front of a vehicle.
function drawNose(pen, place, [x, y, heading], length, width) {
  const c = Math.cos(heading), s = Math.sin(heading);
  const at = (along, across) => place([x + along * c - across * s, y + along * s + across * c]);
  pen.beginPath();
  pen.moveTo(...at(length * 0.42, 0));
  pen.lineTo(...at(length * 0.18, width * 0.3));
  pen.lineTo(...at(length * 0.18, -width * 0.3));
  pen.closePath();
  pen.fillStyle = "rgba(255,255,255,0.75)";
  pen.fill();
}

function drawPlan(pen, trace, place, plan, style, state, isFirst, zoom) {
  const line = plan.poses;
  pen.lineJoin = "round";
  for (const [colour, width] of [["rgba(255,255,255,0.85)", 5], [style.colour, isFirst ? 3.2 : 2.4]]) {
    pen.beginPath();
    trace(line);
    pen.strokeStyle = colour;
    pen.lineWidth = width;
    pen.setLineDash(style.dash && width < 5 ? style.dash.map((m) => Math.max(2.5, m * zoom * 0.7)) : []);
    pen.stroke();
  }
  pen.setLineDash([]);
  for (const pose of line.slice(1)) {
    pen.beginPath();
    pen.arc(...place(pose), isFirst ? 3.2 : 2.4, 0, 2 * Math.PI);
    pen.fillStyle = style.colour;
    pen.fill();
    pen.strokeStyle = "#fff";
    pen.lineWidth = 0.9;
    pen.stroke();
  }
  const pose = plan.states ? plan.states[state] : between(line, state / 5);
  const { length, width, toCenter } = index.ego;
  const middle = [pose[0] + toCenter * Math.cos(pose[2]), pose[1] + toCenter * Math.sin(pose[2]), pose[2]];
  pen.beginPath();
  trace(box(middle, length, width));
  pen.closePath();
  pen.fillStyle = style.colour + (isFirst ? "cc" : "33");
  pen.fill();
  pen.strokeStyle = style.colour;
  pen.lineWidth = 1.8;
  if (style.dash) pen.setLineDash([4, 2.5]);
  pen.stroke();
  pen.setLineDash([]);
  if (isFirst) drawNose(pen, place, middle, length, width);
}

// The pose at a fraction of poses half a second apart (trajectories that were not simulated).
function between(line, at) {
  const low = Math.min(Math.floor(at), line.length - 2), share = at - low;
  return line[low].map((value, i) => value + share * (line[low + 1][i] - value));
}

function label(pen, [x, y], text, width) {
  pen.font = "600 11px system-ui, sans-serif";
  const size = pen.measureText(text).width + 8;
  const left = Math.min(x + 8, width - size - 4);
  pen.fillStyle = "#22272e";
  pen.fillRect(left, y - 9, size, 17);
  pen.fillStyle = "#ffd27a";
  pen.fillText(text, left + 4, y + 3.5);
}

function drawScale(pen, height, zoom) {
  pen.strokeStyle = "#444b54";
  pen.lineWidth = 2.2;
  pen.beginPath();
  pen.moveTo(14, height - 14);
  pen.lineTo(14 + 10 * zoom, height - 14);
  pen.stroke();
  pen.fillStyle = "#444b54";
  pen.font = "11px system-ui, sans-serif";
  pen.fillText("10 m", 14, height - 20);
}

// ---------------------------------------------------------------------------------------------- camera

function cameraView(scene, data, ids) {
  const frame = element("div", "camera");
  if (!data || !data.image) {
    frame.append(element("span", "error", "no camera image"));
    return frame;
  }
  const image = element("img");
  image.src = data.image;
  image.alt = `front camera of scene ${scene.token}`;
  const [width, height] = data.size;
  const layer = svg("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none" });
  for (const id of [...ids].reverse()) {
    const plan = data.plans[id];
    if (!plan || !plan.road) continue;
    const colour = styleOf[id].colour;
    if (plan.road[1]) layer.append(svg("path", { d: plan.road[1], fill: colour, "fill-opacity": 0.32 }));
    layer.append(svg("path", { d: plan.road[0], fill: colour, stroke: "#fff", "stroke-width": 1, "stroke-opacity": 0.7 }));
  }
  frame.append(image, layer);
  return frame;
}

// ---------------------------------------------------------------------------------------------- player

// Slider and button for one or more bird's-eye views of a scene: views = [{canvas, ids}].
function player(scene, data, views) {
  const bar = element("div", "player");
  const button = element("button", "play", "▶");
  button.type = "button";
  button.setAttribute("aria-label", "play");
  const track = element("div", "slider");
  const slider = element("input");
  Object.assign(slider, { type: "range", min: 0, max: NUM_STATES - 1, value: 0 });
  slider.setAttribute("aria-label", "time in seconds");
  const ticks = element("div", "ticks");
  const time = element("output", "time", "0.0 s");
  track.append(slider, ticks);
  bar.append(button, track, time);
  let timer = null;

  const show = (state) => {
    slider.value = state;
    time.textContent = `${(state * STEP_S).toFixed(1)} s`;
    for (const view of views) drawBirdseye(view.canvas, scene, data, Number(state), view.ids());
  };
  const stop = () => { clearInterval(timer); timer = null; button.textContent = "▶"; };
  const mark = () => {
    ticks.replaceChildren();
    for (const id of new Set(views.flatMap((view) => view.ids()))) {
      for (const reason of scene.reasons[id] || []) {
        if (reason.state === null) continue;
        const tick = element("i", "tick");
        tick.style.left = `${(100 * reason.state) / (NUM_STATES - 1)}%`;
        tick.style.background = styleOf[id].colour;
        tick.title = `${styleOf[id].label}: ${reason.text}`;
        ticks.append(tick);
      }
    }
  };
  slider.addEventListener("input", () => { stop(); show(Number(slider.value)); });
  button.addEventListener("click", () => {
    if (timer) { stop(); return; }
    if (Number(slider.value) >= NUM_STATES - 1) show(0);
    button.textContent = "❚❚";
    timer = setInterval(() => {
      if (!bar.isConnected || Number(slider.value) >= NUM_STATES - 1) stop();
      else show(Number(slider.value) + 1);
    }, 100);
  });
  mark();
  return { bar, show: (state) => { stop(); show(state); }, redraw: () => { mark(); show(Number(slider.value)); } };
}

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
      const item = element("li", reason.isLifted ? "lifted" : "");
      const kind = reason.isLifted ? "lifted" : metric.isMultiplied ? (reason.value === 0 ? "zero" : "half") : "cost";
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
      item.append(line);
      items.append(item);
    }
    if (!items.children.length) items.append(element("li", "one", "nothing to complain about"));
    group.append(items);
    list.append(group);
  }
  return list;
}

// The state in which a trajectory first breaks a rule that counts, those that make the score 0 first; or null.
function firstTrouble(scene, ids) {
  const reasons = ids.flatMap((id) => scene.reasons[id] || []).filter((item) => item.state !== null && !item.isLifted);
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
  const reason = (scene.reasons[MAIN] || []).find((item) => !item.isLifted && item.rule !== "ego_progress");
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
