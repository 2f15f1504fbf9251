// Keeps the page up to date: it is fetched again every two seconds, and what has data-live takes the place of what was
// there. Nothing is built from text here: the server has escaped all that a peer chose.
"use strict";

const PAUSE = 2000;
const state = document.getElementById("state");
const button = document.getElementById("pause");
let isPaused = false;

function keys(part) {
  return new Set([...part.querySelectorAll("[data-key]")].map((row) => row.dataset.key));
}

function take(page) {
  for (const old of document.querySelectorAll("[data-live]")) {
    const fresh = page.getElementById(old.id);
    if (!fresh) continue;
    const known = keys(old);
    for (const row of fresh.querySelectorAll("[data-key]")) {
      if (!known.has(row.dataset.key)) row.classList.add("new");
    }
    old.replaceWith(document.adoptNode(fresh));
  }
  document.title = page.title;
  state.textContent = "live, " + page.getElementById("state").textContent;
}

async function update() {
  // What somebody has marked to copy it stays.
  if (!isPaused && !document.hidden && getSelection().isCollapsed) {
    try {
      const answer = await fetch("/", {headers: {Accept: "text/html"}, cache: "no-store", signal: AbortSignal.timeout(8000)});
      if (!answer.ok) throw new Error(answer.status);
      take(new DOMParser().parseFromString(await answer.text(), "text/html"));
      state.parentElement.classList.remove("lost");
    } catch {
      if (!state.parentElement.classList.contains("lost")) state.textContent = "no answer; " + state.textContent;
      state.parentElement.classList.add("lost");
    }
  }
  setTimeout(update, PAUSE);
}

button.hidden = false;
button.addEventListener("click", () => {
  isPaused = !isPaused;
  button.textContent = isPaused ? "go on" : "pause";
});
setTimeout(update, PAUSE);
