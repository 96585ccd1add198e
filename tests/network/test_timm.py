"""timm's own checks of its models, on ours: forward, backward, features, classifier."""

from pathlib import Path

import pytest
import timm
import torch

import mae_nas.timm  # noqa: F401 - registers the model
from mae_nas.genotype import PUBLISHED
from mae_nas.network import NetworkSize
from mae_nas.network.complexity import Place
from mae_nas.network.export import Description, to_timm

SMALL = {"width": 4, "depth": 5}
STEMS = [("cifar", 32), ("small", 64), ("imagenet", 64)]


@pytest.mark.parametrize(("stem", "side"), STEMS)
def test_forward_and_backward(stem: str, side: int) -> None:
    model = timm.create_model("mae_nas", genotype="NASNet", stem=stem, num_classes=42, **SMALL)
    model.train()
    count = sum(parameter.numel() for parameter in model.parameters())
    scores = model(torch.randn(2, 3, side, side))
    scores.mean().backward()
    assert scores.shape == (2, 42)
    assert not torch.isnan(scores).any()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize(("stem", "side"), STEMS)
@pytest.mark.parametrize("name", ["PDARTS", "AmoebaNet"])
def test_features_have_the_channels_and_strides_that_are_announced(
    name: str, stem: str, side: int
) -> None:
    model = timm.create_model("mae_nas", genotype=name, stem=stem, features_only=True, **SMALL)
    maps = model(torch.randn(2, 3, side, side))
    assert len(maps) == len(model.feature_info) == 3
    info = zip(model.feature_info.channels(), model.feature_info.reduction(), strict=True)
    for found, (channels, reduction) in zip(maps, info, strict=True):
        assert found.shape == (2, channels, side // reduction, side // reduction)
    two = timm.create_model(
        "mae_nas", genotype=name, stem=stem, features_only=True, out_indices=(0, 2), **SMALL
    )
    assert len(two(torch.randn(2, 3, side, side))) == 2


def test_the_classifier_can_be_given_up_and_replaced() -> None:
    model = timm.create_model("mae_nas", num_classes=7, in_chans=2, **SMALL).eval()
    image = torch.randn(2, 2, 32, 32)
    maps = model.forward_features(image)
    assert maps.shape == (2, model.num_features, 8, 8)
    torch.testing.assert_close(model(image), model.forward_head(maps))
    assert model.forward_head(maps, pre_logits=True).shape == (2, model.num_features)
    last, every = model.forward_intermediates(image)
    assert torch.equal(last, maps)
    assert [m.shape[1] for m in every] == [info["num_chs"] for info in model.feature_info]
    assert len(model.forward_intermediates(image, indices=2, intermediates_only=True)) == 2
    assert model.get_classifier().out_features == 7
    model.reset_classifier(3)
    assert model(image).shape == (2, 3)
    model.reset_classifier(0)
    assert model(image).shape == (2, model.num_features)
    model.reset_classifier(0, "")
    assert model(image).shape == maps.shape
    pooled = timm.create_model("mae_nas", num_classes=0, **SMALL)
    assert pooled(torch.randn(2, 3, 32, 32)).shape == (2, pooled.num_features)


def test_an_exported_file_says_all_that_timm_needs(tmp_path: Path) -> None:
    place = Place(NetworkSize(4, 3, "small"), channels=2, side=32, classes=3)
    network = place.network(PUBLISHED["GDAS_V1"]).eval()
    said = Description(place, PUBLISHED["GDAS_V1"], ("a", "b", "c"), (0.5, 0.4), (0.2, 0.1), 255.0)
    file = tmp_path / "net.safetensors"
    to_timm(network, said, file)
    model = timm.create_model("mae_nas", genotype=str(file)).eval()
    image = torch.randn(2, 2, 32, 32)
    torch.testing.assert_close(model(image), network(image))
    again = timm.create_model("mae_nas", genotype=str(file), checkpoint_path=str(file)).eval()
    torch.testing.assert_close(again(image), network(image))
    maps = timm.create_model("mae_nas", genotype=str(file), features_only=True).eval()(image)
    for found, wanted in zip(maps, network.maps(image), strict=True):
        torch.testing.assert_close(found, wanted)
    with pytest.raises(ValueError, match=r"net\.safetensors: is of channels 2, not 3"):
        timm.create_model("mae_nas", genotype=str(file), in_chans=3)
    five = timm.create_model("mae_nas", genotype=str(file), num_classes=5).eval()
    assert five(image).shape == (2, 5)
    torch.testing.assert_close(five.forward_features(image), network.maps(image)[-1])
    config = timm.data.resolve_model_data_config(model)
    assert config["input_size"] == (2, 32, 32)
    assert config["mean"] == (0.5, 0.4)
    assert config["std"] == (0.2, 0.1)
    assert model.pretrained_cfg["label_names"] == ["a", "b", "c"]
    assert model.num_classes == 3
    # Without the description, by hand.
    other = timm.create_model(
        "mae_nas",
        genotype="GDAS_V1",
        width=4,
        depth=3,
        stem="small",
        num_classes=3,
        in_chans=2,
        checkpoint_path=str(file),
    ).eval()
    torch.testing.assert_close(other(image), network(image))


def test_layers_are_matched_in_order_for_rates_that_fall_with_depth() -> None:
    model = timm.create_model("mae_nas", num_classes=3, **SMALL)
    groups = timm.models.group_parameters(model, model.group_matcher(), reverse=True)
    assert set(groups) == {name for name, _ in model.named_parameters()}
    places = [groups[f"network.backbone.cells.{i}.preprocess1.conv.weight"] for i in range(5)]
    assert places == sorted(set(places))
    assert groups["network.backbone.stem.conv0.weight"] < places[0]
    assert groups["network.classifier.weight"] > places[-1]


def test_what_is_not_there_is_refused() -> None:
    grey = timm.create_model("mae_nas", in_chans=1, **SMALL)
    assert grey.pretrained_cfg["input_size"] == (1, 32, 32)
    assert len(grey.pretrained_cfg["mean"]) == 1
    last = timm.create_model("mae_nas", features_only=True, out_indices=3, **SMALL)
    assert len(last(torch.randn(1, 3, 32, 32))) == 3
    with pytest.raises(ValueError, match="out_indices 0: there are three maps"):
        timm.create_model("mae_nas", features_only=True, out_indices=0, **SMALL)
    with pytest.raises(ValueError, match=r"out_indices \(0, 5\): there are three maps, 0 to 2"):
        timm.create_model("mae_nas", features_only=True, out_indices=(0, 5), **SMALL)
    with pytest.raises(ValueError, match="there are no pretrained weights"):
        timm.create_model("mae_nas", pretrained=True)
    model = timm.create_model("mae_nas", **SMALL)
    with pytest.raises(ValueError, match="gradient checkpointing"):
        model.set_grad_checkpointing()
    model.set_grad_checkpointing(enable=False)
