"""One rule of precision for both stages: what the hardware multiplies in."""

import pytest
import torch

from gridvlp.run.devices import choose_device, choose_precision

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.mark.parametrize(
    ("native", "chosen"), [(True, torch.bfloat16), (False, torch.float16)], ids=["A100", "V100"]
)
def test_a_gpu_takes_bfloat16_only_where_it_is_not_emulated(monkeypatch, native, chosen):
    def supported(including_emulation=True):
        return native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert choose_precision("auto", GPU) == chosen


@pytest.mark.parametrize(("native", "chosen"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_processor_takes_bfloat16_where_it_has_it(monkeypatch, native, chosen):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    assert choose_precision("auto", CPU) == chosen


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("device", [GPU, CPU])
def test_a_named_precision_is_taken(name, device):
    assert choose_precision(name, device) == getattr(torch, name)


def test_each_process_of_a_machine_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for rank in range(6):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert choose_device() == torch.device("cuda", rank % 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device() == CPU
