import torch

from mae_nas.network.latency import describe_device


def test_device_is_described() -> None:
    found = describe_device(torch.device("cpu"))
    assert found["type"] == "cpu"
    assert found["name"]
    assert found["threads"] == torch.get_num_threads()
