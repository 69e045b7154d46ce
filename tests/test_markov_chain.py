"""Markov chains: closed forms, power iteration, brute force over small graphs; controls that must differ."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_gpt
from hypothesis import given, settings
from hypothesis import strategies as st

from analyses.markov_chain import LIMIT, count_transitions, markov_chain, places, transition_matrix
from analyses.shared import contract
from analyses.shared.chains import (
    closed_classes,
    distance,
    distances,
    entropy_bits,
    mixing_time,
    period,
    second_eigenvalue,
    state_bits,
    stationary,
)
from analyses.shared.panels import Graph, Matrix
from interp.errors import InputError, NotApplicable
from interp.models.gpt import HookedGPT
from interp.text.tokenizer import Tokenizer
from reports import figures
from reports.page.views import view


def random_chain(n: int, seed: int, zeros: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    matrix = rng.random((n, n)) * (rng.random((n, n)) >= zeros)
    matrix[np.arange(n), (np.arange(n) + 1) % n] += 0.05  # a cycle through all: irreducible
    return matrix / matrix.sum(1, keepdims=True)


def two_states(p: float, q: float) -> np.ndarray:
    return np.array([[1 - p, p], [q, 1 - q]])


def small(d_vocab: int = 2, context: int = 3, **config: object) -> HookedGPT:
    return make_gpt(n_layers=1, n_heads=1, d_model=8, n_ctx=max(4, context), d_vocab=d_vocab, **config)


# The chain itself.


@settings(deadline=None)
@given(p=st.floats(1e-6, 1), q=st.floats(1e-6, 1))
def test_two_states_have_closed_forms(p: float, q: float) -> None:
    matrix = two_states(p, q)
    np.testing.assert_allclose(stationary(matrix), [q / (p + q), p / (p + q)], rtol=1e-12)
    assert second_eigenvalue(matrix) == pytest.approx(abs(1 - p - q), abs=1e-9)
    start = max(p, q) / (p + q)  # distance of the worst start, which fades by |1 - p - q| each step
    np.testing.assert_allclose(
        distances(matrix, stationary(matrix), (0, 1, 5)), [start * abs(1 - p - q) ** t for t in (0, 1, 5)], atol=1e-12
    )


@pytest.mark.parametrize(("p", "q"), [(0.1, 0.2), (0.01, 0.03), (0.5, 0.5), (1e-4, 2e-4)])
def test_mixing_time_of_two_states(p: float, q: float) -> None:
    """The first t with max(p, q) / (p + q) |1 - p - q|^t <= 1/4."""
    matrix = two_states(p, q)
    share = max(p, q) / (p + q)
    t = 0
    while share * abs(1 - p - q) ** t > 0.25:
        t += 1
    assert mixing_time(matrix, stationary(matrix)) == t


@settings(deadline=None, max_examples=30)
@given(n=st.integers(2, 12), seed=st.integers(0, 10_000), zeros=st.sampled_from([0.0, 0.5, 0.8]))
def test_stationary_distribution_is_where_power_iteration_ends(n: int, seed: int, zeros: float) -> None:
    matrix = random_chain(n, seed, zeros)
    lazy = (matrix + np.eye(n)) / 2  # the same distribution, and never periodic
    expected = np.full(n, 1 / n) @ np.linalg.matrix_power(lazy, 2**16)
    np.testing.assert_allclose(stationary(matrix), expected, atol=1e-10)
    np.testing.assert_allclose(stationary(matrix) @ matrix, stationary(matrix), atol=1e-13)


def test_another_distribution_does_not_stay() -> None:
    """Control: what the test above asks is not true of every distribution."""
    matrix = random_chain(6, seed=0)
    even = np.full(6, 1 / 6)
    assert np.abs(even @ matrix - even).max() > 0.01


def test_very_rare_states_keep_their_digits() -> None:
    """A chain that climbs with probability 1e-4 a step: each state is about 1e-4 times as likely as the one before."""
    n, up = 6, 1e-4
    matrix = np.zeros((n, n))
    for i in range(n):
        matrix[i, min(i + 1, n - 1)] += up
        matrix[i, max(i - 1, 0)] += 1 - up
    ratios = stationary(matrix)[1:] / stationary(matrix)[:-1]
    np.testing.assert_allclose(ratios, up / (1 - up), rtol=1e-10)


@settings(deadline=None, max_examples=30)
@given(n=st.integers(2, 8), seed=st.integers(0, 1000))
def test_mixing_time_is_the_first_step_that_a_plain_loop_finds(n: int, seed: int) -> None:
    matrix = random_chain(n, seed)
    matrix = 0.9 * np.eye(n) + 0.1 * matrix  # slow enough for the search to matter
    goal, here, t = stationary(matrix), np.eye(n), 0
    while distance(here, goal) > 0.25:
        here, t = here @ matrix, t + 1
    assert mixing_time(matrix, goal) == t
    assert mixing_time(matrix, goal, limit=t - 1) is None or t <= 1


def test_a_random_walk_on_a_circle_and_on_a_complete_graph() -> None:
    n = 12
    circle = np.roll(np.eye(n), 1, axis=1) / 2 + np.roll(np.eye(n), -1, axis=1) / 2
    assert period(circle) == 2  # an even circle
    assert second_eigenvalue(circle) == pytest.approx(1)
    odd = np.roll(np.eye(9), 1, axis=1) / 2 + np.roll(np.eye(9), -1, axis=1) / 2
    assert period(odd) == 1
    assert second_eigenvalue(odd) == pytest.approx(math.cos(math.pi / 9))
    complete = np.full((n, n), 1 / n)
    np.testing.assert_allclose(stationary(complete), 1 / n)
    assert mixing_time(complete, stationary(complete)) == 1
    assert entropy_bits(complete) == pytest.approx(math.log2(n))


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 7), seed=st.integers(0, 10_000))
def test_closed_classes_and_periods_are_those_of_brute_force(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = (rng.random((n, n)) < 0.25).astype(float)
    matrix[matrix.sum(1) == 0, rng.integers(n)] = 1.0
    matrix /= matrix.sum(1, keepdims=True)
    reach = np.linalg.matrix_power(np.eye(n) + (matrix > 0), n) > 0
    expected = {
        frozenset(np.flatnonzero(reach[i])) for i in range(n) if all(reach[j, i] for j in np.flatnonzero(reach[i]))
    }
    found = closed_classes(matrix)
    assert {frozenset(members) for members in found} == expected
    for members in found:
        inside = matrix[np.ix_(members, members)]
        powers, returns = np.eye(len(members)), []
        for t in range(1, 2 * n * n + 2):
            powers = ((powers @ inside) > 0).astype(float)
            returns += [t] if powers[0, 0] else []
        assert period(inside) == math.gcd(*returns)


# The model as a chain.


@pytest.mark.parametrize(("d_vocab", "context"), [(2, 3), (3, 2), (2, 1), (1, 2), (4, 3)])
def test_states_and_transitions_are_the_models(d_vocab: int, context: int) -> None:
    model = small(d_vocab, context)
    result = markov_chain(model, context=context)
    assert len(result.states) == d_vocab**context
    assert len(result.states) + len(result.shorter) == sum(d_vocab**n for n in range(1, context + 1))
    both = [*zip(result.shorter, result.shorter_transitions), *zip(result.states, result.transitions)]  # noqa: B905
    for state, row in both:
        expected = model(torch.tensor([state]))[0, -1].double().softmax(-1)
        np.testing.assert_allclose(row, expected.detach().numpy(), atol=1e-6)
    for i, state in enumerate(result.states):
        for token in range(d_vocab):
            j = result.states.index((*state, token)[1:])
            assert result.matrix[i, j] == pytest.approx(result.transitions[i, token])
    assert (result.matrix > 0).sum() == d_vocab ** (context + 1)


def test_long_run_is_what_a_long_sample_shows() -> None:
    """Shares of time, and the mean surprise of a sampled sequence, against the stationary distribution; seed fixed."""
    result = markov_chain(small(init_std=0.6), context=3)
    only = result.only_class
    assert only is not None
    rng, state, visits, surprise, steps = np.random.default_rng(0), 0, np.zeros(8), 0.0, 40_000
    for _ in range(steps):
        token = int(rng.random() > result.transitions[state, 0])
        surprise -= math.log2(result.transitions[state, token])
        state = (2 * state + token) % 8
        visits[state] += 1
    np.testing.assert_allclose(visits / steps, only.stationary, atol=0.02)
    assert surprise / steps == pytest.approx(only.entropy_rate, abs=0.02)
    assert np.abs(visits / steps - np.roll(only.stationary, 1)).max() > 0.05  # control


def test_a_fair_coin_forgets_in_as_many_steps_as_it_remembers() -> None:
    """Zero weights: every arrow is 1/2, the entropy rate one bit, and three steps later the start is forgotten."""
    model = small()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    result = markov_chain(model, context=3)
    assert result.only_class is not None
    assert result.only_class.entropy_rate == pytest.approx(1)
    np.testing.assert_allclose(result.only_class.stationary, 1 / 8)
    np.testing.assert_allclose(result.distance[:4], [7 / 8, 3 / 4, 1 / 2, 0], atol=1e-12)
    assert result.mixing_time == 3
    assert result.second_eigenvalue == pytest.approx(0, abs=1e-4)  # a Jordan block of zeros: the root of rounding


def test_greedy_chains_have_cycles_periods_and_no_mixing_time() -> None:
    """A model that says the other token than the last one: 01 and 10 in turn, from everywhere."""
    model = small(context=2)
    flip = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])  # 00 -> 1, 01 -> 0, 10 -> 1, 11 -> 0
    matrix = transition_matrix(flip)
    (members,) = closed_classes(matrix)
    assert members.tolist() == [1, 2]
    assert period(matrix[np.ix_(members, members)]) == 2
    for seed in range(6):
        result = markov_chain(small(context=2, seed=seed, init_std=1.0), context=2, temperature=0)
        assert set(np.unique(result.transitions)) <= {0.0, 1.0}
        assert all(part.entropy_rate == 0 for part in result.classes)
        alone = len(result.classes) == 1 and result.classes[0].period == 1
        assert (result.mixing_time is not None) == alone
        assert ("no single stationary distribution" in result.words()) == (len(result.classes) > 1)
        assert sum(part.stationary.sum() for part in result.classes) == pytest.approx(len(result.classes))
        for panel in result.panels():
            assert not list(contract.ill_formed(panel))
    assert markov_chain(model, context=2).mixing_time is not None  # control: with chance there is one class


def test_temperature_flattens_the_arrows() -> None:
    model = small(init_std=0.6)
    rates = [markov_chain(model, context=3, temperature=t).only_class.entropy_rate for t in (0.5, 1.0, 2.0, 1e6)]  # type: ignore[union-attr]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(1, abs=1e-6)


def test_transitions_of_a_text_are_counted() -> None:
    model = small()
    model.tokenizer = Tokenizer.of_characters("01")
    counts = count_transitions(model, "111101111011110", 3)
    expected = {"111": (3, 3), "110": (0, 2), "101": (0, 2), "011": (0, 2)}
    for i, state in enumerate(markov_chain(model, context=3).names):
        assert tuple(counts[i]) == expected.get(state, (0, 0))
    assert np.array_equal(counts, count_transitions(model, torch.tensor([[1, 1, 1, 1, 0] * 3]), 3))
    assert markov_chain(model, ["0101", "1"], context=3).seen.sum() == 1  # type: ignore[union-attr]
    assert "too short" in markov_chain(model, "01", context=3).words()


def test_the_result_describes_itself() -> None:
    model = small()
    model.tokenizer = Tokenizer.of_characters("01")
    result = markov_chain(model, "0110100", context=3)
    frame = result.to_dataframe()
    assert len(frame) == 2 * 14
    assert frame["seen"].sum() == 4
    full = frame[frame["state"].str.len() == 3]
    assert full.groupby("state")["probability"].sum().to_numpy() == pytest.approx(1)
    for row in full.itertuples():
        assert row.probability == pytest.approx(result.probability(row.state, row.to))
    keys = [panel.key for panel in result.panels()]
    assert keys == ["graph", "stationary", "settling", "arrows", "long-run"]
    for panel in result.panels():
        assert not list(contract.ill_formed(panel))
        assert figures.figure(panel).get_children()
        assert view(panel, "markov_chain").id
    for finding in result.findings():
        assert not list(contract.ill_said(finding, keys))
    with pytest.raises(InputError, match="state '11'"):
        result.probability("11", "111")


def test_the_drawing_keeps_states_apart_and_has_every_number() -> None:
    for d_vocab, context in ((2, 1), (2, 3), (2, 5), (3, 3), (5, 2)):
        states = markov_chain(small(d_vocab, context), context=context).states
        where = np.array(places(states, d_vocab))
        gaps = np.linalg.norm(where[:, None] - where[None], axis=-1)[~np.eye(len(where), dtype=bool)]
        assert gaps.min() > 0.3 * math.sqrt(2.4 * 1.6 / len(states))
    graph = markov_chain(small(), context=3).graph()
    text = figures.svg(graph).decode()
    for name in graph.nodes:
        assert f">{name}<" in text
    for *_, weight in graph.edges:
        assert f"{weight:.2f}".removeprefix("0") in text


def test_many_states_are_a_heat_map() -> None:
    result = markov_chain(small(3, 4), context=4)
    picture = result.picture()
    assert not list(contract.ill_formed(picture))
    assert isinstance(picture, Matrix)
    assert picture.values is result.transitions
    assert isinstance(markov_chain(small(2, 5), context=5).picture(), Graph)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"context": 0}, "context 0"), ({"context": 9}, "context 9"), ({"context": 2, "temperature": -1.0}, "temperature"),
     ({"context": 2, "temperature": math.nan}, "temperature")],
)  # fmt: skip
def test_impossible_options_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        markov_chain(small(), **options)  # type: ignore[arg-type]


def test_too_many_states_and_foreign_text_are_refused(toy_gpt: HookedGPT) -> None:
    with pytest.raises(InputError, match=f"300 \\^ 2 states\n.*{LIMIT:,}"):
        markov_chain(toy_gpt, context=2)
    with pytest.raises(InputError, match="without a tokenizer"):
        markov_chain(small(), "01", context=2)
    with pytest.raises(InputError, match="token id 7"):
        markov_chain(small(), torch.tensor([[0, 7]]), context=2)
    model = small()
    model.tokenizer = Tokenizer.of_characters("01")
    with pytest.raises(InputError, match="text '012'"):
        markov_chain(model, "012", context=2)


def test_a_model_that_predicts_no_next_token_is_refused() -> None:
    with pytest.raises(NotApplicable, match="next token"):
        markov_chain(small(causal=False), context=2)


def test_size_of_a_state() -> None:
    assert state_bits(2, 3) == 3
    assert state_bits(50257, 2048) == pytest.approx(math.log(50257**2048) / math.log(2))
    assert math.ceil(state_bits(50257, 7)) == (50257**7 - 1).bit_length()


def test_a_placed_graph_is_drawn_whatever_its_labels_and_numbers() -> None:
    """Labels that look like markup or formulas stay text; what is no number, or not positive, has no arrow."""
    names = ("<b>&", "$x_1$", "a\x00", "")
    edges = tuple((i, j, 0.25) for i in range(4) for j in range(4))
    weights = np.array([math.nan, math.inf, 0.0, -1.0, *[0.25] * 12])
    graph = Graph(
        key="g",
        title="t",
        nodes=names,
        columns=(0, 0, 0, 0),
        edges=edges,
        unit="p",
        places=((0, 0), (0, 0.5), (1, 0), (1, 1)),
        values=np.array([0.1, math.nan, 0.5, 0.4]),
        frames={"one": (weights, np.full(4, 0.25)), "two": (weights[::-1], np.zeros(4))},
    )
    for drawn in (graph, replace(graph, frames={}), replace(graph, frames={}, values=None)):
        text = figures.svg(drawn).decode()
        assert "&lt;b&gt;&amp;" in text
        assert "$x_1$" in text
        assert figures.svg(drawn).decode() == text
    shown = view(graph, "s")
    assert shown.grid is not None
    assert shown.grid.columns == ("from", "to", "one", "two")
    alone = Graph(key="g", title="t", nodes=("a",), columns=(0,), edges=((0, 0, 1.0),), unit="p", places=((0, 0),))
    assert ">a<" in figures.svg(alone).decode()
