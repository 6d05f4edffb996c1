// The picture of an answer: original beside overlay, zoom, window and level, outline of the lungs, download.
import { saveFile } from "/save.js";

const ZOOMS = [1, 1.5, 2, 3, 4, 6];
const WHOLE = 256; // pixel intensities: a window of this width shows the picture unchanged
const SAVED_WIDTH = 640; // pixels, at least, so that the caption is legible

export function activateViewer(article) {
  const controls = article.querySelector(".controls");
  if (!controls) return;
  const radiograph = article.querySelector(".radiograph");
  if (article.querySelector(".saliency")) addOriginal(article);
  const views = Array.from(article.querySelectorAll(".view"));
  radiograph.decode().then(() => { // a zoomed picture scrolls in a view that keeps its size
    for (const view of views) view.style.aspectRatio = `${radiograph.naturalWidth} / ${radiograph.naturalHeight}`;
  });
  const zoom = activateZoom(article, views);
  const settings = controls.querySelectorAll("input");
  const update = () => show(article);
  for (const input of settings) input.addEventListener("input", update);
  controls.querySelector(".reset").addEventListener("click", () => {
    for (const input of settings) {
      input.value = input.defaultValue;
      input.checked = input.defaultChecked;
    }
    zoom(0);
    update();
  });
  controls.querySelector(".save").addEventListener("click", () => savePicture(article));
  controls.hidden = false;
}

// The answer has the radiograph once, since it is most of its bytes.
function addOriginal(article) {
  const pane = article.querySelector("figure").cloneNode(true);
  pane.querySelectorAll(".saliency, .lungs, .frame").forEach((layer) => layer.remove());
  pane.querySelector("figcaption").textContent = "Original";
  article.querySelector(".panes").prepend(pane);
}

function activateZoom(article, views) {
  const [out, shown, into] = [".out", "output", ".in"].map((name) => article.querySelector(`.zoom ${name}`));
  let step = 0;
  const placed = new Map(); // where a view was put by us: the event of that comes later, and must not move the others
  const place = (view, x, y) => {
    view.scrollTo(x, y);
    placed.set(view, [view.scrollLeft, view.scrollTop]);
  };
  const zoom = (wanted) => {
    step = Math.max(0, Math.min(ZOOMS.length - 1, wanted));
    const factor = ZOOMS[step];
    shown.textContent = `${100 * factor} %`;
    for (const view of views) {
      const stack = view.querySelector(".stack");
      const before = stack.clientWidth;
      const [x, y] = [view.scrollLeft + view.clientWidth / 2, view.scrollTop + view.clientHeight / 2];
      stack.style.width = `${100 * factor}%`;
      view.classList.toggle("zoomed", factor > 1);
      const ratio = before ? stack.clientWidth / before : 1; // the middle stays where it is; a closed result has no size
      place(view, x * ratio - view.clientWidth / 2, y * ratio - view.clientHeight / 2);
    }
  };
  out.addEventListener("click", () => zoom(step - 1));
  into.addEventListener("click", () => zoom(step + 1));
  for (const [number, view] of views.entries()) {
    view.tabIndex = 0;
    view.setAttribute("role", "group");
    view.setAttribute("aria-label", `${views.length > 1 && number === 0 ? "Original" : "Picture"}; plus and minus zoom`);
    view.addEventListener("keydown", (event) => {
      const change = { "+": 1, "=": 1, "-": -1 }[event.key];
      if (!change || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      zoom(step + change);
    });
    view.addEventListener("scroll", () => {
      const ours = placed.get(view);
      placed.delete(view);
      if (ours && ours[0] === view.scrollLeft && ours[1] === view.scrollTop) return;
      for (const other of views) if (other !== view) place(other, view.scrollLeft, view.scrollTop);
    });
    view.addEventListener("pointermove", (event) => { // a finger scrolls without help
      if (event.pointerType === "mouse" && event.buttons === 1) view.scrollBy(-event.movementX, -event.movementY);
    });
    view.addEventListener("dragstart", (event) => event.preventDefault());
  }
  zoom(0);
  return zoom;
}

function settingsOf(article) {
  const read = (name, otherwise) => Number(article.querySelector(`.${name}`)?.value ?? otherwise);
  const outline = article.querySelector("input.outline");
  return {
    opacity: read("opacity", 0) / 100,
    window: read("window", WHOLE),
    level: read("level", WHOLE / 2),
    outline: outline ? outline.checked : false,
  };
}

function show(article) {
  const settings = settingsOf(article);
  for (const output of article.querySelectorAll(".sliders output")) {
    output.textContent = output.closest("label").querySelector("input").value;
  }
  article.querySelectorAll(".saliency").forEach((layer) => { layer.style.opacity = settings.opacity; });
  article.querySelectorAll(".lungs").forEach((layer) => { layer.hidden = !settings.outline; });
  for (const stack of article.querySelectorAll(".stack")) {
    stack.querySelector("canvas")?.remove();
    if (isWhole(settings)) continue;
    const canvas = shade(stack.querySelector(".radiograph"), settings);
    canvas.setAttribute("aria-hidden", "true"); // the image below it has the text
    stack.querySelector(".radiograph").after(canvas);
  }
}

function isWhole(settings) {
  return settings.window === WHOLE && settings.level === WHOLE / 2;
}

// The radiograph with the pixel intensities of the window spread from black to white.
function shade(image, settings) {
  const canvas = document.createElement("canvas");
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  if (isWhole(settings)) return canvas;
  const lowest = settings.level - settings.window / 2;
  const greys = Uint8ClampedArray.from({ length: 256 }, (_, grey) => (255 * (grey - lowest)) / settings.window);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let i = 0; i < pixels.data.length; i += 4) {
    pixels.data[i] = pixels.data[i + 1] = pixels.data[i + 2] = greys[pixels.data[i]];
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

// The picture as it is shown, and below it what has to be read with it wherever it is pasted.
function savePicture(article) {
  const settings = settingsOf(article);
  const picture = shade(article.querySelector(".radiograph"), settings);
  const [width, margin, line] = [Math.max(SAVED_WIDTH, picture.width), 12, 20];
  const height = Math.round((picture.height * width) / picture.width);
  const canvas = document.createElement("canvas");
  const context = canvas.getContext("2d");
  const font = "14px system-ui, sans-serif";
  context.font = font;
  const lines = captionOf(article).flatMap((text) => wrap(context, text, width - 2 * margin));
  const legend = article.querySelector(".legend");
  canvas.width = width;
  canvas.height = height + 2 * margin + line * (lines.length + (legend ? 1 : 0));
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(picture, 0, 0, width, height);
  const layer = (name, opacity) => {
    const image = article.querySelector(`img.${name}`);
    context.globalAlpha = opacity;
    if (image) context.drawImage(image, 0, 0, width, height);
    context.globalAlpha = 1;
  };
  layer("saliency", settings.opacity);
  if (settings.outline) layer("lungs", 1);
  const frame = article.querySelector(".frame rect");
  if (frame) {
    const [x, y, w, h] = ["x", "y", "width", "height"].map((name) => Number(frame.getAttribute(name)));
    context.strokeStyle = "white";
    context.strokeRect(x * width, y * height, w * width, h * height);
  }
  context.font = font; // a new size has reset it
  context.fillStyle = "black";
  context.textBaseline = "top";
  let top = height + margin;
  if (legend) {
    context.fillText("0", margin, top);
    context.drawImage(legend, margin + 14, top, 120, 14);
    context.fillText(legend.nextSibling.textContent.trim(), margin + 142, top);
    top += line;
  }
  for (const text of lines) {
    context.fillText(text, margin, top);
    top += line;
  }
  const name = JSON.parse(article.dataset.row).path.replace(/\.\w+$/, "") || "image";
  canvas.toBlob((blob) => saveFile(blob, `${name}-picture.png`), "image/png");
}

function captionOf(article) {
  const texts = [".drawing", ".prediction", ".about-map"].map((name) => article.querySelector(name)?.textContent);
  const verdict = document.querySelector("header p").cloneNode(true);
  verdict.querySelector("a").remove();
  return [...texts, verdict.textContent, article.querySelector(".text > .small:last-child").textContent]
    .filter(Boolean).map((text) => text.replaceAll(/\s+/g, " ").trim());
}

function wrap(context, text, width) {
  const lines = [""];
  for (const word of text.split(" ")) {
    const longer = `${lines.at(-1)} ${word}`.trim();
    if (lines.at(-1) && context.measureText(longer).width > width) lines.push(word);
    else lines[lines.length - 1] = longer;
  }
  return lines;
}
