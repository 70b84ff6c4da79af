(function () {
  "use strict";
  var figures = JSON.parse(document.getElementById("figures").textContent);
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  function look(isDark) {
    var ink = isDark ? "#cfd5dc" : "#3b434d", line = isDark ? "#39414b" : "#e1e5ea";
    var paper = isDark ? "#1b2027" : "#ffffff";
    return { "font.color": ink, "hoverlabel.bgcolor": paper, "hoverlabel.font.color": ink,
      "xaxis.gridcolor": line, "yaxis.gridcolor": line,
      "xaxis.linecolor": line, "yaxis.linecolor": line };
  }
  function each(act) { figures.forEach(function (figure, i) {
    act(document.getElementById("plot-" + (i + 1)), figure); }); }
  // A printed page is 1030 pixels wide whatever the window is: plots are drawn anew for it.
  function fit(isPaper) { each(function (node) {
    var wide = node.closest(".wide") !== null;
    Plotly.relayout(node, isPaper ? { autosize: false, width: wide ? 1010 : 500 }
      : { autosize: true, width: null }); }); }
  function paint(isDark) { each(function (node) { Plotly.relayout(node, look(isDark)); }); }
  each(function (node, figure) {
    Plotly.newPlot(node, figure.data, figure.layout,
      { responsive: true, displaylogo: false, displayModeBar: false })
      .then(function () { return Plotly.relayout(node, look(dark.matches)); });
  });
  dark.addEventListener("change", function () { paint(dark.matches); });
  window.addEventListener("beforeprint", function () {
    document.querySelectorAll("details").forEach(function (one) { one.open = true; });
    fit(true);
    paint(false);
  });
  window.addEventListener("afterprint", function () { fit(false); paint(dark.matches); });
})();
