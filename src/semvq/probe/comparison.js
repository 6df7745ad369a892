// Adds the sliders and overlays; everything else on the page is there without this script.
"use strict";
(() => {
  const photos = document.getElementById("photos");
  const tools = photos.querySelector(".tools");
  const view = tools.querySelector("select");
  const buttons = [...tools.querySelectorAll("button")];

  function add(parent, tag, className, text = "") {
    const node = document.createElement(tag);
    node.className = className;
    node.textContent = text;
    parent.append(node);
    return node;
  }

  // One divider for all tokenizers of a photo: the same place is compared everywhere.
  function divide(photo, percent) {
    const share = Math.round(Math.min(100, Math.max(0, percent)));
    photo.style.setProperty("--split", `${share}%`);
    for (const range of photo.querySelectorAll("input[type=range]")) {
      range.value = share;
      const [left, right] = range.dataset.pair.split(" ");
      range.setAttribute("aria-valuetext", `${share} % ${left}, ${100 - share} % ${right}`);
    }
  }

  // By mouse, pen or finger. A finger that moves up or down scrolls the page (touch-action in the
  // style) and must not take the divider along: it gets one move event before the browser decides.
  function followPointer(stage, photo) {
    let start, sideways;
    const follow = (event) => {
      const box = stage.getBoundingClientRect();
      divide(photo, (100 * (event.clientX - box.left)) / box.width);
    };
    stage.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      event.preventDefault();
      stage.setPointerCapture(event.pointerId);
      stage.querySelector("input").focus({ preventScroll: true });
      start = event;
      sideways = event.pointerType !== "touch";
      if (sideways) follow(event);
    });
    stage.addEventListener("pointermove", (event) => {
      if (!stage.hasPointerCapture(event.pointerId)) return;
      const [x, y] = [event.clientX - start.clientX, event.clientY - start.clientY].map(Math.abs);
      sideways ||= x > y;
      if (sideways) follow(event);
    });
    stage.addEventListener("pointerup", (event) => {
      if (stage.hasPointerCapture(event.pointerId)) follow(event);
    });
  }

  // Two pictures on top of each other; null where this tokenizer has no such picture.
  function makeStage(pair, left, right) {
    const photo = pair.closest(".photo");
    const find = (role) => (role === "original" ? photo : pair).querySelector(`.${role} .frame`);
    if (!find(left) || !find(right)) return null;
    const stage = document.createElement("div");
    stage.className = "stage";
    for (const [role, side] of [[left, "left"], [right, "right"]]) {
      const layer = find(role).cloneNode(true);
      layer.classList.add(side);
      add(layer, "span", "tag", role);
      stage.append(layer);
    }
    add(stage, "span", "line");
    const range = add(stage, "input", "");
    Object.assign(range, { type: "range", min: 0, max: 100, step: 1 });
    range.dataset.pair = `${left} ${right}`;
    range.setAttribute("aria-label", `Divider of ${left} and ${right}: ${pair.dataset.label}`);
    range.addEventListener("input", () => divide(photo, Number(range.value)));
    followPointer(stage, photo);
    return stage;
  }

  function show() {
    const roles = view.value.split(" ");
    for (const pair of photos.querySelectorAll(".pair")) {
      pair.querySelector(".stage")?.remove();
      const stage = roles.length === 2 ? makeStage(pair, ...roles) : null;
      const pictures = pair.querySelector(".pictures");
      pictures.hidden = stage !== null;
      if (stage) pictures.after(stage);
    }
    for (const photo of photos.querySelectorAll(".photo")) {
      divide(photo, parseFloat(photo.style.getPropertyValue("--split") || "50"));
    }
    const covered = roles.length !== 2 || roles.includes("prediction");
    for (const button of buttons) button.disabled = !covered;
  }

  function overlay(chosen) {
    const on = chosen.getAttribute("aria-pressed") === "false";
    for (const button of buttons) button.setAttribute("aria-pressed", on && button === chosen);
    if (on) photos.dataset.overlay = chosen.value;
    else delete photos.dataset.overlay;
  }

  view.addEventListener("change", show);
  for (const button of buttons) button.addEventListener("click", () => overlay(button));
  tools.hidden = false;
  show(); // a reloaded page keeps its choice
})();
