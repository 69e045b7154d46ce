"""docs/circuits.md: its Python leaves a circuit, measured, and a file of it."""

from pathlib import Path

import numpy as np
import pytest
from documents import ROOT, run


@pytest.mark.slow
def test_its_code_leaves_a_circuits_file(tmp_path: Path) -> None:
    result = run("circuits.md", (ROOT / "docs" / "circuits.md").read_text(), tmp_path)["found"]
    assert (tmp_path / "circuit.json").stat().st_size > 10_000
    assert np.isfinite(result.facts()["faithfulness"])
    assert list(result.to_dataframe()) == ["sender", "receiver", "input", "score", "exact", "low", "high", "stability"]
