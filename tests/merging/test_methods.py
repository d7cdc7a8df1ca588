"""The rules of merging on tensors: identities, bounds, and their definitions in plain float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cluster.errors import InvalidRequest
from cluster.merging import pieces as pieces_module
from cluster.merging.methods import METHODS, Settings, Sources
from cluster.merging.pieces import assemble
from cluster.merging.thinning import Largest, random_masks
from cluster.spec.merge_methods import MERGE_METHODS

ON_CHANGES = ("task_arithmetic", "ties", "dare_linear", "dare_ties")
AVERAGES = ("linear", "ema", "lawa", "slerp")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

settings.register_profile("merging", settings.get_profile("cuvee"), max_examples=40)
settings.load_profile("merging")

shapes = st.lists(st.integers(0, 7), min_size=0, max_size=3).map(tuple)
seeds = st.integers(0, 2**31)
dtypes = st.sampled_from(DTYPES)


def tensor(shape: Sequence[int], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tuple(shape), generator=generator).to(dtype)


def run(
    method: str, tensors: Sequence[Tensor], base: Tensor | None = None, **parameters: object
) -> Tensor:
    num = len(tensors)
    given = {"weight": [1.0] * num, "density": [1.0] * num, "scale": [1.0] * num, **parameters}
    sources = Sources("layer.weight", tensors, base, range(num))
    found = assemble(METHODS[method](sources, Settings(**given)), tensors[0], tensors[0].dtype)  # type: ignore[arg-type]
    assert found is not None
    return found


def test_every_method_of_a_recipe_has_its_rule() -> None:
    assert set(METHODS) == set(MERGE_METHODS) - {"lora", "mergekit"}


@given(shapes, seeds, dtypes, st.sampled_from([*AVERAGES, *ON_CHANGES]))
def test_one_model_is_itself(
    shape: tuple[int, ...], seed: int, dtype: torch.dtype, method: str
) -> None:
    x, base = tensor(shape, seed, dtype), tensor(shape, seed + 1, dtype)
    assert torch.equal(run(method, [x], base), x)


@given(shapes, seeds, dtypes, st.sampled_from([*AVERAGES, *ON_CHANGES]), st.integers(2, 4))
def test_equal_models_are_themselves(
    shape: tuple[int, ...], seed: int, dtype: torch.dtype, method: str, num: int
) -> None:
    x, base = tensor(shape, seed, dtype), tensor(shape, seed + 1, dtype)
    weights = [0.1 + i for i in range(num)]
    found = run(method, [x] * num, base, weight=weights, normalize=True, decay=0.7)
    assert torch.equal(found, x)


@given(shapes, seeds, dtypes)
def test_slerp_ends_in_its_ends(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> None:
    x, y = tensor(shape, seed, dtype), tensor(shape, seed + 1, dtype)
    assert torch.equal(run("slerp", [x, y], t=0.0), x)
    assert torch.equal(run("slerp", [x, y], t=1.0), y)


@given(seeds, st.floats(0, 1))
def test_slerp_keeps_lengths_and_divides_the_angle(seed: int, t: float) -> None:
    x, y = (v / v.norm() for v in (tensor((5, 4), seed), tensor((5, 4), seed + 1)))
    found = run("slerp", [x, y], t=t)
    assert float(found.norm()) == pytest.approx(1, abs=1e-5)
    whole = torch.acos((x * y).sum().clamp(-1, 1))
    part = torch.acos((x * found).sum().clamp(-1, 1))
    assert float(part) == pytest.approx(t * float(whole), abs=2e-3)  # acos near 1 is coarse


@given(seeds, st.lists(st.floats(0.1, 3), min_size=2, max_size=4))
def test_a_spherical_mean_balances_the_directions_to_all(seed: int, weights: list[float]) -> None:
    xs = [tensor((6, 5), seed + i) for i in range(len(weights))]
    found = run("slerp", xs, weight=weights, mean="spherical").double()
    shares = np.array(weights) / sum(weights)
    lengths = [float(x.double().norm()) for x in xs]
    assert float(found.norm()) == pytest.approx(float(shares @ lengths), rel=1e-5)
    mean = found / found.norm()
    pull = torch.zeros_like(mean)
    for x, share in zip(xs, shares, strict=True):
        unit = x.double() / x.double().norm()
        cosine = (unit * mean).sum().clamp(-1, 1)
        pull += share * torch.acos(cosine) / torch.sqrt(1 - cosine**2) * (unit - cosine * mean)
    assert float(pull.norm()) < 1e-4


@given(seeds, st.lists(st.floats(0.01, 3), min_size=2, max_size=4))
def test_repeated_slerp_of_two_is_slerp(seed: int, weights: list[float]) -> None:
    x, y = tensor((4, 3), seed), tensor((4, 3), seed + 1)
    t = weights[1] / (weights[0] + weights[1])
    assert torch.allclose(
        run("slerp", [x, y], weight=weights[:2]), run("slerp", [x, y], t=t), atol=1e-6
    )


@given(shapes, seeds, st.lists(st.floats(-2, 2), min_size=2, max_size=4), st.booleans())
def test_linear_is_the_weighted_sum(
    shape: tuple[int, ...], seed: int, weights: list[float], normalize: bool
) -> None:
    xs = [tensor(shape, seed + i) for i in range(len(weights))]
    total = sum(weights) if normalize else 1.0
    if normalize and total <= 0.1:
        return
    expected = sum(w * x.double() for w, x in zip(weights, xs, strict=True)) / total
    found = run("linear", xs, weight=weights, normalize=normalize)
    assert torch.allclose(found.double(), torch.as_tensor(expected), atol=1e-4, rtol=1e-5)


def test_checkpoint_averages_are_their_recurrences() -> None:
    xs = [tensor((3, 4), i) for i in range(6)]
    mean = xs[0].double()
    for x in xs[1:]:
        mean = 0.8 * mean + 0.2 * x.double()
    assert torch.allclose(run("ema", xs, decay=0.8).double(), mean, atol=1e-6)
    latest = torch.stack(xs[-3:]).double().mean(0)
    assert torch.allclose(run("lawa", xs, window=3.0).double(), latest, atol=1e-6)
    everything = torch.stack(xs).double().mean(0)
    assert torch.allclose(run("lawa", xs, window=99.0).double(), everything, atol=1e-6)


@given(shapes, seeds, st.lists(st.floats(-2, 2), min_size=1, max_size=4), st.floats(-1, 2))
def test_task_arithmetic_adds_changes(
    shape: tuple[int, ...], seed: int, weights: list[float], factor: float
) -> None:
    base, xs = tensor(shape, seed), [tensor(shape, seed + 1 + i) for i in range(len(weights))]
    change = sum(w * (x.double() - base.double()) for w, x in zip(weights, xs, strict=True))
    found = run("task_arithmetic", xs, base, weight=weights, normalize=False, factor=factor)
    assert torch.allclose(found.double(), base.double() + factor * change, atol=1e-4)


@given(shapes, seeds, st.floats(0.05, 1))
def test_ties_of_one_model_keeps_its_largest_changes(
    shape: tuple[int, ...], seed: int, density: float
) -> None:
    x, base = tensor(shape, seed), tensor(shape, seed + 1)
    found = run("ties", [x], base, density=[density])
    change = (x - base).abs().reshape(-1)
    num_kept = x.numel() if density >= 1 else min(x.numel(), max(1, int(density * x.numel())))
    kept = (found != base).reshape(-1)
    assert torch.equal(found[found != base], x[found != base])
    assert int(kept.sum()) == num_kept
    if 0 < num_kept < x.numel():
        assert float(change[kept].min()) >= float(change[~kept].max())


@given(seeds, st.lists(st.tuples(st.floats(0.1, 2), st.floats(0.2, 1)), min_size=2, max_size=4))
def test_ties_is_its_definition(seed: int, models: list[tuple[float, float]]) -> None:
    """Trim, elect, merge, written out element by element in float64."""
    base, xs = tensor((5, 6), seed), [tensor((5, 6), seed + 1 + i) for i in range(len(models))]
    weights, densities = zip(*models, strict=True)
    changes = []
    for x, density in zip(xs, densities, strict=True):
        change = (x - base).reshape(-1).numpy()
        order = np.argsort(-np.abs(change), kind="stable")
        trimmed = np.zeros_like(change)
        kept = order[: len(change) if density >= 1 else max(1, int(density * len(change)))]
        trimmed[kept] = change[kept]
        changes.append(trimmed.astype(np.float64))
    expected = base.reshape(-1).double().numpy().copy()
    for at in range(len(expected)):
        mass = sum(w * c[at] for w, c in zip(weights, changes, strict=True))
        sign = 1 if mass >= 0 else -1
        agreeing = [
            (w, c[at]) for w, c in zip(weights, changes, strict=True) if np.sign(c[at]) == sign
        ]
        if agreeing:
            expected[at] += 0.5 * sum(w * c for w, c in agreeing) / sum(w for w, _ in agreeing)
    found = run("ties", xs, base, weight=weights, density=densities, normalize=True, factor=0.5)
    np.testing.assert_allclose(found.reshape(-1).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "other"), [("dare_linear", "task_arithmetic"), ("dare_ties", "ties")]
)
def test_dare_at_density_1_drops_nothing(method: str, other: str) -> None:
    base, xs = tensor((8, 8), 0), [tensor((8, 8), i) for i in (1, 2, 3)]
    parameters = {"weight": [0.2, 0.5, 0.4], "normalize": False}
    assert torch.equal(run(method, xs, base, **parameters), run(other, xs, base, **parameters))


@pytest.mark.parametrize("rescale", [True, False])
def test_dare_keeps_the_expected_change(rescale: bool) -> None:
    """The mean of 400,000 draws, each with standard deviation √(p (1 - p)) / p where rescaled.

    Five standard errors: a false alarm in 2 million seeds, and the seed is fixed.
    """
    size, density = 400_000, 0.3
    base, x = torch.zeros(size), torch.ones(size)
    found = run("dare_linear", [x], base, density=[density], rescale=rescale, normalize=False)
    scale = 1 / density if rescale else 1.0
    assert found.unique().tolist() == [0.0, pytest.approx(scale)]
    error = scale * (density * (1 - density) / size) ** 0.5
    assert float(found.mean()) == pytest.approx(density * scale, abs=5 * error)


def test_what_dare_drops_follows_from_seed_name_and_place_alone() -> None:
    first = next(random_masks(0.5, 3, "a.weight", 0))
    assert torch.equal(first, next(random_masks(0.5, 3, "a.weight", 0)))
    for other in ((4, "a.weight", 0), (3, "b.weight", 0), (3, "a.weight", 1)):
        agreement = (first == next(random_masks(0.5, *other))).float().mean()
        assert 0.49 < float(agreement) < 0.51


def test_equal_changes_are_kept_from_the_first_on() -> None:
    change = torch.tensor([1.0, -2.0, 2.0, 2.0, 0.5, -2.0])
    keeper = Largest(lambda: iter([change[:3], change[3:]]), 6, 0.5)
    assert keeper.next(change[:3]).tolist() == [False, True, True]
    assert keeper.next(change[3:]).tolist() == [True, False, False]
    none = Largest(lambda: iter([change]), 6, 0.0)
    assert not none.next(change).any()


@pytest.mark.parametrize("method", ["linear", "slerp", "task_arithmetic", "ties"])
def test_pieces_change_nothing(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Borders between pieces are invisible, also to trimming over the whole tensor."""
    base, xs = tensor((10, 13), 0), [tensor((10, 13), i) for i in (1, 2)]
    parameters = {"weight": [0.4, 0.5], "density": [0.3, 0.6]}
    whole = run(method, xs, base, **parameters)
    monkeypatch.setattr(pieces_module, "PIECE", 7)
    assert torch.allclose(run(method, xs, base, **parameters), whole, atol=1e-6)


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "dare_linear", "slerp"])
def test_weights_without_a_positive_sum_are_refused(method: str) -> None:
    xs = [tensor((2, 2), i) for i in (1, 2)]
    with pytest.raises(InvalidRequest, match="sum to 0; expected a sum above 0"):
        run(method, xs, xs[0], weight=[1.0, -1.0], normalize=True, density=[0.5, 0.5])


def test_passthrough_copies_scales_and_silences() -> None:
    x = tensor((3, 3), 0)
    assert torch.equal(run("passthrough", [x]), x)
    assert torch.equal(run("passthrough", [x], scale=[2.0]), 2 * x)
    assert not run("passthrough", [x], scale=[0.0]).any()


@settings(max_examples=20)
@given(dtypes)
def test_what_is_not_finite_is_not_assembled(dtype: torch.dtype) -> None:
    like = torch.zeros(3, dtype=dtype)
    assert assemble(iter([torch.tensor([0.0, float("nan"), 1.0])]), like, dtype) is None
    too_much = assemble(iter([torch.tensor([0.0, 1e30, 1.0])]), like, dtype)
    assert (too_much is None) == (dtype is torch.float16)
