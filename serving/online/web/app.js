// Asks the service about pictures, a few at a time, and shows what it answers.

const SHOWN_CLASSES = 5;
const AT_ONCE = 4;
const TRIES_WHEN_BUSY = 5;

const get = (id) => document.getElementById(id);
const [files, drop, results, status, access, token, clear] =
  ["files", "drop", "results", "status", "access", "token", "clear"].map(get);
// How the model makes a square of a picture, in the words of CSS; models without a word squash.
const OBJECT_FIT = { crop: "cover", squash: "fill", pad: "contain" };
const tenths = new Intl.NumberFormat("en", { style: "percent", maximumFractionDigits: 1 });
const percent = (share) => (share > 0 && share < 0.001 ? "<" : "") + tenths.format(share && Math.max(share, 0.001));
const api = (path) => new URL(`../${path}`, location.href);
const waiting = [];
let running = 0;

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(path, options = {}) {
  const secret = sessionStorage.getItem("token");
  const headers = { ...options.headers, ...(secret && { authorization: `Bearer ${secret}` }) };
  for (let tries = 1; ; tries += 1) {
    let response;
    try {
      response = await fetch(api(path), { ...options, headers });
    } catch {
      throw new Refused(0, "The service can’t be reached. Is it still running?");
    }
    const answer = await response.json().catch(() => ({}));
    if (response.ok) return answer;
    if (response.status === 429 && tries < TRIES_WHEN_BUSY) {
      const seconds = Number(response.headers.get("retry-after")) || 1;
      await new Promise((resolve) => setTimeout(resolve, seconds * 1000 * tries));
      continue;
    }
    if (response.status === 401) askForToken(secret);
    throw new Refused(response.status, answer.message ?? `The service answered with status ${response.status}.`);
  }
}

function askForToken(refused) {
  sessionStorage.removeItem("token");
  access.hidden = false;
  access.querySelector("label").textContent =
    refused ? "The service does not know this access token." : "This service needs an access token.";
}

async function showModel() {
  try {
    const model = await ask("model");
    const accuracy = model.metrics.test_accuracy;
    const measured = accuracy === undefined ? "" : ` · ${percent(accuracy)} test accuracy`;
    const precision = model.precision === "fp32" ? "" : ` in ${model.precision}`;
    get("model").textContent = `${model.name}, version ${model.version}${precision} · trained on ${model.data}${measured}`;
    results.style.setProperty("--fit", OBJECT_FIT[model.metadata.fit] ?? "fill");
    access.hidden = true;
  } catch (error) {
    get("model").textContent = error.message;
  }
}

function add(chosen) {
  const cards = document.createDocumentFragment();
  for (const file of chosen) {
    const card = get("result").content.firstElementChild.cloneNode(true);
    const image = card.querySelector("img");
    card.querySelector(".file").textContent = file.name;
    image.onload = () => image.classList.toggle("small", image.naturalWidth < 128);
    image.onerror = () => image.remove();
    image.src = URL.createObjectURL(file);
    cards.append(card);
    waiting.push([file, card]);
  }
  results.prepend(cards);
  clear.hidden = !results.children.length;
  work();
}

function work() {
  while (running < AT_ONCE && waiting.length) {
    running += 1;
    classify(...waiting.shift()).finally(() => {
      running -= 1;
      work();
    });
  }
}

async function classify(file, card) {
  const body = new FormData();
  body.append("image", file);
  try {
    show(file, card, await ask(`classify?top_k=${SHOWN_CLASSES}`, { method: "POST", body }));
  } catch (error) {
    // Behind the token it is asked again.
    if (error.status === 401) card.retry = () => {
      delete card.retry;
      card.setAttribute("aria-busy", "true");
      waiting.push([file, card]);
    };
    card.classList.add("failed");
    card.querySelector(".verdict").textContent = error.message;
    status.textContent = `${file.name}: ${error.message}`;
  }
  card.setAttribute("aria-busy", "false");
}

function show(file, card, answer) {
  card.classList.remove("failed");
  card.querySelector(".verdict").textContent = answer.label;
  // Sorted anew: an object puts names that are numbers first.
  const likeliest = Object.entries(answer.probabilities).sort(([, one], [, other]) => other - one);
  for (const [name, probability] of likeliest) {
    const row = get("class").content.firstElementChild.cloneNode(true);
    row.querySelector(".name").textContent = name;
    row.querySelector(".fill").style.width = `${100 * probability}%`;
    row.querySelector(".value").textContent = percent(probability);
    card.querySelector(".classes").append(row);
  }
  card.querySelector("img")?.setAttribute("alt", `${file.name}, taken for: ${answer.label}`);
  status.textContent = `${file.name}: ${answer.label}, ${percent(answer.confidence)}`;
}

files.addEventListener("change", () => {
  add(files.files);
  files.value = ""; // the same picture can be chosen again
});

document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) add(event.clipboardData.files);
});

// A picture that misses its place must not replace the page.
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", kind === "dragover");
    if (kind === "drop") add(event.dataTransfer.files);
  });
}

clear.addEventListener("click", () => {
  for (const image of results.querySelectorAll("img")) URL.revokeObjectURL(image.src);
  results.replaceChildren();
  waiting.length = 0;
  clear.hidden = true;
  status.textContent = "Results cleared.";
  files.focus();
});

access.addEventListener("submit", async (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", token.value);
  token.value = "";
  await showModel();
  if (!access.hidden) return;
  for (const card of results.children) card.retry?.();
  work();
});

get("curl").textContent = `curl -F image=@picture.png ${api("classify")}`;
showModel();
