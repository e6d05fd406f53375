"use strict";
// Before anything is drawn: the theme that the reader chose last time, if any.
(function () {
  try {
    const chosen = localStorage.getItem("chordflow-theme");
    if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
  } catch (error) {
    // A browser may keep nothing for files; the system's theme then stands.
  }
})();
