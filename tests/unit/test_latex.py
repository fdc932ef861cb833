"""What the writers call LaTeX is LaTeX: a real one compiles it, where there is one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from localized_unlearning.reporting.captions import as_latex
from localized_unlearning.reporting.markup import LATEX, Panel, latex


def compiles(body: str, folder: Path) -> str:
    """What pdflatex says of a document with the packages that a table names in its first line."""
    if shutil.which("pdflatex") is None:
        pytest.skip("there is no pdflatex here (Debian: texlive-latex-recommended)")
    package = r"\usepackage{booktabs,graphicx}"
    (folder / "all.tex").write_text(
        f"\\documentclass{{article}}\n{package}\n\\begin{{document}}\n{body}\n\\end{{document}}\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"],
        cwd=folder, capture_output=True, encoding="latin-1", stdin=subprocess.DEVNULL, timeout=120, check=False,
    )  # fmt: skip
    if "booktabs.sty' not found" in done.stdout:
        pytest.skip("this LaTeX has no booktabs (Debian: texlive-latex-recommended)")
    return "\n".join(line for line in done.stdout.split("\n") if line.startswith(("!", "l.")))


def test_a_table_and_a_caption_compile_whatever_their_words_are(tmp_path: Path) -> None:
    """Catches a character that LaTeX has no letter for, an unescaped one, and rows with too many cells."""
    words = "".join(LATEX) + " José Núñez–Łukasz 50 % a_b #1 [.1, .2]"
    rows = [[words, ".5 [.1, .9]", ""], ["b", "", "1,234 (4.7 %)"]]
    panels = [Panel("", ["Localization", words, "n ↑"], rows), Panel(words, ["x", "y", "[z]"], rows)]
    table = latex(words, panels, [words, "† a note"])
    assert table.startswith(r"% \usepackage{booktabs,graphicx}")
    figure = as_latex("figure_3", {"figure_3": words, "reading": words})
    assert not compiles(f"{table}\n\\begin{{figure}}\n{figure}\\end{{figure}}", tmp_path)
    assert compiles("a_b", tmp_path), "the check itself sees nothing"
