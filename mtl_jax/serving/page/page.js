// The page: photographs are dropped, looked at and corrected. All positions are pixels
// of the picture that is shown (`view`), with pixel centres at whole numbers plus a
// half, unless they are called native. The server has the photographs and what is found
// of them; what is corrected here and not saved yet is in `editors`.

const $ = (id) => document.getElementById(id);
const MAX_UNDO = 20;
const NUM_POINTS = 24;

let network;
const photographs = new Map(); // By id, as the server describes them.
const editors = new Map(); // By id, of those that are open or have changes.
const uploads = [];
let editor = null;
// Pixels of the screen are pixels of the view * scale + (x, y).
let view = { scale: 1, x: 0, y: 0, middle: [0, 0] };
let hidden = new Set();
let isDrawn = true;
let pointer = null; // What the pressed pointer does.
let hover = null;

// Server

async function ask(address, options) {
  let response;
  try {
    response = await fetch(address, options);
  } catch {
    throw new Error("The page's program does not answer; start it again.");
  }
  const said = await response.json().catch(() => ({}));
  if (!response.ok) {
    const error = new Error(said.error ?? `The page's program says ${response.status}.`);
    error.status = response.status;
    throw error;
  }
  return said;
}

const at = (one, rest = "") => `photographs/${one.id}${rest}`;

async function picture(address) {
  const image = new Image();
  image.src = address;
  await image.decode();
  return image;
}

// Dropped files

function complain(text) {
  const item = document.createElement("li");
  item.textContent = text;
  $("errors").append(item);
}

async function upload(files) {
  uploads.push(...files);
  if (uploads.isBusy) return;
  uploads.isBusy = true;
  $("errors").replaceChildren();
  let done = 0;
  while (uploads.length) {
    const file = uploads.shift();
    done += 1;
    $("status").textContent = `${done} of ${done + uploads.length}: ${file.name}`;
    try {
      if (file.size > network.upload_limit) {
        const limit = network.upload_limit.toLocaleString("en");
        throw new Error(`${file.name} is larger than ${limit} bytes; reduce it.`);
      }
      const address = `photographs?name=${encodeURIComponent(file.name)}`;
      const one = await ask(address, { method: "POST", body: file }).catch(
        async (error) => {
          // A browser sends no file that has changed since it was chosen.
          await file.slice(0, 1).arrayBuffer().catch(() => {
            throw new Error(`${file.name} has changed or is gone; drop it again.`);
          });
          throw error;
        },
      );
      photographs.set(one.id, one);
      list();
      if (!editor) await show(one.id);
    } catch (error) {
      complain(error.message);
    }
  }
  uploads.isBusy = false;
  $("status").textContent = "";
}

function acceptFiles() {
  $("files").addEventListener("change", () => {
    upload([...$("files").files]);
    $("files").value = "";
  });
  let depth = 0;
  const over = (change) => {
    depth = Math.max(0, depth + change);
    document.documentElement.classList.toggle("over", depth > 0);
  };
  addEventListener("dragenter", () => over(1));
  addEventListener("dragleave", () => over(-1));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    over(-depth);
    upload([...event.dataTransfer.files]);
  });
}

// The list

const number = (one, name) => one.numbers[name] ?? -Infinity;
const ORDERS = {
  arrival: null,
  name: (a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }),
  probability: (a, b) => number(b, "probability") - number(a, "probability"),
  vcdr: (a, b) => number(b, "vcdr") - number(a, "vcdr"),
  spread: (a, b) => number(b, "probability_spread") - number(a, "probability_spread"),
  quality: (a, b) => b.quality.length - a.quality.length,
};
const FILTERS = {
  all: () => true,
  doubtful: (one) => one.quality.length > 0,
  glaucoma: (one) => one.numbers.glaucoma === 1,
  healthy: (one) => one.numbers.glaucoma === 0,
  corrected: (one) => one.correction !== null,
  open: (one) => one.correction === null,
};

function listed() {
  const word = $("find").value.toLowerCase();
  const found = [...photographs.values()]
    .filter(FILTERS[$("filter").value])
    .filter((one) => one.name.toLowerCase().includes(word));
  const order = ORDERS[$("sort").value];
  // Infinity less infinity is no number.
  return order ? found.sort((a, b) => order(a, b) || 0) : found;
}

function list() {
  const shown = listed();
  const items = shown.map((one) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.id = one.id;
    button.setAttribute("aria-current", String(one.id === editor?.one.id));
    const value = one.numbers.probability;
    const flags = [];
    if (one.quality.length) flags.push(["doubt", one.quality[0].split(":")[0]]);
    if (editors.get(one.id)?.changed.size) flags.push(["", "● not saved"]);
    else if (one.correction) flags.push(["", "✓ corrected"]);
    button.append(
      text("span", one.name),
      text("span", value == null ? "" : value.toFixed(2), "value"),
      text("span", "", "flags"),
    );
    flags.forEach(([name, words], i) =>
      button.lastChild.append(i ? ", " : "", text("span", words, name)),
    );
    button.addEventListener("click", () => show(one.id));
    item.append(button);
    return item;
  });
  const focused = document.activeElement?.dataset?.id;
  $("list").replaceChildren(...items);
  if (focused) $("list").querySelector(`[data-id="${focused}"]`)?.focus();
  const all = photographs.size;
  $("count").textContent = all ? `${shown.length} of ${all} photographs` : "";
  $("downloads").hidden = all === 0;
  const place = shown.findIndex((one) => one.id === editor?.one.id);
  $("previous").disabled = !shown.length || place === 0;
  $("next").disabled = !shown.length || place === shown.length - 1;
}

function text(tag, words, name) {
  const element = document.createElement(tag);
  element.textContent = words;
  if (name) element.className = name;
  return element;
}

function step(by) {
  const shown = listed();
  const place = shown.findIndex((one) => one.id === editor?.one.id);
  const next = shown[place < 0 ? 0 : place + by];
  if (!next) return;
  show(next.id);
  $("list").querySelector(`[data-id="${next.id}"]`)?.scrollIntoView({ block: "nearest" });
}

// One photograph

async function show(id) {
  if (editor?.one.id === id && !editor.isStale) return;
  if (editor && !editor.changed.size) editors.delete(editor.one.id);
  const one = photographs.get(id);
  const next = editors.get(id) ?? newEditor(one);
  editors.set(id, next);
  editor = next;
  $("gradient").checked = false;
  $("viewer").hidden = $("panel").hidden = false;
  $("title").textContent = one.name;
  describe(one);
  list();
  fit();
  try {
    await next.loading;
  } catch {
    complain(`${one.name} cannot be shown; drop it again.`);
  }
  if (editor === next) {
    fit();
    tell();
    draw();
  }
}

function newEditor(one) {
  const made = {
    one,
    photograph: null,
    gradient: null,
    masks: new Map(),
    boxes: new Map(),
    drawn: new Map(),
    fovea: one.fovea && toView(one, one.fovea),
    glaucoma: one.correction?.glaucoma ?? null,
    changed: new Set(),
    undo: [],
    isStale: false,
    saved: one.correction ? "A correction is saved." : "",
  };
  made.loading = (async () => {
    made.photograph = await picture(at(one, "/view.jpg"));
    for (const part of one.masks) {
      const address = at(one, `/masks/${part}.png?version=${one.version}`);
      const mask = newCanvas(one);
      mask.getContext("2d").drawImage(await picture(address), 0, 0);
      made.masks.set(part, mask);
    }
  })();
  return made;
}

function newCanvas(one) {
  const canvas = document.createElement("canvas");
  [canvas.height, canvas.width] = one.view;
  canvas.getContext("2d", { willReadFrequently: true });
  return canvas;
}

const ratio = (one) => one.size[1] / one.view[1];
const toView = (one, [x, y]) => [(x + 0.5) / ratio(one), (y + 0.5) / ratio(one)];
const toNative = (one, [x, y]) => [x * ratio(one) - 0.5, y * ratio(one) - 0.5];

function describe(one) {
  $("quality").replaceChildren(...one.quality.map((words) => text("li", words)));
  const said = one.numbers;
  const rows = [];
  const add = (name, words, style) => rows.push([name, words, style]);
  const value = (name, digits) => (said[name] == null ? "none" : said[name].toFixed(digits));
  const spread = (name, digits) =>
    said[name] == null ? "" : ` ± ${said[name].toFixed(digits)}`;
  if (network.has_classifier) {
    const kind = network.is_calibrated ? ", calibrated" : ", not calibrated";
    const words = value("probability", 2) + spread("probability_spread", 2);
    add(`Probability of glaucoma${kind}`, words, "first");
    const names = { 1: "glaucoma", 0: "healthy" };
    add("The network decides", names[said.glaucoma] ?? "nothing");
    add("from its classifier", value("probability_fc", 2));
    add("from the cup-to-disc ratio", value("probability_vcdr", 2));
  }
  add("vCDR", value("vcdr", 2) + spread("vcdr_spread", 2));
  for (const part of ["disc", "cup"]) {
    if (said[`${part}_height`] != null) {
      add(`Height of the ${part}`, `${Math.round(said[`${part}_height`])} px`);
    }
  }
  if (said.fovea_x != null) {
    const off = spread("fovea_spread", 0);
    add("Fovea", `${said.fovea_x.toFixed(0)}, ${said.fovea_y.toFixed(0)}${off} px`);
  } else if (network.tasks.includes("fovea")) {
    add("Fovea", "not found");
  }
  add("Photograph", `${one.size[1]} × ${one.size[0]} px`);
  $("numbers").replaceChildren(
    ...rows.map(([name, words, style]) => {
      const row = document.createElement("div");
      row.append(text("dt", name), text("dd", words, style));
      return row;
    }),
  );
  $("note").textContent =
    said.probability_spread == null
      ? ""
      : "± is the standard deviation over the members of the average.";
}

// What can be done to it, and whether it is saved.
function tell() {
  const { one, changed } = editor;
  $("glaucoma").value = editor.glaucoma ?? "";
  $("undo").disabled = !editor.undo.length;
  $("discard").disabled = !changed.size && !editor.isStale;
  $("withdraw").hidden = !one.correction;
  $("load").hidden = !editor.isStale;
  $("save").disabled = editor.isStale;
  if (!editor.isStale) {
    $("saved").className = "";
    $("saved").textContent = changed.size
      ? `Changed and not saved: ${[...changed].join(", ")}.`
      : editor.saved;
  }
  const part = chosen("part");
  for (const name of ["points", "brush", "erase"]) {
    document.querySelector(`[name=tool][value=${name}]`).disabled = part === "fovea";
  }
  const hints = {
    move: "Drag the photograph, or the fovea. The wheel zooms.",
    points: "Drag a point of the outline. Where there is none, click its centre.",
    brush: "Paint what belongs to the structure.",
    erase: "Wipe off what does not belong to it.",
  };
  $("hint").textContent =
    part === "fovea" ? "Drag the fovea, or click where it is." : hints[tool()];
  $("brush").disabled = !["brush", "erase"].includes(tool());
  const found = [...editor.masks.keys(), ...(editor.fovea ? ["fovea"] : [])];
  $("canvas").setAttribute(
    "aria-label",
    `${one.name} with ${found.join(", ") || "nothing"} drawn on it`,
  );
  document.querySelectorAll("#list button").forEach((button) => {
    if (button.dataset.id !== one.id) return;
    const isUnsaved = button.textContent.includes("● not saved");
    if (isUnsaved !== changed.size > 0) list();
  });
}

const chosen = (name) => document.querySelector(`input[name=${name}]:checked`).value;
const choose = (name, value) => {
  document.querySelector(`input[name=${name}][value=${value}]`).checked = true;
  if (editor) {
    tell();
    draw();
  }
};
const tool = () =>
  !network.can_correct ? "move" : chosen("part") === "fovea" ? "fovea" : chosen("tool");

// Drawing

let isDue = false;
function draw() {
  if (isDue) return;
  isDue = true;
  requestAnimationFrame(() => {
    isDue = false;
    if (editor?.photograph) paint();
  });
}

function paint() {
  const canvas = $("canvas");
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  const dots = devicePixelRatio || 1;
  const [across, down] = [Math.round(width * dots), Math.round(height * dots)];
  if (canvas.width !== across || canvas.height !== down) {
    [canvas.width, canvas.height] = [across, down];
  }
  const context = canvas.getContext("2d");
  context.setTransform(dots, 0, 0, dots, 0, 0);
  context.clearRect(0, 0, width, height);
  context.translate(view.x, view.y);
  context.scale(view.scale, view.scale);
  context.drawImage(editor.photograph, 0, 0);
  if ($("gradient").checked && editor.gradient) context.drawImage(editor.gradient, 0, 0);
  if (!isDrawn) return;
  context.globalAlpha = $("opacity").value / 100;
  for (const [part, mask] of editor.masks) {
    if (!hidden.has(part)) context.drawImage(outlined(part, mask), 0, 0);
  }
  context.setTransform(dots, 0, 0, dots, 0, 0);
  for (const part of editor.masks.keys()) {
    const box = editor.boxes.get(part);
    if (box && !hidden.has(part)) name(context, part, box);
  }
  if (editor.fovea && !hidden.has("fovea")) cross(context, onScreen(editor.fovea));
  context.globalAlpha = 1;
  if (tool() === "points") {
    for (const point of outline(chosen("part"))) handle(context, onScreen(point));
  }
  if (hover && ["brush", "erase"].includes(tool())) {
    context.strokeStyle = "#ffffff";
    context.lineWidth = 1.5;
    context.setLineDash(tool() === "erase" ? [4, 4] : []);
    context.beginPath();
    context.arc(...hover, Number($("brush").value), 0, 2 * Math.PI);
    context.stroke();
    context.setLineDash([]);
  }
}

const onScreen = ([x, y]) => [x * view.scale + view.x, y * view.scale + view.y];
const onPhotograph = ([x, y]) => [(x - view.x) / view.scale, (y - view.y) / view.scale];
const colour = (part) => {
  const found = network.parts.find((one) => one.name === part);
  return `rgb(${found.rgb.join(" ")})`;
};

// A faint area with an edge and a dark halo, of the same width at every zoom.
function outlined(part, mask) {
  const isPainting = pointer?.part === part && pointer.isPainting;
  const key = isPainting ? `${pointer.count}` : `${view.scale}`;
  const cached = editor.drawn.get(part);
  if (cached?.key === key) return cached.canvas;
  const canvas = cached?.canvas ?? newCanvas(editor.one);
  const context = canvas.getContext("2d");
  const all = [0, 0, canvas.width, canvas.height];
  context.globalCompositeOperation = "copy";
  context.globalAlpha = 1;
  if (isPainting) {
    context.drawImage(mask, 0, 0);
    fill(context, all, colour(part), 0.5);
  } else {
    const inside = newCanvas(editor.one);
    inside.getContext("2d").drawImage(mask, 0, 0);
    fill(inside.getContext("2d"), all, colour(part), 1);
    const halo = newCanvas(editor.one);
    halo.getContext("2d").drawImage(mask, 0, 0);
    fill(halo.getContext("2d"), all, "#000000", 0.6);
    context.clearRect(...all);
    context.globalCompositeOperation = "source-over";
    around(context, halo, 2.6 / view.scale);
    around(context, inside, 1.6 / view.scale);
    context.globalCompositeOperation = "destination-out";
    context.drawImage(mask, 0, 0);
    context.globalCompositeOperation = "source-over";
    context.globalAlpha = 0.22;
    context.drawImage(inside, 0, 0);
    context.globalAlpha = 1;
    if (!editor.boxes.has(part)) editor.boxes.set(part, boxOf(mask));
  }
  editor.drawn.set(part, { key, canvas });
  return canvas;
}

function fill(context, all, style, alpha) {
  context.globalCompositeOperation = "source-in";
  context.globalAlpha = alpha;
  context.fillStyle = style;
  context.fillRect(...all);
  context.globalAlpha = 1;
  context.globalCompositeOperation = "source-over";
}

function around(context, image, radius) {
  for (let i = 0; i < 8; i += 1) {
    const angle = (i * Math.PI) / 4;
    context.drawImage(image, radius * Math.cos(angle), radius * Math.sin(angle));
  }
}

// The first and last column and row inside; null if there are none.
function boxOf(mask) {
  const { width, height } = mask;
  const { data } = mask.getContext("2d").getImageData(0, 0, width, height);
  let [left, top, right, bottom] = [width, height, -1, -1];
  for (let y = 0, i = 3; y < height; y += 1) {
    for (let x = 0; x < width; x += 1, i += 4) {
      if (data[i] < 128) continue;
      if (x < left) left = x;
      if (x > right) right = x;
      if (y < top) top = y;
      bottom = y;
    }
  }
  return right < 0 ? null : { left, top, right, bottom };
}

// Its name beside it, so that nobody has to know it by its colour.
function name(context, part, box) {
  const isCup = part === "cup";
  const x = (box.left + box.right + 1) / 2;
  const [left, top] = onScreen([x, isCup ? box.bottom + 1 : box.top]);
  context.font = "600 13px system-ui, sans-serif";
  context.textAlign = "center";
  context.lineWidth = 3;
  context.strokeStyle = "rgb(0 0 0 / 0.75)";
  context.fillStyle = colour(part);
  const y = isCup ? top + 16 : top - 7;
  context.strokeText(part, left, y);
  context.fillText(part, left, y);
}

function cross(context, [x, y]) {
  for (const [width, style] of [[5, "rgb(0 0 0 / 0.7)"], [2, colour("fovea")]]) {
    context.lineWidth = width;
    context.strokeStyle = style;
    context.beginPath();
    context.arc(x, y, 9, 0, 2 * Math.PI);
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      context.moveTo(x + 4 * dx, y + 4 * dy);
      context.lineTo(x + 15 * dx, y + 15 * dy);
    }
    context.stroke();
  }
}

function handle(context, [x, y]) {
  context.fillStyle = "#ffffff";
  context.strokeStyle = "#000000";
  context.lineWidth = 1.5;
  context.beginPath();
  context.rect(x - 4, y - 4, 8, 8);
  context.fill();
  context.stroke();
}

function fit() {
  const [height, width] = editor.one.view;
  const stage = $("stage");
  const scale = Math.min(stage.clientWidth / width, stage.clientHeight / height);
  look(scale, [width / 2, height / 2]);
  view.isWhole = true;
}

// What is in the middle stays there when the window changes.
function resize() {
  if (!editor) return;
  if (view.isWhole) fit();
  else look(view.scale, onPhotograph(view.middle));
}

// Shows a part of the photograph in the middle.
function look(scale, [x, y]) {
  const stage = $("stage");
  const middle = [stage.clientWidth / 2, stage.clientHeight / 2];
  view = { scale, x: middle[0] - x * scale, y: middle[1] - y * scale, middle };
  draw();
}

function lookAtDisc() {
  const mask = editor.masks.get("disc") ?? editor.masks.get("cup");
  const box = mask && boxOf(mask);
  if (!box) return;
  const size = Math.max(box.right - box.left, box.bottom - box.top, 8);
  const stage = $("stage");
  const scale = Math.min(stage.clientWidth, stage.clientHeight) / (1.8 * size);
  look(scale, [(box.left + box.right) / 2, (box.top + box.bottom) / 2]);
}

function zoom(by, [x, y] = [$("stage").clientWidth / 2, $("stage").clientHeight / 2]) {
  const scale = Math.min(40, Math.max(0.05, view.scale * by));
  const share = scale / view.scale;
  const { middle } = view;
  view = { scale, x: x - (x - view.x) * share, y: y - (y - view.y) * share, middle };
  draw();
}

async function showGradient() {
  const own = editor;
  if ($("gradient").checked && !own.gradient) {
    $("wait").hidden = false;
    $("wait").textContent = "The gradient map is computed; this may take a minute.";
    try {
      const response = await fetch(at(own.one, "/gradient.png"));
      if (!response.ok) throw new Error((await response.json()).error);
      own.gradient = await createImageBitmap(await response.blob());
    } catch (error) {
      complain(error.message);
      $("gradient").checked = false;
    }
    $("wait").hidden = true;
  }
  draw();
}

// Corrections

// Remembers what a change is about to replace.
function remember(what) {
  const mask = editor.masks.get(what);
  let copy = null;
  if (mask) {
    copy = newCanvas(editor.one);
    copy.getContext("2d").drawImage(mask, 0, 0);
  }
  const old = { fovea: editor.fovea, label: editor.glaucoma }[what] ?? copy;
  editor.undo.push({ what, old, wasChanged: editor.changed.has(what) });
  if (editor.undo.length > MAX_UNDO) editor.undo.shift();
  editor.changed.add(what);
}

function undo() {
  const last = editor.undo.pop();
  if (!last) return;
  const { what, old, wasChanged } = last;
  if (what === "fovea") editor.fovea = old;
  else if (what === "label") editor.glaucoma = old;
  else setMask(what, old);
  if (!wasChanged) editor.changed.delete(what);
  tell();
  draw();
}

function setMask(part, mask) {
  if (mask) editor.masks.set(part, mask);
  else editor.masks.delete(part);
  forget(part);
}

function forget(part) {
  editor.drawn.delete(part);
  editor.boxes.delete(part);
  if (outlineOf.part === part) outlineOf = {};
}

function maskOf(part) {
  if (!editor.masks.has(part)) setMask(part, newCanvas(editor.one));
  return editor.masks.get(part);
}

// Points on the edge of a mask, as seen from its centre.
let outlineOf = {};
function outline(part) {
  const mask = editor.masks.get(part);
  if (!mask) return [];
  if (outlineOf.mask === mask && outlineOf.part === part) return outlineOf.points;
  const { width, height } = mask;
  const { data } = mask.getContext("2d").getImageData(0, 0, width, height);
  const isInside = (x, y) =>
    x >= 0 && y >= 0 && x < width && y < height &&
    data[4 * (Math.floor(y) * width + Math.floor(x)) + 3] >= 128;
  let [sumX, sumY, count] = [0, 0, 0];
  for (let y = 0, i = 3; y < height; y += 1) {
    for (let x = 0; x < width; x += 1, i += 4) {
      if (data[i] < 128) continue;
      sumX += x + 0.5;
      sumY += y + 0.5;
      count += 1;
    }
  }
  if (!count) return [];
  const [cx, cy] = [sumX / count, sumY / count];
  const far = Math.hypot(width, height);
  const points = Array.from({ length: NUM_POINTS }, (_, i) => {
    const angle = (2 * Math.PI * i) / NUM_POINTS;
    const [dx, dy] = [Math.cos(angle), Math.sin(angle)];
    let last = 0;
    for (let r = 0; r < far; r += 0.5) {
      if (isInside(cx + r * dx, cy + r * dy)) last = r;
      else if (r > 4 * last + 200) break;
    }
    return [cx + last * dx, cy + last * dy];
  });
  outlineOf = { part, mask, points };
  return points;
}

// Fills a smooth closed curve through points (Catmull and Rom).
function fillOutline(part, points) {
  const mask = newCanvas(editor.one);
  const context = mask.getContext("2d");
  const n = points.length;
  context.fillStyle = "#ffffff";
  context.beginPath();
  context.moveTo(...points[0]);
  for (let i = 0; i < n; i += 1) {
    const [a, b, c, d] = [n - 1, 0, 1, 2].map((shift) => points[(i + shift) % n]);
    context.bezierCurveTo(
      b[0] + (c[0] - a[0]) / 6,
      b[1] + (c[1] - a[1]) / 6,
      c[0] - (d[0] - b[0]) / 6,
      c[1] - (d[1] - b[1]) / 6,
      ...c,
    );
  }
  context.fill();
  setMask(part, mask);
  outlineOf = { part, mask, points };
}

function stroke(from, to) {
  const context = maskOf(pointer.part).getContext("2d");
  context.globalCompositeOperation =
    tool() === "erase" ? "destination-out" : "source-over";
  context.strokeStyle = "#ffffff";
  context.lineCap = context.lineJoin = "round";
  context.lineWidth = (2 * Number($("brush").value)) / view.scale;
  context.beginPath();
  context.moveTo(...from);
  // A line without length would not be drawn.
  context.lineTo(to[0] + 0.01, to[1]);
  context.stroke();
}

const inPhotograph = ([x, y]) => [
  Math.min(editor.one.view[1] - 0.01, Math.max(0, x)),
  Math.min(editor.one.view[0] - 0.01, Math.max(0, y)),
];

const placeOf = (event) => {
  const box = $("canvas").getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
};
const distance = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]);

function press(event) {
  if (!editor?.photograph || pointer || event.button !== 0) return;
  const place = placeOf(event);
  const xy = onPhotograph(place);
  $("canvas").setPointerCapture(event.pointerId);
  const isAtFovea =
    editor.fovea && !hidden.has("fovea") && distance(place, onScreen(editor.fovea)) < 16;
  const doing = tool();
  if (network.can_correct && (doing === "fovea" || (doing === "move" && isAtFovea))) {
    remember("fovea");
    pointer = { what: "fovea" };
    editor.fovea = inPhotograph(xy);
  } else if (doing === "move") {
    pointer = { what: "move", last: place };
  } else if (doing === "points") {
    pressPoint(place, xy);
  } else {
    const part = chosen("part");
    remember(part);
    pointer = { what: "paint", part, last: xy, isPainting: true, count: 0 };
    stroke(xy, xy);
  }
  tell();
  draw();
}

function pressPoint(place, xy) {
  const part = chosen("part");
  const points = outline(part).map((point) => [...point]);
  if (!points.length) {
    remember(part);
    const radius = 0.05 * Math.min(...editor.one.view);
    const circle = Array.from({ length: NUM_POINTS }, (_, i) => {
      const angle = (2 * Math.PI * i) / NUM_POINTS;
      return [xy[0] + radius * Math.cos(angle), xy[1] + radius * Math.sin(angle)];
    });
    fillOutline(part, circle);
    return;
  }
  const gaps = points.map((point) => distance(onScreen(point), place));
  const index = gaps.indexOf(Math.min(...gaps));
  if (gaps[index] > 14) {
    pointer = { what: "move", last: place };
    return;
  }
  remember(part);
  pointer = { what: "point", part, points, index, isPainting: true, count: 0 };
}

function move(event) {
  const place = placeOf(event);
  hover = place;
  if (!editor?.photograph) return;
  if (!pointer) {
    if (["brush", "erase"].includes(tool())) draw();
    return;
  }
  const xy = onPhotograph(place);
  if (pointer.what === "fovea") editor.fovea = inPhotograph(xy);
  if (pointer.what === "move") {
    view.isWhole = false;
    view.x += place[0] - pointer.last[0];
    view.y += place[1] - pointer.last[1];
    pointer.last = place;
  }
  if (pointer.what === "paint") {
    stroke(pointer.last, xy);
    pointer.last = xy;
    pointer.count += 1;
  }
  if (pointer.what === "point") {
    pointer.points[pointer.index] = inPhotograph(xy);
    fillOutline(pointer.part, pointer.points);
    pointer.count += 1;
  }
  draw();
}

function release(event) {
  if (!pointer) return;
  // The last movement may come with the release alone.
  if (event.type === "pointerup") move(event);
  const { what, part } = pointer;
  pointer = null;
  if (what === "paint") forget(part);
  if (what === "point") editor.drawn.delete(part);
  tell();
  draw();
}

async function encode(mask) {
  const blob = await new Promise((done) => mask.toBlob(done, "image/png"));
  const bytes = new Uint8Array(await blob.arrayBuffer());
  let binary = "";
  for (let i = 0; i < bytes.length; i += 0x8000) {
    binary += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
  }
  return btoa(binary);
}

async function save() {
  const own = editor;
  if (!network.can_correct || own.isStale || own.isSaving || !own.photograph) return;
  own.isSaving = true;
  const masks = {};
  for (const part of own.changed) {
    if (part === "fovea" || part === "label") continue;
    const mask = own.masks.get(part);
    masks[part] = mask && boxOf(mask) ? await encode(mask) : null;
  }
  const request = {
    version: own.one.version,
    fovea: own.changed.has("fovea")
      ? own.fovea && toNative(own.one, own.fovea)
      : own.one.fovea,
    glaucoma: own.glaucoma,
    masks,
  };
  try {
    const one = await ask(at(own.one, "/correction"), {
      method: "PUT",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(request),
    });
    renew(own, one, "Saved.");
  } catch (error) {
    own.isStale = error.status === 409;
    if (editor === own) {
      tell();
      $("saved").className = "wrong";
      $("saved").textContent = error.message;
    }
  }
  own.isSaving = false;
}

// Shows a photograph anew, as the server has it.
function renew(own, one, said) {
  const before = view;
  photographs.set(one.id, one);
  editors.delete(one.id);
  if (editor !== own) return list();
  const next = newEditor(one);
  next.saved = said;
  // What is drawn stays until it is there.
  next.loading.then(() => {
    if (editor !== own) return;
    editor = next;
    editors.set(one.id, next);
    next.gradient = own.gradient;
    view = before;
    outlineOf = {};
    list();
    tell();
    draw();
  });
}

async function reload(said) {
  const own = editor;
  try {
    renew(own, await ask(at(own.one)), said);
  } catch (error) {
    complain(error.message);
  }
}

async function withdraw() {
  const own = editor;
  try {
    const address = at(own.one, `/correction?version=${own.one.version}`);
    renew(own, await ask(address, { method: "DELETE" }), "The correction is withdrawn.");
  } catch (error) {
    own.isStale = error.status === 409;
    tell();
    $("saved").className = "wrong";
    $("saved").textContent = error.message;
  }
}

function clear() {
  const part = chosen("part");
  remember(part);
  if (part === "fovea") editor.fovea = null;
  else setMask(part, null);
  tell();
  draw();
}

// Keys

const KEYS = {
  ArrowLeft: () => step(-1),
  ArrowRight: () => step(1),
  o: () => { isDrawn = !isDrawn; draw(); },
  g: () => {
    if ($("gradient_label").hidden) return;
    $("gradient").checked = !$("gradient").checked;
    showGradient();
  },
  f: fit,
  d: lookAtDisc,
  "+": () => zoom(1.3),
  "-": () => zoom(1 / 1.3),
  1: () => choose("part", "disc"),
  2: () => choose("part", "cup"),
  3: () => choose("part", "fovea"),
  m: () => choose("tool", "move"),
  p: () => choose("tool", "points"),
  b: () => choose("tool", "brush"),
  e: () => choose("tool", "erase"),
  "[": () => { $("brush").value -= 2; draw(); },
  "]": () => { $("brush").value -= -2; draw(); },
  z: undo,
  s: save,
};

function key(event) {
  const isTyping = event.target.closest?.("select, input[type=search]");
  const isSliding = event.target.closest?.("input[type=range], input[type=radio]");
  if (!editor || isTyping || event.altKey || event.metaKey) return;
  if (isSliding && event.key.startsWith("Arrow")) return;
  if (event.ctrlKey && !["z", "s"].includes(event.key)) return;
  const act = KEYS[event.key];
  if (!act) return;
  event.preventDefault();
  act();
}

// Start

function legend() {
  $("legend").append(
    ...network.parts
      .filter((one) => network.can_correct || network.tasks.includes(one.name))
      .map((one) => {
        const label = document.createElement("label");
        const box = document.createElement("input");
        const mark = document.createElement("i");
        box.type = "checkbox";
        box.checked = true;
        box.addEventListener("change", () => {
          if (box.checked) hidden.delete(one.name);
          else hidden.add(one.name);
          draw();
        });
        mark.style.background = colour(one.name);
        if (one.kind === "localisation") mark.className = "point";
        label.append(box, mark, one.name);
        return label;
      }),
  );
}

async function start() {
  try {
    network = await ask("network");
    for (const one of await ask("photographs")) photographs.set(one.id, one);
  } catch (error) {
    complain(error.message);
    return;
  }
  $("correct").hidden = !network.can_correct;
  $("cannot").hidden = network.can_correct;
  $("gradient_label").hidden = !network.has_classifier;
  if (network.note) complain(network.note);
  legend();
  acceptFiles();
  list();
  for (const id of ["sort", "filter"]) $(id).addEventListener("change", list);
  $("find").addEventListener("input", list);
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  $("opacity").addEventListener("input", draw);
  $("gradient").addEventListener("change", showGradient);
  $("fit").addEventListener("click", fit);
  $("at_disc").addEventListener("click", lookAtDisc);
  $("in").addEventListener("click", () => zoom(1.3));
  $("out").addEventListener("click", () => zoom(1 / 1.3));
  $("undo").addEventListener("click", undo);
  $("clear").addEventListener("click", clear);
  $("discard").addEventListener("click", () => reload(""));
  $("load").addEventListener("click", () => reload("This is what the other window saved."));
  $("withdraw").addEventListener("click", withdraw);
  $("correct").addEventListener("submit", (event) => {
    event.preventDefault();
    save();
  });
  $("glaucoma").addEventListener("change", () => {
    remember("label");
    editor.glaucoma = $("glaucoma").value === "" ? null : Number($("glaucoma").value);
    tell();
  });
  for (const id of ["parts", "tools"]) {
    $(id).addEventListener("change", () => { tell(); draw(); });
  }
  const canvas = $("canvas");
  canvas.addEventListener("pointerdown", press);
  canvas.addEventListener("pointermove", move);
  canvas.addEventListener("pointerup", release);
  canvas.addEventListener("pointercancel", release);
  canvas.addEventListener("pointerleave", () => { hover = null; draw(); });
  canvas.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      if (editor) zoom(Math.exp(-event.deltaY / 400), placeOf(event));
    },
    { passive: false },
  );
  addEventListener("keydown", key);
  addEventListener("resize", resize);
  addEventListener("beforeunload", (event) => {
    if ([...editors.values()].some((one) => one.changed.size)) event.preventDefault();
  });
  document.documentElement.dataset.ready = "yes";
  const [first] = listed();
  if (first) show(first.id);
}

start();
