// Runs before the first paint: a theme that was chosen is there from the start.
(() => {
  let chosen = null;
  try {
    chosen = localStorage.getItem("kvtide-theme");
  } catch {
    // Storage may be switched off; then the system decides.
  }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
