// The box to repaint: dragged on the photo, or set by the four number fields, which hold its truth.
const EDGES = ["x0", "y0", "x1", "y1"]; // left, top, right, bottom, in % of the photo

const stage = document.getElementById("region");
const box = stage.querySelector(".box");
const fields = EDGES.map((id) => document.getElementById(id));

function draw() {
  const [x0, y0, x1, y1] = fields.map((field) => Number(field.value));
  box.hidden = !(x0 < x1 && y0 < y1);
  Object.assign(box.style, {
    left: `${x0}%`, top: `${y0}%`, width: `${x1 - x0}%`, height: `${y1 - y0}%`,
  });
}

function at(event) {
  const frame = stage.getBoundingClientRect();
  return [(event.clientX - frame.left) / frame.width, (event.clientY - frame.top) / frame.height]
    .map((share) => Math.round(100 * Math.min(1, Math.max(0, share))));
}

export function followPointer() {
  let start = null;
  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    stage.setPointerCapture(event.pointerId);
    start = at(event);
  });
  stage.addEventListener("pointermove", (event) => {
    if (!stage.hasPointerCapture(event.pointerId)) return;
    const end = at(event);
    if (end[0] === start[0] || end[1] === start[1]) return; // not a box yet
    [0, 1].forEach((i) => {
      fields[i].value = Math.min(start[i], end[i]);
      fields[i + 2].value = Math.max(start[i], end[i]);
    });
    draw();
  });
  for (const field of fields) field.addEventListener("input", draw);
  draw();
}

// As `--box` of `semvq edit`: shares of the square from its top left.
export function region() {
  const names = ["left", "top", "right", "bottom"];
  const values = fields.map((field, i) => {
    if (field.value === "" || !field.checkValidity()) {
      throw new Error(`${names[i]}: expected a whole number from 0 to 100, found ` +
        `'${field.value}'; set it, or drag a box on the photo`);
    }
    return Number(field.value);
  });
  const [x0, y0, x1, y1] = values;
  if (x0 >= x1 || y0 >= y1) {
    throw new Error("region: expected left below right and top below bottom, found " +
      `${x0} to ${x1} and ${y0} to ${y1}; drag a box on the photo`);
  }
  return values.map((value) => value / 100).join(",");
}

export function showPhoto(address, smooth) {
  const image = stage.querySelector("img");
  image.className = smooth ? "smooth" : "";
  image.src = address;
}
