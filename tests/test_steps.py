"""One training step: micro-batches add up to the batch, gradients are clipped, and the loss is the metric's."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ichsearch.labels import LABELS
from ichsearch.model.backbones import create_model
from ichsearch.model.heads import Head
from ichsearch.train.config import TrialFailedError
from ichsearch.train.loss import MAX_POSITIVE_WEIGHT, make_loss
from ichsearch.train.memory import MicroBatch
from ichsearch.train.metrics import score
from ichsearch.train.optimizer import LAYER_GROUP
from ichsearch.train.steps import Arithmetic, Stepper, predict

BATCH = 12


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6))


def make_batch(positive: float = 0.3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(BATCH, 1, 8, 8, generator=generator)
    return inputs, (torch.rand(BATCH, 6, generator=generator) < positive).float()


def stepped(micro: int, *, clip_norm: float = 0.0, kind: Arithmetic = "fp32") -> tuple[nn.Module, float, Stepper]:
    model = make_model()
    optimizer = torch.optim.SGD([{"params": list(model.parameters()), LAYER_GROUP: 0}], lr=1.0)
    inputs, labels = make_batch()
    loss = make_loss(LABELS, labels, balanced=False, smoothing=0.0)
    stepper = Stepper(model, optimizer, loss, micro=MicroBatch(micro), clip_norm=clip_norm, kind=kind)
    return model, float(stepper.step(inputs, labels)), stepper


def moved(model: nn.Module) -> Tensor:
    """How far SGD with rate 1 went: the gradient."""
    pairs = zip(model.parameters(), make_model().parameters(), strict=True)
    return torch.cat([(after - before).detach().flatten() for after, before in pairs])


@pytest.mark.parametrize("micro", [1, 5, 6, 7, 100])
def test_micro_batches_add_up_to_the_batch(micro: int) -> None:
    whole, loss, _ = stepped(BATCH)
    pieces, loss_of_pieces, _ = stepped(micro)
    assert loss_of_pieces == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(moved(pieces), moved(whole), rtol=1e-4, atol=1e-7)


def test_gradients_are_clipped_to_the_norm() -> None:
    free, clipped = moved(stepped(BATCH)[0]), moved(stepped(BATCH, clip_norm=0.01)[0])
    assert free.norm() > 0.02
    assert float(clipped.norm()) == pytest.approx(0.01, rel=1e-3)
    torch.testing.assert_close(clipped / clipped.norm(), free / free.norm(), rtol=1e-2, atol=1e-5)


def test_bfloat16_is_close_to_float32() -> None:
    whole, loss, _ = stepped(BATCH)
    half, loss_of_half, _ = stepped(BATCH, kind="bf16")
    assert loss_of_half == pytest.approx(loss, rel=0.02)
    assert float(torch.cosine_similarity(moved(half), moved(whole), dim=0)) > 0.99
    assert not torch.equal(moved(half), moved(whole))


@pytest.mark.parametrize(
    ("backbone", "head"),
    [("resnet10t", "linear"), ("resnet10t", "concat_pool"), ("test_vit", "linear")],
)
def test_logits_are_not_rounded_to_bfloat16(backbone: str, head: Head) -> None:
    torch.manual_seed(0)
    model = create_model(backbone, channels=1, classes=6, size=32, head=head)
    images = torch.randn(2000, 1, 32, 32)
    probabilities = predict(model, images.split(200), kind="bf16")
    assert min(len(np.unique(column)) for column in probabilities.T) > 1900
    np.testing.assert_allclose(probabilities, predict(model, images.split(200)), atol=0.02)
    with torch.autocast("cpu", torch.bfloat16):
        model(images[:200]).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    "backbone", ["alexnet", "densenet121", "mobilenet_v2", "swin_t", "levit_128s", "convnext_atto", "squeezenet1_1"]
)
def test_logits_are_float32_whatever_the_backbone(backbone: str) -> None:
    model = create_model(backbone, channels=1, classes=6, size=64).eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert model(torch.randn(2, 1, 64, 64)).dtype == torch.float32


class Greedy(nn.Module):
    """Runs out of memory beyond so many slices."""

    def __init__(self, model: nn.Module, fits: int) -> None:
        super().__init__()
        self.model, self.fits = model, fits

    def forward(self, inputs: Tensor) -> Tensor:
        if len(inputs) > self.fits:
            raise torch.OutOfMemoryError
        return self.model(inputs)  # type: ignore[no-any-return]


def test_a_step_that_does_not_fit_gives_the_gradient_of_the_whole_batch() -> None:
    whole, loss, _ = stepped(BATCH)
    model = Greedy(make_model(), fits=4)
    optimizer = torch.optim.SGD([{"params": list(model.parameters()), LAYER_GROUP: 0}], lr=1.0)
    inputs, labels = make_batch()
    stepper = Stepper(
        model, optimizer, make_loss(LABELS, labels, balanced=False, smoothing=0.0), micro=MicroBatch(BATCH)
    )
    assert float(stepper.step(inputs, labels)) == pytest.approx(loss, rel=1e-5)
    assert stepper.micro.size == 3
    torch.testing.assert_close(moved(model.model), moved(whole), rtol=1e-4, atol=1e-7)


def test_predictions_that_do_not_fit_are_made_in_pieces() -> None:
    inputs, _ = make_batch()
    micro = MicroBatch(BATCH)
    pieces = predict(Greedy(make_model(), fits=4), [inputs, inputs[:5]], micro=micro)
    whole = predict(make_model(), [torch.cat([inputs, inputs[:5]])])
    np.testing.assert_allclose(pieces, whole, rtol=1e-5)
    assert micro.size == 3
    with pytest.raises(TrialFailedError, match="out_of_memory"):
        predict(Greedy(make_model(), fits=0), [inputs], micro=micro)


@pytest.mark.parametrize("names", [LABELS, ("any",), LABELS[:5]])
def test_the_plain_loss_is_the_metric(names: tuple[str, ...]) -> None:
    inputs, labels = make_batch()
    columns = [LABELS.index(name) for name in names]
    logits = make_model()(inputs)[:, columns].detach()
    loss = make_loss(names, labels[:, columns], balanced=False, smoothing=0.0)(logits, labels[:, columns])
    patients = np.array([str(number) for number in range(BATCH)], np.object_)
    scores = score(labels[:, columns].numpy(), logits.sigmoid().numpy(), names, patients)
    assert float(loss) == pytest.approx(scores["log_loss"], rel=1e-5)


def test_smoothing_pulls_the_best_logit_from_infinity() -> None:
    smooth = make_loss(("any",), torch.ones(4, 1), balanced=False, smoothing=0.1)
    best = math.log(0.95 / 0.05)
    losses = [float(smooth(torch.full((4, 1), logit), torch.ones(4, 1))) for logit in (best - 0.1, best, best + 0.1)]
    assert losses[1] == min(losses)


def test_balanced_weights_make_both_kinds_count_alike() -> None:
    truth = torch.zeros(100, 1)
    truth[:20] = 1
    loss = make_loss(("any",), truth, balanced=True, smoothing=0.0)
    logits = torch.zeros(100, 1, requires_grad=True)
    loss(logits, truth).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert float(logits.grad.sum()) == pytest.approx(0, abs=1e-6)


def test_the_weight_of_a_rare_label_is_bounded() -> None:
    truth = torch.zeros(1000, 2)
    truth[0, 0] = 1
    loss = make_loss(LABELS[:2], truth, balanced=True, smoothing=0.0)
    assert loss.positive_weights is not None
    assert loss.positive_weights.tolist() == [MAX_POSITIVE_WEIGHT, MAX_POSITIVE_WEIGHT]


def test_an_odd_batch_leaves_no_slice_alone() -> None:
    """BatchNorm over vectors cannot train on one."""
    torch.manual_seed(0)
    inner = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 6))
    for batch, fits in ((15, 8), (9, 8), (33, 16), (5, 2)):
        model = Greedy(inner, fits)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        labels = torch.zeros(batch, 6)
        loss = make_loss(LABELS, labels, balanced=False, smoothing=0.0)
        if (batch, fits) == (5, 2):
            with pytest.raises(TrialFailedError, match="BatchNorm needs two slices"):
                Stepper(model, optimizer, loss, micro=MicroBatch(batch)).step(torch.randn(batch, 1, 4, 4), labels)
        else:
            Stepper(model, optimizer, loss, micro=MicroBatch(batch)).step(torch.randn(batch, 1, 4, 4), labels)


def test_a_state_goes_to_a_node_of_other_arithmetic() -> None:
    half, whole = stepped(BATCH, kind="fp16")[2], stepped(BATCH)[2]
    for source, target in ((half, whole), (whole, half)):
        target.restore(source.state())
        assert target.micro.size == BATCH
