"""The Triton kernels against torch; `test_triton` runs this where an interpreter runs the kernels.

On a GPU they are compiled instead.
"""

import os
from itertools import product

import pytest
import torch
from torch import Tensor

from mae_nas.backbone import CellSpec, FeatureInfo
from mae_nas.masking import Masking
from mae_nas.relaxations import Mixture
from mae_nas.spaces import SearchSpace
from mae_nas.supernet import FusedCell
from mae_nas.supernet.depthwise import Convolutions, Form, choose, plain, triton, triton_launch
from mae_nas.supernet.sites import Sites, sites_at

DEVICE = torch.device("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda")
FORMS = [Form(*form) for form in sorted(triton.FORMS)]
TOLERANCES = triton._TOLERANCES
GEOMETRIES = {"dense": (None, 6, 10), "packed": (4, 8, 8), "mixed": (1, 8, 8)}
"""Side of a patch, height and width. A patch of one pixel is no cell of a coarser map."""
SHARING = {"one": (0, 0, 0), "each": (0, 1, 2), "some": (0, 1, 0)}


@pytest.fixture(autouse=True)
def larger_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter takes as long for a small block."""
    monkeypatch.setattr(triton_launch, "_BYTES", 16 * triton_launch._BYTES)


def sites_of(form: Form, geometry: str) -> tuple[Sites, Sites]:
    patch, height, width = GEOMETRIES[geometry]
    visible = None
    if patch is not None:
        masking = Masking(0.5, patch, "sparse")
        hidden = masking.sample(9, torch.arange(2, device=DEVICE), height)
        visible = masking.visible(hidden)
    target = (2, height // form.stride, width // form.stride)
    return sites_at(visible, 1, (2, height, width)), sites_at(visible, form.stride, target)


def passes(
    module: object, form: Form, sites: tuple[Sites, Sites], owners: tuple[int, ...], *given: Tensor
) -> list[Tensor]:
    """Outputs, gradients of the inputs, which start at one, and of the taps."""
    x, weight, shift, sent = given
    forward, backward = module  # type: ignore[misc]
    channels = x.shape[-1]
    wide = [torch.zeros(sites[1].rows, (2 + e) * channels).to(x) for e in range(len(owners))]
    out = [matrix[:, channels : 2 * channels] for matrix in wide]
    gradients = [torch.cat([g, g, g], 1)[:, channels : 2 * channels] for g in sent]
    edges, to_x = Convolutions(form, [x[o] for o in owners], weight, *sites), torch.ones_like(x)
    forward(edges, shift, out)
    to_weight = backward(edges, gradients, [to_x[o] for o in owners], True)
    assert all((matrix[:, :channels] == 0).all() for matrix in wide)
    assert all((matrix[:, 2 * channels :] == 0).all() for matrix in wide)
    return [*out, *to_x.unbind(), to_weight]


def check(
    form: Form,
    geometry: str,
    dtype: torch.dtype,
    sharing: tuple[int, ...],
    channels: int = 8,
    ours: object = (triton_launch.compute, triton_launch.differentiate),
) -> None:
    sites, edges = sites_of(form, geometry), len(sharing)
    shapes = (
        (max(sharing) + 1, sites[0].rows, channels),
        (edges, form.kernel, form.kernel, channels),
        (edges, channels),
        (edges, sites[1].rows, channels),
    )
    given = [torch.randn(shape).to(DEVICE, dtype) for shape in shapes]
    found = passes(ours, form, sites, sharing, *given)
    theirs = (plain.forward, plain.backward)
    expected = passes(theirs, form, sites, sharing, *[each.double() for each in given])
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        assert (one - other).abs().max() <= TOLERANCES[dtype] * other.abs().max()


# The larger kernel, which takes longest, in one geometry each.
@pytest.mark.parametrize(
    ("form", "geometry"),
    [
        (form, geometry)
        for form, geometry in product(FORMS, ("dense", "packed"))
        if form.kernel == 3 or (geometry == "packed") == (form.dilation == form.stride)
    ],
)
def test_each_form(form: Form, geometry: str) -> None:
    check(form, geometry, torch.float64, (0, 0) if geometry == "dense" else (0,))


@pytest.mark.parametrize("dtype", list(TOLERANCES)[1:])
def test_each_type_passes_the_comparison_of_first_use(dtype: torch.dtype) -> None:
    check(Form(3, 1, 1), "packed", dtype, SHARING["one"], 24, (triton.forward, triton.backward))
    served = triton._passes(Form(3, 1, 1), dtype, DEVICE, 24, (True, True))
    assert served == (triton_launch.compute, triton_launch.differentiate)


def test_shift_and_gradient_of_taps_can_be_left_out() -> None:
    sites = sites_of(Form(3, 1, 1), "dense")
    x, out = torch.randn(2, sites[0].rows, 8, device=DEVICE).double()
    weight = torch.randn(1, 3, 3, 8, device=DEVICE).double()
    edges = Convolutions(Form(3, 1, 1), [x], weight, *sites)
    triton_launch.compute(edges, None, [out])
    expected = torch.empty_like(out)
    plain.forward(edges, None, [expected])
    assert (out - expected).abs().max() < 1e-12
    assert triton_launch.differentiate(edges, [expected], [out], False) is None
    plain.backward(edges, [expected], [added := torch.zeros_like(x)], False)
    assert (out - expected - added).abs().max() < 1e-12


def test_a_map_without_rows_for_hidden_sites_leads_to_one_with() -> None:
    source, target = sites_of(Form(3, 1, 2), "mixed")
    assert source.is_packed
    assert not target.is_packed
    check(Form(3, 1, 2), "mixed", torch.float64, SHARING["one"])


def test_some_edges_share_a_gradient_and_others_do_not() -> None:
    check(Form(3, 2, 1), "dense", torch.float64, SHARING["some"])


def test_more_edges_than_one_launch_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_launch, "_AT_ONCE", 2)
    check(Form(3, 1, 1), "packed", torch.float64, SHARING["each"])
    check(Form(3, 1, 1), "packed", torch.float64, SHARING["one"])


def test_a_strip_has_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_launch, "_STRIPS", 3)
    monkeypatch.setattr(triton_launch, "_BYTES", 1024)  # 16 rows
    check(Form(3, 1, 1), "dense", torch.float64, (0,))


@pytest.mark.slow
@pytest.mark.parametrize(("sharing", "channels"), [("one", 8), ("each", 24), ("some", 8)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("form", FORMS)
def test_everything_together(
    form: Form, geometry: str, dtype: torch.dtype, channels: int, sharing: str
) -> None:
    check(form, geometry, dtype, SHARING[sharing], channels)


class Small(SearchSpace):
    """Two edges that share an input, and one that does not."""

    nodes = 2

    def primitives(self, kind: str) -> list[list[str]]:
        del kind
        rows = [["sep_conv_3x3"], ["skip_connect"], ["sep_conv_3x3"]]
        return [*rows, ["dil_conv_5x5"], ["skip_connect"]]


@pytest.mark.parametrize(
    ("kind", "is_sparse"),
    [("normal", True), pytest.param("reduce", False, marks=pytest.mark.slow)],
)
def test_a_cell_takes_both_steps_as_with_torch(kind: str, is_sparse: bool) -> None:
    """Gradients of α with the weights frozen, then those of the weights."""
    spec, side, found = CellSpec(kind, 8, (FeatureInfo(8, 1), FeatureInfo(8, 1))), 8, []
    masking = Masking(0.5, 4, "sparse")
    hidden = masking.sample(5, torch.arange(2, device=DEVICE), side)
    visible = masking.visible(hidden) if is_sparse else None
    image = torch.randn(2, 8, side, side).double().to(DEVICE)
    image = image if visible is None else image.where(visible.at(1), 0.0)
    scores = torch.randn(Small().shape(kind)).double().to(DEVICE)
    weights = FusedCell(Small(), spec).double().state_dict()
    for compiles, name in ((True, "fused-triton"), (False, "fused-torch")):
        cell = FusedCell(Small(), spec, compiles).double().to(DEVICE)
        cell.load_state_dict(weights)
        for is_architecture in (True, False):
            cell.requires_grad_(not is_architecture)
            alpha = scores.clone().requires_grad_(is_architecture)
            state = cell.enter(image)
            y = cell(state, state, Mixture(alpha), visible).dense()
            wanted = [alpha] if is_architecture else list(cell.parameters())
            found += [y, *torch.autograd.grad(y.sin().sum(), wanted)]
        found += cell.state_dict().values()
        assert cell.implementation == name
    half = len(found) // 2
    for one, other in zip(found[:half], found[half:], strict=True):
        assert (one - other).abs().max() < 1e-10


def test_tensors_of_this_device_are_served() -> None:
    for dtype, width in product(TOLERANCES, (8, 24)):
        assert choose(torch.empty(5, width, dtype=dtype, device=DEVICE)) is triton
    assert choose(torch.empty(5, 12, device=DEVICE)) is not triton
    assert choose(torch.empty(5, 8, dtype=torch.int32, device=DEVICE)) is plain
    assert choose(torch.empty(5, 8, device=DEVICE), allowed=False) is plain
