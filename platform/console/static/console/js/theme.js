// Sets the theme before the first paint. A classic script on purpose: modules wait.
(() => {
  const root = document.documentElement;
  const chosen = root.dataset.theme;
  root.dataset.themeChoice = chosen;
  if (chosen === "light" || chosen === "dark") return;
  root.dataset.theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
})();
