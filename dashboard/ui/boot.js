// Loaded before the modules: a module that does not arrive would leave the page
// waiting for ever, without a word.

addEventListener(
  "error",
  (event) => {
    if (!(event.target instanceof HTMLScriptElement)) return;
    const waiting = document.querySelector(".waiting");
    if (waiting) waiting.textContent = "A part of this page did not arrive. It is loaded again in a moment.";
    setTimeout(() => location.reload(), 2000);
  },
  true, // such an error is told to the element only
);
