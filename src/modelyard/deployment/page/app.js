// The page of the service: one text in, its label out. Whatever comes from the server or the person is set as text,
// never as HTML.
import { strings } from "./strings.js";

const MOST_BARS = 5;
const at = (id) => document.getElementById(id);
const state = { language: firstLanguage(), info: null, reply: null, milliseconds: 0, error: null, allBars: false };
let running = null;

function firstLanguage() {
  try {
    const kept = localStorage.getItem("language");
    if (kept in strings) return kept;
  } catch {
    // storage may be switched off; the choice is then not kept
  }
  return navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";
}

const say = () => strings[state.language];
const number = (value) => new Intl.NumberFormat(state.language).format(value);

function percent(value, digits = 1) {
  const format = new Intl.NumberFormat(state.language, {
    style: "percent",
    minimumFractionDigits: digits,
    maximumFractionDigits: digits,
  });
  const step = 0.1 ** (digits + 2);
  if (value > 1 - step && value < 1) return `> ${format.format(1 - step)}`; // never "100%" for what is not certain
  if (value > 0 && value < step) return `< ${format.format(step)}`;
  return format.format(value);
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.append(text);
  return made;
}

function show(id, visible) {
  at(id).hidden = !visible;
}

function drawAll() {
  const words = say();
  document.documentElement.lang = state.language === "zh" ? "zh-CN" : "en";
  for (const node of document.querySelectorAll("[data-string]")) node.textContent = words[node.dataset.string];
  at("bars").setAttribute("aria-label", words.bars);
  at("text").placeholder = words.placeholder;
  at("language").textContent = words.otherLanguage;
  at("language").lang = words.otherLanguageCode;
  if (running) at("send").firstElementChild.textContent = words.sending;
  drawCount();
  drawInfo();
  drawAnswer();
}

function drawCount() {
  const count = [...at("text").value].length;
  const most = state.info?.limits.max_characters ?? Infinity;
  at("count").textContent = count > most ? say().countOver(number(count), number(most)) : say().count(number(count));
  at("count").classList.toggle("over", count > most);
}

function drawAnswer() {
  const { reply, error } = state;
  show("error", error !== null);
  show("empty", error === null && reply === null);
  show("result", error === null && reply !== null);
  if (error) {
    const [problem, hint] = error();
    at("error").replaceChildren(element("p", "", problem), element("p", "", hint));
  } else if (reply) {
    drawReply(reply);
  }
}

function drawReply(reply) {
  const words = say();
  at("label").textContent = reply.label;
  at("probability").textContent = percent(reply.probability);
  show("cut", reply.truncated);
  at("cut").textContent = words.cut(number(reply.num_tokens), number(reply.num_tokens + reply.num_tokens_cut));
  const all = reply.probabilities;
  at("bars").replaceChildren(...all.slice(0, state.allBars ? all.length : MOST_BARS).map(bar));
  show("more", all.length > MOST_BARS);
  at("more").textContent = state.allBars ? words.fewer : words.more(number(all.length));
  at("more").setAttribute("aria-expanded", String(state.allBars));
  drawFacts("costs", [
    [words.tokens, number(reply.num_tokens)],
    [words.cutTokens, number(reply.num_tokens_cut)],
    [words.time, words.milliseconds(number(Math.round(state.milliseconds)))],
  ]);
}

function bar({ label, probability }) {
  const item = element("li");
  const line = element("div", "line");
  line.append(element("span", "", label), element("span", "share", percent(probability)));
  const track = element("div", "track");
  const fill = element("div", "fill");
  fill.style.width = `${100 * probability}%`;
  track.append(fill);
  item.append(line, track);
  return item;
}

function drawFacts(id, pairs) {
  at(id).replaceChildren(...pairs.flatMap(([term, value]) => [element("dt", "", term), element("dd", "", value)]));
}

function drawInfo() {
  const info = state.info;
  if (!info) return;
  const words = say();
  const separator = state.language === "zh" ? "、" : ", ";
  document.title = `${info.name} · modelyard`;
  at("name").textContent = info.name;
  at("lede").textContent =
    info.labels.length > 6 ? words.ledeMany(number(info.labels.length)) : words.lede(info.labels.join(separator));
  drawExamples(info.examples);
  drawChart(info.metrics);
  const others = Object.entries(info.metrics.metrics).slice(1);
  drawFacts("facts", [
    ...others.map(([metric, measured]) => [words.metrics[metric] ?? metric, rangeText(measured).join("")]),
    [words.labels, info.labels.join(separator)],
    [words.reads, words.readsValue(number(info.preprocessing.max_length))],
    [words.model, words.modelValue(info.model.architecture, number(info.model.num_parameters))],
    [words.verified, words.verifiedValue(number(info.parity.num_examples))],
    [words.created, madeOn(info.created)],
    [words.versions, Object.entries(info.versions).map((pair) => pair.join(" ")).join(separator)],
  ]);
  show("about", true);
}

function madeOn(created) {
  return new Intl.DateTimeFormat(document.documentElement.lang, { dateStyle: "long" }).format(new Date(created));
}

function drawExamples(examples) {
  show("examples", examples.length > 0);
  at("example-list").replaceChildren(
    ...examples.map((example) => {
      const button = element("button", "", example.slice(0, 200));
      button.type = "button";
      button.addEventListener("click", () => {
        at("text").value = example;
        drawCount();
        predict();
      });
      const item = element("li");
      item.append(button);
      return item;
    }),
  );
}

function rangeText({ value, low, high }) {
  return say().range(percent(value), percent(low).replace("%", ""), percent(high));
}

function drawChart(summary) {
  const words = say();
  const [metric] = Object.keys(summary.metrics);
  at("chart-title").textContent = words.chartTitle(words.metrics[metric] ?? metric);
  at("chart-note").textContent = words.chartNote(number(summary.num_examples), percent(summary.confidence, 0));
  const rows = [[words.thisModel, summary.metrics[metric]]];
  for (const [name, metrics] of Object.entries(summary.baselines)) {
    if (metrics[metric]) rows.push([words.baselines[name] ?? name, metrics[metric]]);
  }
  const start = Math.floor(Math.min(...rows.map(([, measured]) => measured.low)) * 10) / 10;
  const scale = element("div", "row scale");
  const ends = element("div", "ends");
  ends.append(element("span", "", percent(start, 0)), element("span", "", percent(1, 0)));
  scale.append(element("span", "who"), ends, element("span", "range"));
  at("chart").replaceChildren(...rows.map(([name, measured], n) => chartRow(name, measured, start, n === 0)), scale);
}

function chartRow(name, measured, start, isThis) {
  const place = (value) => `${(100 * (value - start)) / (1 - start || 1)}%`;
  const row = element("div", isThis ? "row this" : "row");
  const axis = element("div", "axis");
  axis.setAttribute("aria-hidden", "true"); // the same numbers stand beside it
  const interval = element("div", "interval");
  interval.style.left = place(measured.low);
  interval.style.right = `calc(100% - ${place(measured.high)})`;
  const point = element("div", "point");
  point.style.left = place(measured.value);
  axis.append(interval, point);
  const [value, range] = rangeText(measured);
  const numbers = element("span", "range");
  numbers.append(element("b", "", value), range);
  row.append(element("span", "who", name), axis, numbers);
  return row;
}

function fail(describe) {
  state.reply = null;
  state.error = describe;
  drawAnswer();
}

async function predict() {
  const text = at("text").value;
  const count = [...text].length;
  const most = state.info?.limits.max_characters ?? Infinity;
  if (!text.trim()) return fail(() => say().errorEmpty);
  if (count > most) return fail(() => say().errorLong(number(count), number(most)));
  running?.abort();
  const mine = (running = new AbortController());
  at("send").setAttribute("aria-busy", "true");
  at("send").firstElementChild.textContent = say().sending;
  const started = performance.now();
  try {
    const response = await fetch("/predict", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ text }),
      signal: mine.signal,
    });
    const content = await response.json();
    if (!response.ok) {
      fail(() => refusal(response.status, content.error));
    } else {
      Object.assign(state, {
        reply: content.predictions[0],
        milliseconds: performance.now() - started,
        error: null,
        allBars: false,
      });
      drawAnswer();
      markStale();
      at("answer").scrollIntoView({ block: "nearest" }); // on a phone it lies below
      if (!state.info) loadInfo();
    }
  } catch {
    if (!mine.signal.aborted) fail(() => say().errorDown);
  } finally {
    if (running === mine) {
      running = null;
      at("send").removeAttribute("aria-busy");
      at("send").firstElementChild.textContent = say().send;
    }
  }

  function markStale() {
    const changed = () => {
      const old = at("text").value !== text;
      at("result").classList.toggle("old", old);
      show("stale", old);
    };
    at("text").oninput = changed;
    changed();
  }
}

function refusal(status, error) {
  const words = say();
  if (words.errorStatus[status]) return words.errorStatus[status];
  return error && state.language === "en" ? [capital(error.problem), capital(error.hint)] : words.errorOther(status);
}

const capital = (sentence) => `${sentence.charAt(0).toUpperCase()}${sentence.slice(1)}.`;

async function loadInfo() {
  try {
    const response = await fetch("/info");
    state.info = await response.json();
    drawAll();
  } catch {
    fail(() => say().errorDown);
  }
}

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  predict();
});
at("text").addEventListener("input", drawCount);
at("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    predict();
  }
});
at("more").addEventListener("click", () => {
  state.allBars = !state.allBars;
  drawAnswer();
});
at("language").addEventListener("click", () => {
  state.language = state.language === "zh" ? "en" : "zh";
  try {
    localStorage.setItem("language", state.language);
  } catch {
    // storage may be switched off
  }
  drawAll();
});
if (navigator.platform.startsWith("Mac")) at("keys").textContent = "⌘ ↵";
drawAll();
loadInfo();
