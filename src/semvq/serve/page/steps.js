// Pictures of an answer, and for a NAR transformer a slider over its steps: places that a step has
// left open are hatched.
const CELL = 12; // pixels of the hatching for a place
const PAUSE = 350; // milliseconds a step is shown while playing

export function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

function hatch(canvas, open) {
  canvas.width = open[0].length * CELL;
  canvas.height = open.length * CELL;
  const pen = canvas.getContext("2d");
  open.forEach((row, y) => row.forEach((isOpen, x) => {
    if (!isOpen) return;
    const [left, top] = [x * CELL, y * CELL];
    pen.fillStyle = "#80868b";
    pen.fillRect(left, top, CELL, CELL);
    pen.strokeStyle = "#c9cdd0";
    pen.beginPath();
    pen.moveTo(left, top + CELL);
    pen.lineTo(left + CELL, top);
    pen.stroke();
  }));
}

function words(steps, index) {
  const places = steps[index].open[0].flat(); // of the first picture; the others have as many
  const fixed = places.filter((isOpen) => !isOpen).length;
  return `step ${index} of ${steps.length - 1}: ${fixed} of ${places.length} places fixed`;
}

// Fill `holder`, in place of what an earlier answer left there; the last step is shown first.
export function showSteps(holder, steps, captions, smooth) {
  const label = holder.dataset.label;
  const last = steps.length - 1;
  const figures = steps[last].pictures.map((_, i) => {
    const image = element("img", { className: smooth ? "smooth" : "" });
    const canvas = element("canvas");
    canvas.setAttribute("aria-hidden", "true");
    const layers = element("div", { className: "layers" }, image, canvas);
    const caption = element("figcaption", { textContent: captions[i] });
    return { image, canvas, node: element("figure", {}, layers, caption) };
  });
  const output = element("output");
  const range = element("input", { type: "range", min: 0, max: last, step: 1, value: last });
  range.setAttribute("aria-label", `step of the ${label} pictures`);
  const play = element("button", { type: "button", textContent: "Play" });
  let timer = 0;

  function show(index) {
    const step = steps[index];
    figures.forEach(({ image, canvas }, i) => {
      image.src = step.pictures[i];
      image.alt = `${label} ${captions[i]}, ${last ? words(steps, index) : "drawn"}`;
      hatch(canvas, step.open[i]);
    });
    output.textContent = words(steps, index);
    range.value = index;
    range.setAttribute("aria-valuetext", output.textContent);
  }

  function stop() {
    clearInterval(timer);
    timer = 0;
    play.textContent = "Play";
  }

  range.addEventListener("input", () => {
    stop();
    show(Number(range.value));
  });
  play.addEventListener("click", () => {
    if (timer) return stop();
    let index = Number(range.value) === last ? 0 : Number(range.value);
    show(index);
    play.textContent = "Stop";
    timer = setInterval(() => {
      if (index === last || !range.isConnected) return stop();
      index += 1;
      show(index);
    }, PAUSE);
  });
  const player = element("div", { className: "player" }, play, range, output);
  const results = element("div", { className: "results" }, ...figures.map((f) => f.node));
  holder.replaceChildren(results, ...(last ? [player] : []));
  show(last);
}
