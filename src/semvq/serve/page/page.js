// Asks the server for pictures and shows them; everything it knows of the runs is from /overview.
import { followPointer, region, showPhoto } from "/region.js";
import { element, showSteps } from "/steps.js";

const SMOOTH_FROM = 96; // pixels: smaller pictures show their pixels

const photo = document.getElementById("photo");
const looks = document.getElementById("looks");
const strip = document.getElementById("photos");
const upload = document.getElementById("upload");
const photoClass = document.getElementById("photo-class");
const overview = await (await fetch("/overview")).json();

let chosen = { index: 0, file: null }; // a packaged photo, or a file of the user's
// the last one that could be looked at, and the class that the transformer was told
let shown = { photo: chosen, label: null };
let asked = 0; // looks so far: only the last one's answer is shown

// One line about what went wrong, in its section; none clears it.
function complain(section, line = "") {
  const place = section.querySelector(".error");
  place.textContent = line;
  place.hidden = !line;
}

async function ask(path, fields, file = null) {
  const given = Object.entries(fields).filter(([, value]) => value !== "");
  let response;
  try {
    response = await fetch(`${path}?${new URLSearchParams(given)}`, { method: "POST", body: file });
  } catch {
    const what = file ? "whether the photo is still there, and whether" : "whether";
    throw new Error(`expected an answer of the server, found none; look ${what} semvq serve runs`);
  }
  const answer = await response.json().catch(() => null);
  if (!answer) throw new Error("expected an answer of the server, found it busy; try again");
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

function photoFields() {
  return chosen.file ? {} : { photo: chosen.index };
}

function isSmooth(name) {
  return overview.tokenizers.find((t) => t.name === name).resolution >= SMOOTH_FROM;
}

// What the tokenizers make of the photo

function figure(address, caption, className = "") {
  const image = element("img", { src: address, alt: caption, className });
  return element("figure", {}, image, element("figcaption", { textContent: caption }));
}

function sentence(figures) {
  return figures.map(([name, value]) => `${name} ${value}`).join(" · ");
}

function look(found) {
  const smooth = isSmooth(found.name) ? "smooth" : "";
  const pictures = element("div", { className: "pictures" },
    figure(found.photo, "photo", smooth), figure(found.codes, "codes"),
    figure(found.reconstruction, "reconstruction", smooth));
  if (found.prediction) {
    pictures.append(figure(found.prediction, "prediction", smooth),
      figure(found.surprise, "surprise"));
  }
  const width = String(Math.max(...found.numbers.flat())).length;
  const rows = found.numbers.map((row) => row.map((n) => String(n).padStart(width)).join(" "));
  const numbers = element("pre", { className: "numbers", textContent: rows.join("\n") });
  numbers.tabIndex = 0;
  const text = found.prediction ? sentence(found.figures)
    : `${sentence(found.figures)} · no AR run on these codes was given: no prediction`;
  return element("div", { className: "look" },
    element("h3", { textContent: found.name }), pictures,
    element("p", { className: "note", textContent: text }),
    element("details", {}, element("summary", { textContent: "codes as numbers" }), numbers));
}

async function lookAt() {
  asked += 1;
  const own = asked;
  looks.classList.add("waiting");
  looks.setAttribute("aria-busy", "true");
  complain(photo);
  const label = photoClass.value;
  try {
    const fields = { ...photoFields(), class: label };
    const found = await ask("/look", fields, chosen.file);
    if (own !== asked) return;
    looks.replaceChildren(...found.tokenizers.map(look));
    shown = { photo: chosen, label };
    const [first] = found.tokenizers;
    showPhoto(first.photo, isSmooth(first.name));
    document.getElementById("photo-name").textContent = chosen.file
      ? `${chosen.file.name}: its centre square` : overview.photos[chosen.index];
  } catch (error) {
    if (own !== asked) return;
    const name = chosen.file ? chosen.file.name : "";
    complain(photo, error.message.replace("the upload", () => name));
    mark(shown.photo); // what is on the page stays, and is what a repainting starts from
    if (shown.label !== null) photoClass.value = shown.label;
  }
  looks.classList.remove("waiting");
  looks.removeAttribute("aria-busy");
}

function mark(next) {
  chosen = next;
  if (!chosen.file) upload.value = ""; // so that the same file can be chosen again
  [...strip.children].forEach((button, i) => {
    button.setAttribute("aria-pressed", !chosen.file && i === chosen.index);
  });
}

function choose(next) {
  mark(next);
  const name = chosen.file ? "" : overview.photos[chosen.index].split("/")[0];
  const known = [...photoClass.options].some((option) => option.value === name);
  photoClass.value = known ? name : photoClass.options[0].value;
  lookAt();
}

function chooseFile(file) {
  const most = overview.limits.bytes;
  if (file.size > most) {
    complain(photo, `${file.name}: expected at most ${most / 1e6} MB, found ` +
      `${(file.size / 1e6).toFixed(1)} MB; choose a smaller one`);
  } else {
    choose({ index: 0, file });
  }
}

// Forms: their choices, and what they bring

function fill(select, pairs) {
  const before = select.value;
  select.replaceChildren(...pairs.map(([value, text]) => element("option", { value, text })));
  if (pairs.some(([value]) => value === before)) select.value = before;
}

function classChoices(generator, none) {
  const named = generator.classes.map((name) => [name, name]);
  return none ? [["", none], ...named] : named;
}

// The number fields and the others that this transformer can use; a hidden one is not sent.
function adapt(form, generator, kind, none) {
  const { elements } = form;
  fill(elements.class, classChoices(generator, none));
  const usable = {
    class: generator.classes.length > 0, guidance: generator.optional, steps: kind === "NAR",
  };
  for (const [name, shown] of Object.entries(usable)) {
    elements[name].disabled = !shown;
    elements[name].closest("label").hidden = !shown;
  }
}

// What both forms ask of a sampler, before their buttons.
function addSamplingFields() {
  const { content } = document.getElementById("sampling-fields");
  document.querySelectorAll("form.fields button").forEach((button) =>
    button.before(content.cloneNode(true)));
}

function connect(section, submit) {
  const form = section.querySelector("form");
  const button = form.querySelector("button");
  const holder = section.querySelector(".steps");
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    complain(section);
    const began = performance.now();
    const name = button.textContent;
    const clock = setInterval(() => {
      button.textContent = `${Math.round((performance.now() - began) / 1000)} s …`;
    }, 1000);
    button.disabled = true;
    try {
      await submit(Object.fromEntries(new FormData(form)), holder);
    } catch (error) {
      complain(section, error.message);
    }
    clearInterval(clock);
    button.textContent = name;
    button.disabled = false;
  });
}

function prepareRepainting() {
  const section = document.getElementById("repaint");
  const form = section.querySelector("form");
  const able = overview.tokenizers.filter((t) => t.generators.NAR);
  if (!able.length) return;
  section.hidden = false;
  fill(form.elements.tokenizer, able.map((t) => [t.name, t.name]));
  const adaptToRun = () => {
    const { NAR } = able.find((t) => t.name === form.elements.tokenizer.value).generators;
    adapt(form, NAR, "NAR", NAR.optional ? "none" : "");
  };
  form.elements.tokenizer.addEventListener("change", adaptToRun);
  form.elements.steps.max = overview.limits.steps;
  adaptToRun();
  followPointer();
  connect(section, async (fields, holder) => {
    const all = { ...fields, ...photoFields(), box: region() };
    const found = await ask("/repaint", all, chosen.file);
    showSteps(holder, found.steps, [`seed ${fields.seed}`], isSmooth(fields.tokenizer));
  });
}

function prepareSampling() {
  const section = document.getElementById("sample");
  const form = section.querySelector("form");
  const drawers = overview.tokenizers.flatMap((t) =>
    Object.keys(t.generators).map((kind) => ({ tokenizer: t, kind })));
  if (!drawers.length) return;
  section.hidden = false;
  const names = drawers.map(({ tokenizer, kind }, i) => [i, `${kind}, drawn by ${tokenizer.name}`]);
  fill(form.elements.drawer, names);
  const current = () => drawers[form.elements.drawer.value];
  const adaptToRun = () => {
    const { tokenizer, kind } = current();
    adapt(form, tokenizer.generators[kind], kind, "all in turn");
  };
  form.elements.drawer.addEventListener("change", adaptToRun);
  form.elements.steps.max = overview.limits.steps;
  form.elements.num.max = overview.limits.samples;
  adaptToRun();
  connect(section, async ({ drawer, ...fields }, holder) => {
    const { tokenizer, kind } = drawers[drawer];
    const found = await ask("/sample", { ...fields, tokenizer: tokenizer.name, kind });
    const { classes } = tokenizer.generators[kind];
    const captions = found.codes.map((_, i) =>
      fields.class || classes[i % classes.length] || `sample ${i}`);
    showSteps(holder, found.steps, captions, isSmooth(tokenizer.name));
  });
}

function start() {
  document.getElementById("runs").append(...overview.tokenizers.map((t) =>
    element("li", {}, element("b", { textContent: t.name }), " ",
      element("small", { textContent: t.subtitle }))));
  strip.append(...overview.photos.map((name, index) => {
    const image = element("img", { src: `/photo/${index}`, alt: name, width: 72, height: 72 });
    const button = element("button", { type: "button", title: name }, image);
    button.addEventListener("click", () => choose({ index, file: null }));
    return button;
  }));
  const generators = overview.tokenizers.flatMap((t) => t.generators.AR ?? []);
  const classes = [...new Set(generators.flatMap((g) => g.classes))];
  const none = generators.every((g) => g.optional || !g.classes.length);
  fill(photoClass, [...(none ? [["", "none"]] : []), ...classes.map((name) => [name, name])]);
  photoClass.closest("label").hidden = !classes.length;
  photoClass.addEventListener("change", lookAt);
  upload.addEventListener("change", () => upload.files.length && chooseFile(upload.files[0]));
  addSamplingFields();
  prepareRepainting();
  prepareSampling();
  choose({ index: 0, file: null });
}

start();
