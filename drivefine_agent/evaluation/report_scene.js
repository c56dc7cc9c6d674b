// First half of the report's script: decoding a scene and drawing it, camera and bird's-eye view over time. No
// library, nothing is fetched. The page holds the list of scenes in #index and each scene's picture and
// surroundings in #scene-<number>, which is decoded only when the scene comes into view (scene_json.py
// describes the format). report.js follows in the same script.
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
    noImage: raw.noImage,
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
  const named = [];
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
    if (isBlamed) named.push([place(pose), track.name]);
  }
  for (const id of [...ids].reverse()) {
    const plan = data.plans[id];
    if (plan) drawPlan(pen, trace, place, plan, styleOf[id], state, id === ids[0], zoom);
  }
  for (const [at, name] of named) label(pen, at, name, width);
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
  const left = x + 16 + size < width ? x + 16 : x - 16 - size;
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
    const missing = element("p", "error", "no camera image");
    missing.title = (data && data.noImage) || "";
    frame.append(missing);
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
