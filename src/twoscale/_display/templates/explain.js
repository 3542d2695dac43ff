const net = JSON.parse(document.querySelector("#data").textContent);
const decoded = (base64, Type) => new Type(Uint8Array.from(atob(base64), (c) => c.charCodeAt(0)).buffer);
const integersOf = { uint8: Uint8Array, int8: Int8Array, int32: Int32Array };
for (const layer of net.layers) {
  if (layer.weight) layer.weight = decoded(layer.weight, Int8Array);
  if (layer.real) layer.real = decoded(layer.real, Float32Array);
}
const modules = net.modules;
for (const kind in modules ?? {}) modules[kind] = decoded(modules[kind], Uint8Array);
const runs = modules ? await load({ modules }) : null;
const byName = Object.fromEntries(net.layers.map((layer) => [layer.name, layer]));
const first = decoded(net.pixels, Uint8Array); // RGBA
const picture = document.querySelector("#picture");
const paint = picture.getContext("2d", { willReadFrequently: true });
const [inH, inW] = net.layers[0].shape.slice(-2);
[picture.width, picture.height] = [inW, inH];
let values = {};
let isFirst = true;
let selected = null;

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function compute(pixels) {
  isFirst = pixels.every((value, i) => i % 4 === 3 || value === first[i]);
  if (runs) for (const { name, integers } of runs.layersOfPixels(pixels)) values[name] = integers;
  else for (const { name, integers, dtype } of net.layers) values[name] = decoded(integers, integersOf[dtype]);
  drawBars();
  for (const layer of net.layers) drawMaps(layer);
  if (selected) explain(...selected);
}

const real = (layer, q) => layer.scale * (q - layer.zeroPoint);

function drawBars() {
  const layer = byName[net.output];
  const logits = Array.from(values[layer.name], (q) => real(layer, q));
  const largest = Math.max(...logits);
  const exps = logits.map((value) => Math.exp(value - largest));
  const sum = exps.reduce((a, b) => a + b, 0);
  const order = [...logits.keys()].sort((a, b) => logits[b] - logits[a]).slice(0, 10);
  document.querySelector("#bars").replaceChildren(
    ...order.map((i, rank) =>
      make("div", { className: rank ? "" : "first", title: `logit ${logits[i].toFixed(4)}` },
        make("b", { textContent: net.classes?.[i] ?? `class ${i}` }),
        make("i", { style: `width: ${(100 * exps[i]) / sum}%` }),
        make("span", { textContent: `${((100 * exps[i]) / sum).toFixed(1)} %` }))));
}

// Channels side by side; a pixel is a square of `cell`. Vectors are rows of cells.
function layoutOf({ shape }) {
  const [channels, height, width] = shape.length === 3 ? shape : [1, 1, shape.reduce((a, b) => a * b, 1)];
  if (shape.length !== 3) {
    const perRow = Math.min(width, 32);
    return { channels: 1, height: Math.ceil(width / perRow), width: perRow, cell: width > 64 ? 12 : 20, perRow: 1, gap: 0, shown: 1 };
  }
  const cell = Math.max(1, Math.min(20, Math.round(72 / Math.max(height, width))));
  const perRow = Math.max(1, Math.min(channels, Math.floor(640 / (width * cell + 4))));
  return { channels, height, width, cell, perRow, gap: 4, shown: Math.min(channels, perRow * 4) };
}

function drawMaps(layer) {
  const canvas = layer.canvas;
  const { height, width, cell, perRow, gap } = layer.layout;
  const shown = layer.all ? layer.layout.channels : layer.layout.shown;
  [canvas.width, canvas.height] = [Math.min(shown, perRow) * (width * cell + gap), Math.ceil(shown / perRow) * (height * cell + gap)];
  const context = canvas.getContext("2d");
  const q = values[layer.name];
  let low = Infinity;
  let high = -Infinity;
  for (const value of q) { low = Math.min(low, value); high = Math.max(high, value); }
  const reach = Math.max(high - layer.zeroPoint, layer.zeroPoint - low, 1);
  for (let c = 0; c < shown; c++) {
    const [left, top] = [(c % perRow) * (width * cell + gap), Math.floor(c / perRow) * (height * cell + gap)];
    for (let i = 0; i < height * width && c * height * width + i < q.length; i++) {
      const share = (q[c * height * width + i] - layer.zeroPoint) / reach;
      const t = Math.sign(share) * Math.sqrt(Math.abs(share)); // small numbers remain visible
      context.fillStyle = t < 0 ? `rgb(${Math.round(24 - 24 * t)} ${Math.round(26 - 90 * t)} ${Math.round(34 - 200 * t)})`
        : `rgb(${Math.round(24 + 231 * t)} ${Math.round(26 + 190 * t)} ${Math.round(34 + 90 * t * t)})`;
      context.fillRect(left + (i % width) * cell, top + Math.floor(i / width) * cell, cell, cell);
    }
  }
  layer.range.textContent = `integers ${low} to ${high}`;
}

// A line around the places, which leaves the integers inside visible.
function outline(layer, places, colour) {
  const { height, width, cell, perRow, gap } = layer.layout;
  const context = layer.canvas.getContext("2d");
  const all = new Set(places);
  const line = places.length > 1 && cell < 6 ? 1 : 2;
  context.fillStyle = colour;
  for (const place of places) {
    const [c, i] = [Math.floor(place / (height * width)), place % (height * width)];
    const [row, column] = [Math.floor(i / width), i % width];
    const left = (c % perRow) * (width * cell + gap) + column * cell;
    const top = Math.floor(c / perRow) * (height * cell + gap) + row * cell;
    const side = cell + 2 * line;
    const sides = [
      [column > 0 && all.has(place - 1), left - line, top - line, line, side],
      [column < width - 1 && all.has(place + 1), left + cell, top - line, line, side],
      [row > 0 && all.has(place - width), left - line, top - line, side, line],
      [row < height - 1 && all.has(place + width), left - line, top + cell, side, line],
    ];
    for (const [joined, x, y, ...size] of sides)
      if (!joined) context.fillRect(Math.max(0, x), Math.max(0, y), ...size);
  }
}

function addLayer(layer) {
  layer.layout = layoutOf(layer);
  layer.canvas = make("canvas");
  layer.range = make("span");
  const head = make("div", { className: "head" }, make("h2", { textContent: layer.name }),
    make("span", { textContent: `${layer.op}, ${layer.shape.join(" × ")}, scale ${layer.scale.toPrecision(4)}, zero point ${layer.zeroPoint}` }),
    layer.range);
  if (layer.sqnr !== null && layer.sqnr !== undefined) {
    head.append(make("span", { title: "signal to quantization noise against the float network, for the first picture" },
      make("span", { className: "sqnr" }, make("i", { style: `width: ${Math.max(0, Math.min(100, layer.sqnr * 2))}%` })),
      `${layer.sqnr.toFixed(1)} dB`));
  }
  if (layer.layout.shown < layer.layout.channels) {
    const more = make("button", { textContent: `all ${layer.layout.channels} channels` });
    more.onclick = () => { layer.all = true; more.remove(); drawMaps(layer); };
    head.append(more);
  }
  layer.canvas.onclick = ({ offsetX, offsetY }) => {
    const { height, width, cell, perRow, gap } = layer.layout;
    const c = Math.floor(offsetX / (width * cell + gap)) + perRow * Math.floor(offsetY / (height * cell + gap));
    const [x, y] = [Math.floor((offsetX % (width * cell + gap)) / cell), Math.floor((offsetY % (height * cell + gap)) / cell)];
    const place = (c * height + y) * width + x;
    if (x < width && y < height && place < values[layer.name].length) explain(layer, place);
  };
  document.querySelector("#layers").append(make("section", {}, head, make("div", { className: "maps" }, layer.canvas)));
}

const signed = (value) => (value < 0 ? `−${-value}` : `${value}`);

function explain(layer, place) {
  if (selected) for (const touched of selected[2] ?? []) drawMaps(touched);
  const found = work(net, values, layer, place);
  const q = values[layer.name][place];
  const { shape } = layer;
  const index = shape.length === 3
    ? `channel ${Math.floor(place / (shape[1] * shape[2]))}, row ${Math.floor(place / shape[2]) % shape[1]}, column ${place % shape[2]}`
    : `element ${place}`;
  const facts = make("dl", {}, make("dt", { textContent: "integer" }), make("dd", { textContent: `q = ${q}` }),
    make("dt", { textContent: "real" }),
    make("dd", { textContent: `${layer.scale.toPrecision(6)} · (${q} − ${layer.zeroPoint}) = ${real(layer, q).toPrecision(6)}` }));
  if (layer.real && isFirst) {
    const float = layer.real[place];
    facts.append(make("dt", { textContent: "float network" }), make("dd", { textContent: float.toPrecision(6) }),
      make("dt", { textContent: "difference" }), make("dd", { textContent: (real(layer, q) - float).toPrecision(3) }));
  }
  const parts = [make("h2", { textContent: `${layer.name}, ${index}` }), facts];
  const touched = [layer];
  if (found) {
    const rows = found.lines.map((line) => make("tr", {}, ...line.map((text) => make("td", { textContent: text.replace(/-(?=\d)/g, "−") }))));
    parts.push(make("table", { className: "lines" }, ...rows));
    const same = found.output === BigInt(q);
    parts.push(make("p", { className: same ? "ok" : "wrong", textContent: same ? `${found.output} is the integer in the map.` : `The map has ${q}, not ${found.output}.` }));
    if (found.terms.length) {
      const weighted = "w" in found.terms[0];
      const heads = ["channel", "row", "column", "q", ...(weighted ? [`q − ${found.input.zeroPoint}`, "weight", "product"] : [])];
      const body = found.terms.map((term) => {
        const cells = [term.channel, term.i, term.j, term.at === null ? "padding" : term.q];
        if (weighted) cells.push(term.q - found.input.zeroPoint, term.w, term.product);
        return make("tr", {}, ...cells.map((cell, i) =>
          make("td", { textContent: typeof cell === "number" ? signed(cell) : cell, className: term.at === null && i === 3 ? "pad" : i === 6 && cell ? (cell > 0 ? "plus" : "minus") : "" })));
      });
      parts.push(make("p", { className: "note", textContent: `The window in ${found.input.name}:` }),
        make("div", { className: "terms" }, make("table", {}, make("tr", {}, ...heads.map((text) => make("th", { textContent: text }))), ...body)));
      drawMaps(found.input);
      outline(found.input, found.terms.filter(({ at }) => at !== null).map(({ at }) => at), "#fff");
      touched.push(found.input);
    }
  } else {
    parts.push(make("p", { className: "note", textContent: layer.inputs.length ? `${layer.op} of ${layer.inputs.join(", ")} has no worked sum here.` : "The picture's pixels, normalized and divided by the scale, rounded." }));
  }
  drawMaps(layer);
  outline(layer, [place], "#ff4d8d");
  selected = [layer, place, touched];
  document.querySelector("#worked").replaceChildren(...parts);
}

net.layers.forEach(addLayer);
const show = (pixels) => { paint.putImageData(new ImageData(new Uint8ClampedArray(pixels), inW, inH), 0, 0); compute(Uint8ClampedArray.from(pixels)); };
const again = () => compute(paint.getImageData(0, 0, inW, inH).data);
document.querySelector("#how").textContent = runs
  ? `The network runs in this page (WebAssembly, ${runs.kind}). Draw on the picture, or choose another.`
  : "These integers were computed in Python. With clang and wasm-ld installed, twoscale explain puts the network itself into the page, and the picture can be changed.";
if (runs) {
  document.querySelector("#controls").hidden = false;
  picture.classList.add("draws");
  picture.onpointermove = picture.onpointerdown = (event) => {
    if (!event.buttons) return;
    const radius = Math.max(0.7, inW / 24);
    paint.fillStyle = "white";
    paint.beginPath();
    paint.arc((event.offsetX * inW) / picture.clientWidth, (event.offsetY * inH) / picture.clientHeight, radius, 0, 7);
    paint.fill();
    again();
  };
  document.querySelector("#file").onchange = async ({ target }) => { if (target.files.length) show(pixelsOf(await createImageBitmap(target.files[0]))); };
  document.querySelector("#first").onclick = () => show(first);
  document.querySelector("#clear").onclick = () => show(Uint8ClampedArray.from(first, (_, i) => (i % 4 === 3 ? 255 : 0)));
}
show(first);
const start = net.layers.find((layer) => layer.op === "Conv2d" || layer.op === "Linear");
if (start) { // an output in the middle that is at no limit
  const q = values[start.name];
  let place = Math.floor(q.length / 2) + (start.shape.length === 3 ? (start.shape[1] >> 1) * start.shape[2] + (start.shape[2] >> 1) : 0);
  for (let steps = 0; steps < q.length && (q[place] <= start.lo || q[place] >= start.hi); steps++) place = (place + 1) % q.length;
  explain(start, place);
}
document.body.dataset.ready = "yes";
