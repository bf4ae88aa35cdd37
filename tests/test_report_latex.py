"""The LaTeX table has the board's numbers and only its own commands."""

import re

from rlflow.ranking import make_board
from rlflow.report_latex import latex
from tests.boards import make_cell


def test_latex_has_one_cell_per_column_and_no_bare_special_characters() -> None:
    cells = [
        make_cell("flow_grpo", "a_b", [0.5, 0.7], note="50 % & more"),
        make_cell("fpo", "a_b", [0.9], num_launched=2),
    ]
    text = latex(make_board("toy@1", "d1", cells))
    body = text[text.index("\\toprule") : text.index("\\bottomrule")].splitlines()
    rows = [line for line in body if line.endswith("\\\\")]
    (columns,) = re.findall(r"tabular}{(\w+)}", text)
    assert {len(re.split(r"(?<!\\)&", row)) for row in rows} == {len(columns)} == {7}
    assert r"\texttt{flow\_grpo}" in rows[1]
    assert r"6.000 $\pm$ 1.000\textsuperscript{1} (0.60)" in rows[1]
    assert "(0.90) (1/2)" in rows[2]
    assert r"50 \% \& more." in text
    warned = make_board("toy@1", "d1", cells, warnings=["seed_0 is owed"])
    assert r"more. Warning: seed\_0 is owed.}" in latex(warned)
    assert not re.search(r"(?<!\\)[_#]", "\n".join(rows))
