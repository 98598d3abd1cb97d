"""Grad-CAM: the class activation map where that is known in closed form, for models of timm and torchvision."""

import pytest
import torch
from torch import Tensor, nn

from ichsearch.model.backbones import create_model
from ichsearch.report.grad_cam import LEAST_SIDE, grad_cam, has_maps
from ichsearch.train.config import InputConfig


def images(size: int, seed: int = 0) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed))


def test_on_a_mean_and_a_linear_layer_it_is_the_class_activation_map() -> None:
    torch.manual_seed(0)
    model = create_model("resnet10t", channels=3, classes=6, size=128).eval()
    with torch.no_grad():
        model.get_submodule("fc").weight.abs_()  # type: ignore[operator]
    heat, side = grad_cam(model, images(128), output=2)
    with torch.no_grad():
        maps = model.forward_features(images(128))  # type: ignore[operator]
        expected = torch.einsum("bchw,c->bhw", maps, model.get_submodule("fc").weight[2]).relu()  # type: ignore[arg-type]
    expected = expected / expected.amax(dim=(1, 2), keepdim=True)
    assert side == maps.shape[-1] == 4
    assert heat.shape == (2, 128, 128)
    sized = nn.functional.interpolate(expected[:, None], (128, 128), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(heat, sized, rtol=1e-3, atol=1e-4)


def test_it_points_at_what_the_model_sees() -> None:
    """A model that counts bright pixels, and an image that is bright in one corner."""
    model = nn.Sequential(
        nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2)
    )
    with torch.no_grad():
        model[0].weight.fill_(1)
        model[4].weight.copy_(torch.tensor([[1.0], [-1.0]]))
    image = torch.zeros(1, 1, 32, 32)
    image[..., :8, :8] = 1
    for_it, _ = grad_cam(model, image, output=0)
    assert for_it[0, :8, :8].min() == 1
    assert for_it[0, 8:, 8:].max() == 0
    against_it, _ = grad_cam(model, image, output=1)
    assert against_it.abs().max() == 0


@pytest.mark.parametrize(
    ("backbone", "head"), [("alexnet", "linear"), ("densenet121", "concat_pool"), ("resnet10t", "concat_pool")]
)
def test_any_backbone_with_maps_has_heat_of_the_images_size(backbone: str, head: str) -> None:
    torch.manual_seed(0)
    config = InputConfig.model_validate({"backbone": backbone, "batch_size": 4, "size": 64, "head": head})
    assert has_maps(config)
    model = create_model(backbone, channels=3, classes=6, size=64, head=config.head)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    heat, side = grad_cam(model, images(64), output=0)
    assert heat.shape == (2, 64, 64)
    assert torch.isfinite(heat).all()
    assert heat.min() >= 0
    assert heat.max() <= 1
    assert side >= LEAST_SIDE or backbone == "alexnet"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), (
        "it has changed the model"
    )


def test_small_images_have_heat_too() -> None:
    torch.manual_seed(0)
    model = create_model("resnet10t", channels=3, classes=6, size=16)
    assert grad_cam(model, images(16), output=0)[1] >= 4
    shallow = nn.Sequential(nn.Conv2d(3, 6, 16), nn.Flatten())  # its only maps have one pixel
    assert grad_cam(shallow, images(16), output=0)[1] == 1


def test_tokens_are_no_maps() -> None:
    assert not has_maps(InputConfig(backbone="vit_tiny_patch16_224", batch_size=4, size=64))
