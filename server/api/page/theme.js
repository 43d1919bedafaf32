/* The colours: the system's, or what was chosen here before. A classic script in the head, so that nothing flashes. */
(() => {
  const KEY = "peftserve.theme";
  const ORDER = ["auto", "light", "dark"];

  function read() {
    try {
      return ORDER.includes(localStorage.getItem(KEY)) ? localStorage.getItem(KEY) : "auto";
    } catch {
      return "auto"; // storage may be forbidden
    }
  }

  function keep(theme) {
    try {
      localStorage.setItem(KEY, theme);
    } catch {
      /* it holds until the page is left */
    }
  }

  function show(theme) {
    document.documentElement.dataset.theme = theme;
    const button = document.getElementById("theme");
    if (button) button.lastElementChild.textContent = theme;
  }

  let theme = read();
  show(theme);
  document.addEventListener("DOMContentLoaded", () => {
    show(theme);
    document.getElementById("theme").addEventListener("click", () => {
      theme = ORDER[(ORDER.indexOf(theme) + 1) % ORDER.length];
      keep(theme);
      show(theme);
    });
  });
})();
