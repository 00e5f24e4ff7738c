"use strict";

const figures = JSON.parse(document.getElementById("figures").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");

// A value {css: name} in a figure stands for the page's custom property --name, so that figures follow the theme.
function themed(value, style) {
  if (Array.isArray(value)) return value.map((entry) => themed(entry, style));
  if (value === null || typeof value !== "object") return value;
  if (typeof value.css === "string") return style.getPropertyValue("--" + value.css).trim();
  return Object.fromEntries(Object.entries(value).map(([key, entry]) => [key, themed(entry, style)]));
}

function draw() {
  const style = getComputedStyle(document.documentElement);
  for (const figure of figures) {
    const { data, layout } = themed(figure, style);
    Plotly.react(figure.id, data, layout, { displayModeBar: false, responsive: true });
  }
}

// What scrolls must be reachable by keyboard, and nothing else should stop it.
function focusable() {
  for (const box of document.querySelectorAll(".scroll, pre")) {
    const scrolls = box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight;
    if (scrolls) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}

dark.addEventListener("change", draw);
addEventListener("resize", focusable);
document.addEventListener("toggle", focusable, true);
draw();
focusable();
