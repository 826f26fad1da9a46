"""r_BN on hand-worked numbers, its momentum, and its hooks' manners."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from genkd.batch_statistics import BatchStatistics, _Moments
from genkd.errors import ConfigurationError, InputFileRefused
from genkd.models import ModelSpec, build_model

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one_layer(mean: float = 1.0, variance: float = 16.0) -> nn.Module:
    """BatchNorm of one channel, then the mean over positions as the one logit."""
    layer = nn.BatchNorm2d(1)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    layer.running_mean.fill_(mean)
    layer.running_var.fill_(variance)
    return nn.Sequential(layer, nn.Flatten()).eval().requires_grad_(False)


def pair(low: float, high: float) -> Tensor:
    """Two one-pixel images: mean (low + high) / 2, variance ((high - low) / 2)^2."""
    return torch.tensor([low, high]).view(2, 1, 1, 1)


def value(tensor: Tensor) -> float:
    assert tensor.shape == ()
    return float(tensor.detach())


def test_distance_by_hand() -> None:
    # Batch mean 4, variance 4; remembered mean 1, variance 16, so deviation 4.
    statistics = BatchStatistics(one_layer())
    _, distance = statistics.measure(pair(2.0, 6.0))
    assert value(distance) == pytest.approx(3 / 4 + 12 / 16)
    torch.testing.assert_close(statistics.distances, torch.tensor([[3 / 4, 12 / 16]]))


def test_distance_does_not_depend_on_the_scale_of_a_layers_inputs() -> None:
    near, far = (
        BatchStatistics(one_layer(mean=scale, variance=16 * scale**2)).measure(
            scale * pair(2.0, 6.0)
        )[1]
        for scale in (1.0, 300.0)
    )
    assert value(near) == pytest.approx(value(far))


def test_a_layer_whose_inputs_never_varied_has_a_finite_distance() -> None:
    _, distance = BatchStatistics(one_layer(variance=0.0)).measure(pair(2.0, 6.0))
    assert math.isfinite(value(distance))


def test_distance_is_the_euclidean_norm_over_channels_summed_over_layers() -> None:
    first, second = nn.BatchNorm2d(2, eps=0), nn.BatchNorm2d(2)  # both remember mean 0, variance 1
    teacher = nn.Sequential(first, second).eval()
    images = torch.tensor([[[[3.0]], [[4.0]]]])  # one image: means 3 and 4, variances 0
    statistics = BatchStatistics(teacher)
    _, distance = statistics.measure(images)
    # The first layer passes its input on unchanged, so both are (5 + sqrt(2)) / sqrt(2) away.
    assert value(distance) == pytest.approx(2 * (5 / math.sqrt(2) + 1), rel=1e-5)
    assert statistics.distances.shape == (2, 2)


def test_momentum_averages_over_batches_by_hand() -> None:
    statistics = BatchStatistics(one_layer(mean=0.0, variance=4.0), momentum=0.9)
    distances = []
    for low, high in ((9.0, 11.0), (-1.0, 1.0), (19.0, 21.0)):  # means 10, 0, 20; variance 1
        _, distance = statistics.measure(pair(low, high))
        statistics.update()
        distances.append(value(distance))
    # The first batch is all there is; then 0.9 * 10 + 0 = 9; then 0.9 * 9 + 0.1 * 20 = 10.1.
    # Means in deviations of 2; the variance is 3 of 4 off.
    assert distances == pytest.approx([5 + 0.75, 4.5 + 0.75, 5.05 + 0.75])


def test_measuring_without_update_does_not_move_the_average() -> None:
    statistics = BatchStatistics(one_layer(mean=0.0, variance=1.0))
    statistics.measure(pair(9.0, 11.0))
    statistics.measure(pair(19.0, 21.0))
    statistics.update()
    _, distance = statistics.measure(pair(-1.0, 1.0))
    assert value(distance) == pytest.approx(18)


def test_gradient_flows_through_the_present_batch_only_scaled_by_one_minus_momentum() -> None:
    statistics = BatchStatistics(one_layer(mean=0.0, variance=1.0), momentum=0.9)
    first = pair(9.0, 11.0).requires_grad_()
    _, distance = statistics.measure(first)
    distance.backward()
    # d mean / dx = 1/2; d variance / dx = x - mean = -1, 1, but the variance is right: no pull.
    torch.testing.assert_close(first.grad, torch.full((2, 1, 1, 1), 0.5))
    statistics.update()
    second = pair(9.0, 11.0).requires_grad_()
    first.grad = None
    _, distance = statistics.measure(second)
    distance.backward()
    torch.testing.assert_close(second.grad, torch.full((2, 1, 1, 1), 0.05))
    assert first.grad is None


def test_images_of_the_training_distribution_are_near_and_others_far() -> None:
    teacher = build_model(ModelSpec("resnet8", 10, 3))
    images = torch.rand(64, 3, 16, 16, generator=seeded(0))
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # remember this batch
    teacher.train()(images)
    teacher.eval().requires_grad_(False)
    statistics = BatchStatistics(teacher)
    near = value(statistics.measure(images)[1])
    far = value(statistics.measure(1 - images**3)[1])
    assert near < 0.02 * far
    assert len(statistics) == 9


def test_logits_are_the_teachers() -> None:
    teacher = build_model(ModelSpec("resnet8", 4, 1)).eval()
    images = torch.rand(3, 1, 16, 16, generator=seeded(0))
    with BatchStatistics(teacher) as statistics, torch.no_grad():
        assert torch.equal(statistics.measure(images)[0], teacher(images))


def test_other_passes_of_the_teacher_are_not_recorded() -> None:
    teacher = one_layer(mean=0.0, variance=1.0)
    statistics = BatchStatistics(teacher)
    statistics.measure(pair(9.0, 11.0))
    teacher(pair(500.0, 600.0))
    statistics.update()
    _, distance = statistics.measure(pair(9.0, 11.0))
    assert value(distance) == pytest.approx(10)


def test_removing_takes_every_hook_off_the_teacher() -> None:
    teacher = build_model(ModelSpec("resnet8", 4, 1)).eval()

    def hooks() -> int:
        return sum(len(module._forward_pre_hooks) for module in teacher.modules())

    with BatchStatistics(teacher) as statistics:
        assert hooks() == len(statistics) == 9
    assert hooks() == 0
    statistics.remove()  # again: nothing happens


def test_a_failing_teacher_leaves_nothing_recording() -> None:
    teacher = one_layer()
    statistics = BatchStatistics(teacher)
    with pytest.raises(ValueError, match="expected 4D"):
        statistics.measure(torch.zeros(2, 1))
    teacher(pair(500.0, 600.0))
    statistics.update()
    assert statistics.state_dict() == {}


@pytest.mark.parametrize(
    "teacher",
    [
        pytest.param(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), id="no BatchNorm"),
        pytest.param(
            nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.Flatten()),
            id="BatchNorm without running statistics",
        ),
    ],
)
def test_a_teacher_that_remembers_nothing_has_distance_zero(teacher: nn.Module) -> None:
    statistics = BatchStatistics(teacher.eval())
    images = torch.rand(3, 1, 2, 2, generator=seeded(0))
    assert len(statistics) == 0
    assert value(statistics.measure(images)[1]) == 0
    statistics.update()


def test_state_dict_resumes_the_average_exactly() -> None:
    teacher = build_model(ModelSpec("resnet8", 4, 1)).eval().requires_grad_(False)
    batches = torch.rand(3, 5, 1, 16, 16, generator=seeded(0))
    whole, resumed = BatchStatistics(teacher), BatchStatistics(teacher)
    for batch in batches[:2]:
        whole.measure(batch)
        whole.update()
    resumed.load_state_dict(whole.state_dict())
    assert torch.equal(whole.measure(batches[2])[1], resumed.measure(batches[2])[1])


@pytest.mark.parametrize(
    "state",
    [
        pytest.param({"1": torch.zeros(2, 1)}, id="layer it has not"),
        pytest.param({"0": torch.zeros(2, 7)}, id="other channels"),
        pytest.param({"mean": torch.zeros(2, 1)}, id="no layer"),
    ],
)
def test_state_of_another_teacher_is_refused(state: dict[str, Tensor]) -> None:
    with pytest.raises(InputFileRefused):
        BatchStatistics(one_layer()).load_state_dict(state)


@pytest.mark.parametrize("momentum", [-0.1, 1.0, float("nan")])
def test_impossible_momentum_is_refused(momentum: float) -> None:
    with pytest.raises(ConfigurationError):
        BatchStatistics(one_layer(), momentum=momentum)


# -- the fast moments ------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(6, 3, 4, 5), (6, 3), (2, 3, 7), (1, 3, 1, 1)], ids=str)
def test_fast_moments_equal_var_mean_and_its_gradient(
    shape: tuple[int, ...], channels_last: bool, device: str
) -> None:
    x = (2 + 3 * torch.randn(shape, generator=seeded(0), dtype=torch.float64)).to(device)
    if channels_last and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    dims = [dim for dim in range(x.dim()) if dim != 1]
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    mean, variance = _Moments.apply(a)
    expected_variance, expected_mean = torch.var_mean(b, dims, correction=0)
    torch.testing.assert_close(mean, expected_mean)
    torch.testing.assert_close(variance, expected_variance)
    weights = torch.randn(2, 3, generator=seeded(1), dtype=torch.float64).to(device)
    (weights[0] @ mean + weights[1] @ variance).backward()
    (weights[0] @ expected_mean + weights[1] @ expected_variance).backward()
    torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("device", DEVICES)
def test_fast_moments_of_bf16_are_float32(device: str) -> None:
    x = (5 + torch.randn(64, 3, 8, 8, generator=seeded(0))).bfloat16().to(device).requires_grad_()
    mean, variance = _Moments.apply(x)
    assert mean.dtype == variance.dtype == torch.float32
    expected_variance, expected_mean = torch.var_mean(x.detach().float(), (0, 2, 3), correction=0)
    torch.testing.assert_close(mean.detach(), expected_mean)
    torch.testing.assert_close(variance.detach(), expected_variance)
    variance.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16
