// Filter and search of the clauses, and opening what an anchor points into. Without it everything is there to unfold.
const find = document.querySelector(".find");
const clauses = [...document.querySelectorAll(".clause")];
const areas = [...document.querySelectorAll(".area")];
const openAtFirst = new Set(areas.filter((area) => area.open));

function show() {
  const words = find.querySelector("input").value.toLowerCase().split(/\s+/).filter(Boolean);
  const pressed = [...find.querySelectorAll("button[aria-pressed=true]")].map((button) => button.dataset.outcome);
  const asked = words.length > 0 || pressed.length > 0;
  let shown = 0;
  for (const clause of clauses) {
    const text = clause.textContent.toLowerCase();
    clause.hidden =
      (pressed.length > 0 && !pressed.includes(clause.dataset.outcome)) || !words.every((word) => text.includes(word));
    shown += !clause.hidden;
  }
  for (const area of areas) {
    const some = area.querySelector(".clause:not([hidden])") !== null;
    area.hidden = !some;
    area.open = asked ? some : openAtFirst.has(area);
  }
  find.querySelector("output").textContent = asked ? `${shown} of ${clauses.length} clauses` : "";
}

function reveal() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let at = target; at; at = at.parentElement) {
    at.hidden = false;
    if (at.tagName === "DETAILS") at.open = true;
  }
  target?.scrollIntoView();
}

find.hidden = false;
find.querySelector("input").addEventListener("input", show);
find.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
  show();
});
addEventListener("hashchange", reveal);
if (location.hash) reveal();
