// What screen readers miss in the theme and in tables: the name of a toggle, and headers without a text.
document.addEventListener("DOMContentLoaded", () => {
  for (const toggle of document.querySelectorAll("summary")) {
    if (!toggle.textContent.trim()) {
      toggle.setAttribute("aria-label", `Pages below ${toggle.closest("li")?.querySelector("a")?.textContent.trim() ?? "this one"}`);
    }
  }
  for (const header of document.querySelectorAll("th")) {
    if (!header.textContent.trim()) {
      const cell = document.createElement("td");
      cell.className = header.className;
      header.replaceWith(cell);
    }
  }
});
