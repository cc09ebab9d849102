const form = document.querySelector(".filters");
const rows = [...document.querySelectorAll("tbody tr")];

function show() {
  const text = form.elements.text.value.trim().toLowerCase();
  const { family, standing, profile } = form.elements;
  let shown = 0;
  for (const row of rows) {
    const fits = row.firstElementChild.textContent.toLowerCase().includes(text)
      && (!family.value || row.dataset.family === family.value)
      && (!standing.value || row.dataset.standings.split("|").includes(standing.value))
      && (!profile.value || row.dataset.profiles.split("|").includes(profile.value));
    row.hidden = !fits;
    shown += fits;
  }
  form.elements.shown.value = `${shown} of ${rows.length}`;
}

form.hidden = false;
form.addEventListener("input", show);
form.addEventListener("submit", (event) => event.preventDefault());
show();

// Addresses in a badge are those of this site, wherever it stands.
for (const code of document.querySelectorAll("details pre code")) {
  code.textContent = code.textContent.replace(/\]\(([^)]+)\)/g, (_, path) => `](${new URL(path, location.href)})`);
}
for (const button of document.querySelectorAll(".copy")) {
  if (!navigator.clipboard) break;
  button.hidden = false;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(button.previousElementSibling.textContent);
    button.textContent = "copied";
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  });
}
