"""Each backend's depthwise convolutions against loops over taps, in float64."""

from collections.abc import Callable
from itertools import product
from types import ModuleType

import pytest
import torch
from torch import Tensor

from mae_nas.masking import Masking
from mae_nas.supernet.depthwise import Convolutions, Form, PoolFunction, Pools, cpp, plain
from mae_nas.supernet.sites import Sites, sites_at

FORMS = [Form(*shape) for shape in product((3, 5), (1, 2), (1, 2))]
BACKENDS = {"torch": plain, "cpp": cpp}


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> ModuleType:
    if request.param == "cpp" and cpp.library() is None:
        pytest.skip("no C++ compiler")
    return BACKENDS[request.param]


def by_taps(x: Tensor, weight: Tensor, form: Form) -> Tensor:
    """(B, C, H, W) by one edge's taps (k, k, C): a sum of shifted copies."""
    reach = form.dilation * (form.kernel // 2)
    padded = torch.nn.functional.pad(x, [reach] * 4)
    height, width = x.shape[2:]
    y = 0
    for u, v in product(range(form.kernel), repeat=2):
        top, left = u * form.dilation, v * form.dilation
        y = y + padded[:, :, top : top + height, left : left + width] * weight[u, v, :, None, None]
    return y[:, :, :: form.stride, :: form.stride]


def sites_of(form: Form, patch: int | None, height: int, width: int) -> tuple[Sites, Sites]:
    visible = None
    if patch is not None:
        masking = Masking(0.5, patch)
        visible = masking.visible(masking.sample(9, torch.arange(3), height))
    target = (3, -(-height // form.stride), -(-width // form.stride))
    return sites_at(visible, 1, (3, height, width)), sites_at(visible, form.stride, target)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("patch", "height", "width"), [(None, 12, 8), (None, 7, 5), (4, 16, 16), (2, 8, 8)]
)
@pytest.mark.parametrize("is_shared", [True, False])
@pytest.mark.parametrize("channels", [8, 12])
def test_outputs_and_gradients_equal_a_sum_over_taps(
    backend: ModuleType,
    form: Form,
    patch: int | None,
    height: int,
    width: int,
    is_shared: bool,
    channels: int,
) -> None:
    if form.stride == 2 and (height % 2 or width % 2):
        pytest.skip("cells halve even sides only")
    source, target = sites_of(form, patch, height, width)
    count = 3
    weight = torch.randn(count, form.kernel, form.kernel, channels, dtype=torch.float64)
    shift = torch.randn(count, channels, dtype=torch.float64)
    one = torch.randn(source.rows, channels, dtype=torch.float64)
    x = [one] * count if is_shared else [torch.randn_like(one) for _ in range(count)]
    edges = Convolutions(form, x, weight, source, target)
    # Outputs and their gradients lie in columns of wider matrices, an edge's own width each.
    out = [torch.zeros(target.rows, (2 + e) * channels).double() for e in range(count)]
    columns = [m[:, channels : 2 * channels] for m in out]
    backend.forward(edges, shift, columns)

    variables = [v.clone().requires_grad_() for v in (weight, *(x[:1] if is_shared else x))]
    leaf, *inputs = variables
    maps = [source.as_map(v) for v in inputs] * (count if is_shared else 1)
    expected = [
        target.as_rows(by_taps(m, w, form)) for m, w in zip(maps, leaf.unbind(), strict=True)
    ]
    for e in range(count):
        assert (columns[e] - (expected[e] - shift[e])).abs().max() < 1e-12
        assert (out[e][:, :channels] == 0).all()
        assert (out[e][:, 2 * channels :] == 0).all()

    gradients = [torch.randn_like(m) for m in out]
    sent = [g[:, channels : 2 * channels] for g in gradients]
    loss = torch.stack([(y * g).sum() for y, g in zip(expected, sent, strict=True)]).sum()
    wanted = torch.autograd.grad(loss, variables)
    to_x = [torch.ones_like(v) for v in (x[:1] if is_shared else x)]  # it is added to
    into = to_x * (count if is_shared else 1)
    to_weight = backend.backward(edges, sent, into, True)
    for ours, theirs in zip([to_weight, *(t - 1 for t in to_x)], wanted, strict=True):
        assert (ours - theirs).abs().max() < 1e-11
    again = [torch.ones_like(v) for v in to_x]
    into = again * (count if is_shared else 1)
    assert backend.backward(edges, sent, into, False) is None
    assert all(map(torch.equal, again, to_x))


def test_the_kernel_says_what_it_does_not_serve() -> None:
    if cpp.library() is None:
        pytest.skip("no C++ compiler")
    served: Callable[..., bool] = lambda *shape, dtype=torch.float32: cpp.serves(  # noqa: E731
        torch.empty(shape, dtype=dtype)
    )
    assert served(5, 16)
    assert served(5, 4, dtype=torch.float64)
    assert not served(5, 6)
    assert not served(5, 16, dtype=torch.bfloat16)
    assert not cpp.serves(torch.empty(5, 16, device="meta"))


def test_the_kernel_refuses_maps_that_do_not_follow_from_each_other() -> None:
    if cpp.library() is None:
        pytest.skip("no C++ compiler")
    source, target = sites_at(None, 1, (3, 12, 8)), sites_at(None, 1, (3, 6, 8))
    edges = Convolutions(
        Form(3, 1, 2), [torch.zeros(source.rows, 8)], torch.zeros(1, 3, 3, 8), source, target
    )
    with pytest.raises(ValueError, match=r"maps of \(6, 4\) expected, not \(6, 8\)"):
        cpp.forward(edges, None, [torch.zeros(target.rows, 8)])
    pools = Pools(cpp.POOLS, 2, edges.x[0], source, target)
    with pytest.raises(ValueError, match=r"maps of \(6, 4\) expected, not \(6, 8\)"):
        cpp.pool(pools)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_the_images_and_give_the_same_bits_twice(threads: int) -> None:
    if cpp.library() is None:
        pytest.skip("no C++ compiler")
    form, (source, target) = Form(5, 1, 1), sites_of(Form(5, 1, 1), None, 16, 16)
    x, g = torch.randn(source.rows, 8), torch.randn(target.rows, 8)
    edges = Convolutions(form, [x], torch.randn(1, 5, 5, 8), source, target)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = []
        for _ in range(2):
            to_x = torch.zeros_like(x)
            to_weight = cpp.backward(edges, [g], [to_x], True)
            assert to_weight is not None
            found.append((to_x, to_weight))
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *found))
    exact = torch.zeros_like(x, dtype=torch.float64)
    wide = edges._replace(x=[x.double()], weight=edges.weight.double())
    reference = plain.backward(wide, [g.double()], [exact], True)
    assert (found[0][1] - reference).abs().max() < 1e-3
    assert (found[0][0] - exact).abs().max() < 1e-4


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("patch", [None, 4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kinds", [cpp.POOLS, cpp.POOLS[:1], cpp.POOLS[1:]])
def test_pools_equal_torchs(
    stride: int, patch: int | None, dtype: torch.dtype, kinds: tuple[PoolFunction, ...]
) -> None:
    if cpp.library() is None:
        pytest.skip("no C++ compiler")
    source, target = sites_of(Form(3, 1, stride), patch, 16, 16)
    x = torch.randint(-3, 3, (source.rows, 12)).to(dtype)  # many are equal: the first wins
    x[5, 3] = torch.nan
    pools = Pools(kinds, stride, x, source, target)
    ours, theirs = (backend.pool(pools) for backend in (cpp, plain))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0, equal_nan=True)
    # As a channels-first map of a single image would have it: rows next to each other.
    gradient = [torch.randn(12, target.rows, dtype=dtype).T for _ in kinds]
    pools = pools._replace(x=x.nan_to_num())
    ours, theirs = (backend.pool_backward(pools, gradient) for backend in (cpp, plain))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("adds", [True, False])
def test_combinations_and_dots_equal_their_sums(
    backend: ModuleType, threads: int, adds: bool
) -> None:
    x, y = torch.randn(3, 131, 12).double(), torch.randn(2, 131, 12).double()
    scale, bias = torch.randn(2, 3, 12).double(), torch.randn(2, 12).double()
    before, known = y.clone(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        dots = backend.dots(x.unbind(), y.unbind())
        backend.combine(y.unbind(), [x.unbind()] * 2, scale, None if adds else bias, adds)
    finally:
        torch.set_num_threads(known)
    assert (dots - torch.einsum("xmc,ymc->xyc", x, before)).abs().max() < 1e-12
    expected = torch.einsum("oic,imc->omc", scale, x) + (before if adds else bias[:, None])
    assert (y - expected).abs().max() < 1e-12
