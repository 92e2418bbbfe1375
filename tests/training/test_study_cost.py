from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import training.study.cost as cost
from models.circuit import student_circuit, trainable_parameters
from models.engines.compiled import MultilinearTensor
from training.study.cost import cost_plot, cost_table, interleaved, measure_cost, table_bytes


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    torch.set_num_threads(1)
    return measure_cost(qubits=(2, 4), presets=("chain", "paper"), repeats=3)


def test_every_preset_is_measured_with_every_number_of_qubits(figures: dict[str, Any]) -> None:
    found = [(row["preset"], row["n_qubits"]) for row in figures["rows"]]
    assert found == [("chain", 2), ("chain", 4), ("paper", 2), ("paper", 4)]
    for row in figures["rows"]:
        circuit = student_circuit(row["preset"], row["n_qubits"], figures["circuit"]["n_layers"])
        assert row["parameters"] == trainable_parameters(figures["circuit"]["embedding_size"], circuit, 2)
        assert row["training_step_ms"] == pytest.approx(row["training_us"] * figures["method"]["batch"] / 1e3)
        assert row["compiled_us"] > 0
        assert row["compiled_bytes"] % 8 == 0


def test_table_of_a_circuit_is_its_factors() -> None:
    whole = MultilinearTensor(np.zeros((2, 3, 3)), None, 1, 1)
    cut = MultilinearTensor(np.zeros((2, 3, 1)), np.zeros((1, 3)), 1, 1)
    assert (table_bytes(whole), table_bytes(cut)) == (18 * 8, (6 + 3) * 8)


def test_circuit_beyond_the_compiled_engine_is_measured_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "MAX_QUBITS", 2)
    figures = measure_cost(qubits=(2, 3), presets=("chain",), repeats=1)
    inside, beyond = figures["rows"]
    assert inside["compiled_bytes"] is not None
    assert [beyond[name] for name in ("compiled_us", "compiled_bytes", "compile_seconds", "faster")] == [None] * 4
    assert beyond["training_us"] > 0
    assert cost_table(figures, "chain").rows[1][5:] == ["beyond the engine"] * 4


def test_without_mindquantum_there_is_no_state_vector_and_no_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "find_spec", lambda name: None)
    figures = measure_cost(qubits=(2,), presets=("chain",), repeats=1)
    (row,) = figures["rows"]
    assert row["state_vector_us"] is None
    assert row["faster"] is None
    assert cost_table(figures, "chain").rows[0][4] == "not measured"
    assert cost_table(figures, "chain").rows[0][6] == "not measured"


def test_functions_take_turns_after_a_call_that_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(cost, "_seconds", lambda function, calls: (function(), 1.0)[1])
    seconds = interleaved({name: lambda name=name: called.append(name) for name in "ab"}, repeats=2)  # type: ignore[misc]
    assert called == ["a", "a", "b", "b", "a", "b", "a", "b"]
    assert seconds == {"a": [1.0, 1.0], "b": [1.0, 1.0]}


def made_up() -> dict[str, Any]:
    rows = [
        {
            "preset": "chain",
            "n_qubits": n,
            "parameters": {"ansatz": 6 * n, "total": 1000 * n},
            "training_step_ms": 2.0 * n,
            "training_us": 31.25 * n,
            "state_vector_us": 100.0 * n,
            "compiled_us": 0.5 * n,
            "compile_seconds": 0.25,
            "compiled_bytes": 12_000,
            "faster": 200.0,
        }
        for n in (2, 3)
    ]
    method = {"repeats": 3, "batch": 64, "compiled_up_to_qubits": 12}
    return {"circuit": {"n_layers": 2, "n_classes": 2, "embedding_size": 768}, "method": method, "rows": rows}


def test_row_has_figures_and_how_many_times_the_first_rows_they_are() -> None:
    table = cost_table(made_up(), "chain")
    second = ["3", "18", "3,000", "6 (1.5×)", "300 (1.5×)", "1.5 (1.5×)", "200×", "12,000", "0.25"]
    assert table.rows[1] == second
    assert len(table.header) == len(second)
    assert cost_table(made_up(), "paper").rows == []


def test_large_figures_are_written_out() -> None:
    figures = made_up()
    figures["rows"][1]["state_vector_us"] = 1234.6
    assert cost_table(figures, "chain").rows[1][4] == "1,235 (6.17×)"


def test_benchmark_of_the_project_has_every_number_of_qubits() -> None:
    path = Path(__file__).parents[2] / "docs" / "bench-cost.json"
    figures = json.loads(path.read_text(encoding="utf-8"))
    for preset in cost.PRESETS:
        assert [row[0] for row in cost_table(figures, preset).rows] == [str(n) for n in cost.QUBITS]


def test_plot_is_drawn_and_equal_figures_give_equal_files(tmp_path: Path) -> None:
    paths = [tmp_path / "plots" / name for name in ("a.png", "b.png")]
    assert [cost_plot(made_up(), path) for path in paths] == [True, True]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].read_bytes().startswith(b"\x89PNG")


def test_figures_that_lack_a_way_are_drawn_without_it(tmp_path: Path) -> None:
    figures = made_up()
    for row in figures["rows"]:
        row |= dict.fromkeys(("state_vector_us", "compiled_us", "compiled_bytes"))
    assert cost_plot(figures, tmp_path / "cost.png")


def test_nothing_measured_leaves_no_plot(tmp_path: Path) -> None:
    path = tmp_path / "cost.png"
    cost_plot(made_up(), path)
    assert not cost_plot({**made_up(), "rows": []}, path)
    assert not path.exists()
