// Each explorer: drag across the chart, or move the slider, to choose one of the measured clip ranges.
for (const figure of document.querySelectorAll(".explorer")) {
  const { left, right, lo, hi, stops } = JSON.parse(figure.querySelector("script").textContent);
  const svg = figure.querySelector("svg"), slider = figure.querySelector("input");
  const across = value => Math.min(Math.max(left + (value - lo) / (hi - lo) * (right - left), left), right);
  const part = (kind, side) => svg.querySelector(`.${kind}.${side}`);
  const show = index => {
    const stop = stops[index], low = across(-stop.clip), high = across(stop.clip);
    part("shade", "below").setAttribute("width", low - left);
    part("shade", "above").setAttribute("x", high);
    part("shade", "above").setAttribute("width", right - high);
    for (const [side, x] of [["below", low], ["above", high]]) {
      const handle = part("handle", side);
      handle.setAttribute("d", handle.getAttribute("d").replace(/^M[^ ]+/, `M${x}`));
    }
    figure.querySelectorAll("dd").forEach((cell, i) => { cell.textContent = stop.texts[i]; });
    slider.value = index;
    slider.setAttribute("aria-valuetext", stop.texts.join(", "));
  };
  const drag = event => {
    const x = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse()).x;
    const clip = Math.abs(lo + (x - left) / (right - left) * (hi - lo));
    const distance = stop => Math.abs(stop.clip - clip);
    show(stops.reduce((best, stop, i) => (distance(stop) < distance(stops[best]) ? i : best), 0));
  };
  svg.addEventListener("pointerdown", event => {
    svg.setPointerCapture(event.pointerId);
    drag(event);
    event.preventDefault();
  });
  svg.addEventListener("pointermove", event => { if (event.buttons) drag(event); });
  slider.addEventListener("input", () => show(Number(slider.value)));
  slider.hidden = false;
  figure.classList.add("live");
  show(Number(slider.value));
}
