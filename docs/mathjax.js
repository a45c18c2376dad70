// Where pymdownx.arithmatex leaves formulas.
window.MathJax = {
  tex: { inlineMath: [['\\(', '\\)']], displayMath: [['\\[', '\\]']] },
  options: { ignoreHtmlClass: '.*|', processHtmlClass: 'arithmatex' },
};
