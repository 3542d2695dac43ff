// One output of a layer worked by hand: its window, its products, the accumulator, and the integer that they give. Integers are
// BigInt where products could leave 53 bits. Layers are those of the page's data; `values` has the integers of each, in C order.

function layerNamed(net, name) {
  return net.layers.find((layer) => layer.name === name);
}

// n / 2^shift rounded to the nearest integer, ties to even; and whether it is a tie.
function rneShift(n, shift) {
  const half = 1n << BigInt(shift - 1);
  const floor = n >> BigInt(shift);
  const rest = n - (floor << BigInt(shift));
  const tie = rest === half;
  return { value: rest > half || (tie && (floor & 1n)) ? floor + 1n : floor, tie };
}

// TensorFlow Lite's value · mantissa · 2^(exponent − 31), rounded twice.
function fixedPoint(value, mantissa, exponent) {
  const left = exponent > 0 ? BigInt(exponent) : 0n;
  const right = exponent < 0 ? BigInt(-exponent) : 0n;
  const high = ((value << left) * BigInt(mantissa) + (1n << 30n)) >> 31n;
  const half = (1n << right) >> 1n;
  return { high, value: high >= 0n ? (high + half) >> right : -((-high + half) >> right) };
}

function clampTo({ lo, hi }, q) {
  return q < BigInt(lo) ? BigInt(lo) : q > BigInt(hi) ? BigInt(hi) : q;
}

function ofChannel(list, channel) {
  return list[list.length > 1 ? channel : 0];
}

// The taps of a window: places in the input, or null in the padding.
function taps(layer, [height, width], row, column) {
  const [kh, kw] = layer.kernel;
  const [dh, dw] = layer.dilation ?? [1, 1];
  const found = [];
  for (let i = 0; i < kh; i++)
    for (let j = 0; j < kw; j++) {
      const y = row * layer.stride[0] - layer.padding[0] + i * dh;
      const x = column * layer.stride[1] - layer.padding[1] + j * dw;
      found.push({ i, j, y, x, inside: y >= 0 && y < height && x >= 0 && x < width });
    }
  return found;
}

// The terms (x − z) · w of one output of a convolution or linear layer.
function products(net, layer, values, place) {
  const input = layerNamed(net, layer.inputs[0]);
  const x = values[input.name];
  const terms = [];
  if (layer.op === "Linear") {
    const size = layer.weightShape[1];
    for (let i = 0; i < size; i++)
      terms.push({ channel: i, i: 0, j: 0, at: i, q: x[i], w: layer.weight[place * size + i] });
  } else {
    const [, perGroup, kh, kw] = layer.weightShape;
    const [, height, width] = layer.shape;
    const channel = Math.floor(place / (height * width));
    const row = Math.floor(place / width) % height;
    const [, inH, inW] = input.shape;
    const first = Math.floor(channel / (layer.shape[0] / layer.groups)) * perGroup;
    const window = taps({ ...layer, kernel: [kh, kw] }, [inH, inW], row, place % width);
    for (let c = 0; c < perGroup; c++)
      for (const { i, j, y, x: column, inside } of window) {
        const at = ((first + c) * inH + y) * inW + column;
        terms.push({
          channel: first + c, i, j, at: inside ? at : null, q: inside ? x[at] : input.zeroPoint,
          w: layer.weight[((channel * perGroup + c) * kh + i) * kw + j],
        });
      }
  }
  for (const term of terms) term.product = (term.q - input.zeroPoint) * term.w;
  return { input, terms };
}

// How an accumulator becomes an integer. `added` is a second product that is added before rounding, and its text.
function requantized(layer, channel, accumulator, lines, added = null) {
  const { multiplier, zeroPoint } = layer;
  let rounded;
  if (multiplier === null) {
    lines.push(["output", `${accumulator}`, "this layer has no multiplier: the accumulator is the output"]);
    return accumulator;
  }
  if (multiplier.kind === "fixed") {
    const [m, e] = [ofChannel(multiplier.mantissas, channel), ofChannel(multiplier.exponents, channel)];
    const found = fixedPoint(accumulator, m, e);
    lines.push(["multiplier", `${m} · 2^${e - 31}`, `M = ${(m * 2 ** (e - 31)).toPrecision(7)}`]);
    lines.push(["high product", `${found.high}`, `${accumulator}${e > 0 ? ` · 2^${e}` : ""} · ${m} / 2^31, rounded`]);
    lines.push(["rounded", `${found.value}`, e < 0 ? `/ 2^${-e}, ties away from zero` : "no shift"]);
    rounded = found.value;
  } else {
    const m = ofChannel(multiplier.integers, channel);
    const total = accumulator * BigInt(m) + (added === null ? 0n : added.product);
    const found = rneShift(total, multiplier.shift);
    lines.push(["multiplier", `${m} / 2^${multiplier.shift}`, `M = ${(m / 2 ** multiplier.shift).toPrecision(7)}`]);
    if (added !== null) lines.push(["second operand", `${added.product}`, added.text]);
    const real = Number(total) / 2 ** multiplier.shift;
    lines.push(["product", `${total}`, `${accumulator} · ${m}${added === null ? "" : ` + ${added.product}`}`]);
    lines.push(["real", real.toFixed(6), `/ 2^${multiplier.shift}`]);
    lines.push(["rounded", `${found.value}`, found.tie ? "a tie: to the even neighbour" : "to the nearest integer"]);
    rounded = found.value;
  }
  const shifted = rounded + BigInt(zeroPoint);
  const output = clampTo(layer, shifted);
  lines.push(["plus zero point", `${shifted}`, `+ ${zeroPoint}`]);
  lines.push(["clamped", `${output}`, shifted === output ? `inside [${layer.lo}, ${layer.hi}]` : `to [${layer.lo}, ${layer.hi}]`]);
  return output;
}

// Work one output. Returns its terms, its accumulator (or null), lines of [what, number, why], and the output; null for
// layers that are not worked here.
function work(net, values, layer, place) {
  const lines = [];
  const spatial = layer.shape.length === 3 ? layer.shape[1] * layer.shape[2] : 1;
  const channel = Math.floor(place / spatial);
  if (layer.op === "Conv2d" || layer.op === "Linear") {
    const { input, terms } = products(net, layer, values, place);
    const sum = terms.reduce((total, { product }) => total + product, 0); // exact: below 2^31
    const bias = layer.bias[channel];
    const accumulator = BigInt(sum) + BigInt(bias);
    lines.push(["products", `${sum}`, `Σ (q − ${input.zeroPoint}) · w of ${terms.length} terms`]);
    lines.push(["bias", `${bias}`, ""]);
    lines.push(["accumulator", `${accumulator}`, `${sum} + ${bias}`]);
    let added = null;
    if (layer.residualMultiplier) {
      const other = layerNamed(net, layer.inputs[1]);
      const [q, m] = [values[other.name][place], layer.residualMultiplier.integers[0]];
      added = { product: BigInt(q - other.zeroPoint) * BigInt(m), text: `(${q} − ${other.zeroPoint}) · ${m} of ${other.name}` };
    }
    return { input, terms, accumulator, lines, output: requantized(layer, channel, accumulator, lines, added) };
  }
  if (layer.op === "MaxPool2d" || layer.op === "AveragePool2d") {
    const input = layerNamed(net, layer.inputs[0]);
    const [, height, width] = input.shape;
    const row = Math.floor(place / layer.shape[2]) % layer.shape[1];
    const terms = taps(layer, [height, width], row, place % layer.shape[2]).filter(({ inside }) => inside).map(({ i, j, y, x }) => {
      const at = (channel * height + y) * width + x;
      return { channel, i, j, at, q: values[input.name][at] };
    });
    if (layer.op === "MaxPool2d") {
      const output = BigInt(Math.max(...terms.map(({ q }) => q)));
      lines.push(["largest", `${output}`, `of ${terms.length} integers`]);
      return { input, terms, accumulator: null, lines, output };
    }
    if (layer.multiplier?.kind === "quotient") {
      const [sum, count] = [terms.reduce((total, { q }) => total + q, 0), terms.length];
      const mean = Math.sign(sum) * Math.floor((Math.abs(sum) + Math.floor(count / 2)) / count);
      const output = clampTo(layer, BigInt(mean));
      lines.push(["sum", `${sum}`, `of ${count} integers`]);
      lines.push(["mean", `${mean}`, `/ ${count}, ties away from zero`]);
      lines.push(["clamped", `${output}`, `to [${layer.lo}, ${layer.hi}]`]);
      return { input, terms, accumulator: null, lines, output };
    }
    const accumulator = BigInt(terms.reduce((total, { q }) => total + q - input.zeroPoint, 0));
    lines.push(["accumulator", `${accumulator}`, `Σ (q − ${input.zeroPoint}) of ${terms.length} integers`]);
    return { input, terms, accumulator, lines, output: requantized(layer, channel, accumulator, lines) };
  }
  if (layer.op === "Add" && layer.multipliers[0].kind === "fixed") {
    const operands = layer.inputs.map((name) => layerNamed(net, name));
    const parts = operands.map((operand, i) => {
      const [q, m, e] = [values[operand.name][place], layer.multipliers[i].mantissas[0], layer.multipliers[i].exponents[0]];
      const { value } = fixedPoint(BigInt(q - operand.zeroPoint) << 20n, m, e);
      lines.push([operand.name, `${value}`, `(${q} − ${operand.zeroPoint}) · 2^20 · ${m} · 2^${e - 31}, rounded twice`]);
      return value;
    });
    const sum = parts[0] + parts[1];
    lines.push(["sum", `${sum}`, ""]);
    const output = requantized({ ...layer, multiplier: layer.multipliers[2] }, 0, sum, lines);
    return { input: operands[0], terms: [], accumulator: null, lines, output };
  }
  if (layer.op === "Add") {
    const operands = layer.inputs.map((name) => layerNamed(net, name));
    const numbers = operands.map((operand) => values[operand.name][place]);
    const parts = operands.map((operand, i) => BigInt(numbers[i] - operand.zeroPoint) * BigInt(layer.multipliers[i].integers[0]));
    operands.forEach((operand, i) =>
      lines.push([operand.name, `${parts[i]}`, `(${numbers[i]} − ${operand.zeroPoint}) · ${layer.multipliers[i].integers[0]}`]));
    const { shift } = layer.multipliers[0];
    const found = rneShift(parts[0] + parts[1], shift);
    lines.push(["rounded", `${found.value}`, `sum ${parts[0] + parts[1]} / 2^${shift}${found.tie ? ", a tie: to the even neighbour" : ""}`]);
    const shifted = found.value + BigInt(layer.zeroPoint);
    const output = clampTo(layer, shifted);
    lines.push(["clamped", `${output}`, `${shifted} to [${layer.lo}, ${layer.hi}]`]);
    return { input: operands[0], terms: [], accumulator: null, lines, output };
  }
  if (layer.op === "Table") {
    const input = layerNamed(net, layer.inputs[0]);
    const q = values[input.name][place];
    const output = BigInt(layer.table[q - (input.dtype === "int8" ? -128 : 0)]);
    lines.push(["table", `${output}`, `entry of ${q}`]);
    return { input, terms: [], accumulator: null, lines, output };
  }
  return null;
}
