// The page's side: questions as JSON, answers set as text. No text from the data or the user is ever read as HTML.
"use strict";
const $ = (name) => document.getElementById(name);
let chosen = null; // what the server calls the image: {model, row} or {upload}
let box = null; // [x1, y1, x2, y2], fractions of the image
const MOVE = 0.02, LEAST = 0.005;

function element(kind, options = {}, ...children) {
  const made = Object.assign(document.createElement(kind), options);
  made.append(...children);
  return made;
}
function say(text, problem = false) {
  $("status").textContent = text;
  $("status").className = problem ? "problem" : "quiet";
}
async function ask(path, question) {
  say("working …");
  const sent = question instanceof Blob
    ? { body: question, headers: { "content-type": "application/octet-stream" } }
    : { body: JSON.stringify(question), headers: { "content-type": "application/json" } };
  try {
    const response = await fetch(path, { method: "POST", ...sent });
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.error);
    say("");
    return answer;
  } catch (problem) {
    say(problem.message, true);
    return null;
  }
}
function showHits(answer) {
  if (!answer) return;
  $("results").replaceChildren(...answer.models.map((one) => element("div", {},
    element("h3", { textContent: one.name }),
    element("p", { className: "quiet", textContent:
      `query ${one.encode_milliseconds.toFixed(0)} ms, search ${one.search_milliseconds.toFixed(1)} ms` }),
    element("ol", { className: "hits" }, ...one.results.map(hit)))));
}
function hit(row, place) {
  const told = row.text || row.key;
  const button = element("button", { type: "button", title: `${row.key}${row.text ? ` — ${row.text}` : ""}` },
    element("img", { src: `image/${row.model}/${row.row}?small`, alt: told, loading: "lazy" }),
    element("span", { textContent: `${place + 1}. ${row.score.toFixed(3)}` }),
    element("span", { className: "quiet", textContent: told }));
  button.addEventListener("click", () =>
    choose({ model: row.model, row: row.row }, `image/${row.model}/${row.row}`));
  return element("li", {}, button);
}
function choose(name, address) {
  chosen = name;
  $("image").src = address;
  $("workbench").hidden = false;
  $("scores").replaceChildren();
  $("maps").replaceChildren();
  setBox(null);
  $("canvas").focus();
  $("canvas").scrollIntoView({ block: "nearest" });
}
function setBox(found) {
  box = found;
  $("box").hidden = !box;
  const edges = ["x1", "y1", "x2", "y2"];
  edges.forEach((edge, number) => { $(edge).value = box ? (100 * box[number]).toFixed(1) : ""; });
  if (!box) return;
  const [x1, y1, x2, y2] = box.map((share) => 100 * share);
  Object.assign($("box").style, { left: `${x1}%`, top: `${y1}%`, width: `${x2 - x1}%`, height: `${y2 - y1}%` });
}
const inside = (share) => Math.min(1, Math.max(0, share));
function place(event) {
  const frame = $("image").getBoundingClientRect();
  return [inside((event.clientX - frame.left) / frame.width), inside((event.clientY - frame.top) / frame.height)];
}
let start = null;
$("canvas").addEventListener("pointerdown", (event) => {
  start = place(event);
  $("canvas").setPointerCapture(event.pointerId);
});
$("canvas").addEventListener("pointermove", (event) => {
  if (!start) return;
  const [x, y] = place(event);
  const drawn = [Math.min(start[0], x), Math.min(start[1], y), Math.max(start[0], x), Math.max(start[1], y)];
  if (drawn[2] - drawn[0] > LEAST && drawn[3] - drawn[1] > LEAST) setBox(drawn);
});
for (const end of ["pointerup", "pointercancel"]) $("canvas").addEventListener(end, () => { start = null; });
$("canvas").addEventListener("keydown", (event) => {
  if (event.key === "Escape") return setBox(null);
  const by = { ArrowLeft: [-MOVE, 0], ArrowRight: [MOVE, 0], ArrowUp: [0, -MOVE], ArrowDown: [0, MOVE] }[event.key];
  if (!by) return;
  event.preventDefault();
  const [x1, y1, x2, y2] = box || [0.25, 0.25, 0.75, 0.75];
  if (event.shiftKey) {
    setBox([x1, y1, inside(Math.max(x1 + MOVE, x2 + by[0])), inside(Math.max(y1 + MOVE, y2 + by[1]))]);
  } else {
    const x = Math.min(Math.max(by[0], -x1), 1 - x2), y = Math.min(Math.max(by[1], -y1), 1 - y2);
    setBox([x1 + x, y1 + y, x2 + x, y2 + y]);
  }
});
for (const edge of document.querySelectorAll(".edge")) edge.addEventListener("change", () => {
  const typed = ["x1", "y1", "x2", "y2"].map((name) => $(name).value === "" ? NaN : inside($(name).value / 100));
  if (typed.every(Number.isFinite) && typed[0] < typed[2] && typed[1] < typed[3]) setBox(typed);
});
$("search").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (!$("text").value.trim()) return say("type a few words first", true);
  showHits(await ask("search/text", { text: $("text").value, kind: $("kind").value }));
});
$("file").addEventListener("change", async () => {
  const file = $("file").files[0];
  if (!file) return;
  const sent = await ask("upload", new Blob([file]));
  if (sent) choose({ upload: sent.upload }, `sent/${sent.upload}`);
});
$("like-box").addEventListener("click", async () => {
  if (!box) return say("draw a box first", true);
  showHits(await ask("search/image", { image: chosen, box }));
});
$("like-image").addEventListener("click", async () => showHits(await ask("search/image", { image: chosen })));
$("score").addEventListener("submit", async (event) => {
  event.preventDefault();
  const phrases = $("phrases").value.split("\n").map((line) => line.trim()).filter(Boolean);
  if (!phrases.length) return say("type a phrase first", true);
  const answer = await ask("score", { image: chosen, box, phrases });
  if (answer) $("scores").replaceChildren(...answer.models.map((one) => element("div", {},
    element("h3", { textContent: one.name }), scoreTable(one.phrases))));
});
function scoreTable(rows) {
  const head = element("tr", {}, ...["phrase", "share", "cosine"].map((text) =>
    element("th", { scope: "col", textContent: text })));
  const body = rows.map((row) => {
    const share = element("td", { className: "number" });
    if (row.share !== null) share.append(element("progress", { max: 1, value: row.share }),
      ` ${(100 * row.share).toFixed(1)} %`);
    return element("tr", {}, element("td", { className: "phrase", textContent: row.phrase }), share,
      element("td", { className: "number", textContent: row.cosine.toFixed(3) }));
  });
  return element("table", {}, element("thead", {}, head), element("tbody", {}, ...body));
}
$("heat").addEventListener("submit", async (event) => {
  event.preventDefault();
  const phrase = $("phrase").value.trim();
  if (!phrase) return say("type a phrase first", true);
  const answer = await ask("heat", { image: chosen, phrase });
  if (answer) $("maps").replaceChildren(...answer.models.map((one) => element("figure", {},
    element("figcaption", { textContent: `${one.name}: cosine ${one.low.toFixed(2)} (blue) to ${one.high.toFixed(2)} (red)` }),
    element("img", { className: "map", src: one.image, alt: `heat map of ${phrase}` }))));
});
ask("facts", {}).then((answer) => {
  if (!answer) return;
  $("models").textContent = answer.models.map((one) => one.name).join(" beside ");
  const images = answer.models[0].images;
  if (!images) { $("search").hidden = true; say("No data to search: send an image below."); }
  else say(`${images.toLocaleString("en")} images`);
});
