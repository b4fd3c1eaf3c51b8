// The map in a gallery: a dot for each paper, a click chooses one, a ring marks it. The list beside it is for keys.
const NS = "http://www.w3.org/2000/svg";
const UNIT = 128, LINE = 30, LEFT = 150, TOP = 64;
const SHAPES = {
  works: "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0z",
  applies: "M0-4.5L4.5 0L0 4.5L-4.5 0z",
  context: "M-3-3L3 3M3-3L-3 3",
  open: "M-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0z",
};

function make(name, attributes, text) {
  const node = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

// JupyterLab takes arrows and letters for itself, by its shortcuts and by a listener further up; the list needs them.
function leaveKeys(box) {
  box.dataset.lmSuppressShortcuts = "true";
  box.addEventListener("keydown", (event) => event.stopPropagation());
}

function render({ model, el }) {
  const { families, dials, statuses, dots, words } = model.get("drawn");
  const right = LEFT + UNIT * dials.length, bottom = TOP + LINE * families.length;
  const across = (x) => LEFT + UNIT * (x + 0.5), down = (y) => bottom - LINE * (y + 0.5);
  const svg = make("svg", { viewBox: `0 0 ${right} ${bottom}`, role: "img", "aria-label": words });
  statuses.forEach(([status, name], i) => {
    svg.append(make("path", { d: SHAPES[status], class: status, transform: `translate(${LEFT + 170 * i + 8} 12)` }));
    svg.append(make("text", { x: LEFT + 170 * i + 20, y: 16 }, name));
  });
  dials.forEach((dial, i) => svg.append(make("text", { x: across(i - 0.5) + 4, y: TOP - 12, class: "dial" }, dial)));
  families.forEach((family, i) => {
    svg.append(make("path", { d: `M0 ${TOP + LINE * i}H${right}`, class: "line" }));
    svg.append(make("text", { x: 4, y: TOP + LINE * (i + 0.5) + 4 }, family));
  });
  const places = new Map(dots.map(([id, x, y]) => [id, [across(x), down(y)]]));
  for (const [id, , , status, title] of dots) {
    const dot = make("g", { class: "dot", "data-id": id, transform: `translate(${places.get(id)})` });
    dot.append(make("title", {}, title), make("rect", { x: -4.5, y: -4.5, width: 9, height: 9, fill: "transparent" }));
    dot.append(make("path", { d: SHAPES[status], class: status }));
    svg.append(dot);
  }
  const ring = make("circle", { r: 7, class: "ring" });
  svg.append(ring);
  const mark = () => {
    const place = places.get(model.get("chosen"));
    ring.style.display = place ? "" : "none";
    if (place) ring.setAttribute("transform", `translate(${place})`);
  };
  svg.addEventListener("click", (event) => {
    const dot = event.target.closest(".dot");
    if (dot) model.set("chosen", dot.dataset.id), model.save_changes();
  });
  mark();
  model.on("change:chosen", mark);
  el.classList.add("labkit-map");
  el.append(svg);
  const waiting = setInterval(() => {
    const box = el.closest(".labkit-gallery");
    if (!box) return;
    clearInterval(waiting);
    leaveKeys(box);
  }, 50);
  return () => (clearInterval(waiting), model.off("change:chosen", mark));
}

export default { render };
