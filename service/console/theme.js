// A classic script in the head: the theme is set before anything is painted.
(() => {
  const themes = ["auto", "light", "dark"];
  const root = document.documentElement;

  const stored = () => {
    try {
      return localStorage.getItem("qd-theme");
    } catch {
      return null; // storage may be switched off
    }
  };

  const show = (theme) => {
    root.dataset.theme = theme;
    const button = document.getElementById("theme");
    if (button) button.textContent = `Theme: ${theme}`;
  };

  let theme = themes.includes(stored()) ? stored() : "auto";
  show(theme);
  document.addEventListener("DOMContentLoaded", () => {
    show(theme);
    document.getElementById("theme").addEventListener("click", () => {
      theme = themes[(themes.indexOf(theme) + 1) % themes.length];
      show(theme);
      try {
        localStorage.setItem("qd-theme", theme);
      } catch {
        // It then lasts as long as the page.
      }
    });
  });
})();
