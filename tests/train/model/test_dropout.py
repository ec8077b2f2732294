import pytest
import torch
from torch.nn import functional

from gridvlp.train.model.dropout import Dropout, dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_share_and_the_scale_are_those_of_pytorch(p, dtype):
    torch.manual_seed(0)
    x = torch.full((501, 401), 2.0, dtype=dtype)
    ours, theirs = dropout(x, p).float(), functional.dropout(x, p).float()
    torch.testing.assert_close(ours.unique(), theirs.unique(), rtol=5e-3, atol=0)
    assert (ours == 0).float().mean().item() == pytest.approx(p, abs=0.005)
    assert ours.mean().item() == pytest.approx(2, rel=0.02)
    # neither rows, columns nor the four elements of one random number go together
    zero = (ours == 0).float()
    assert zero.mean(0).std().item() == pytest.approx((p * (1 - p) / 501) ** 0.5, rel=0.3)
    assert zero.mean(1).std().item() == pytest.approx((p * (1 - p) / 401) ** 0.5, rel=0.3)
    fours = zero.flatten()[: 4 * 50_000].view(-1, 4)
    assert torch.corrcoef(fours.T).sub(torch.eye(4)).abs().max() < 0.03


def test_the_seed_decides_and_each_call_draws_anew():
    x = torch.ones(1000)
    torch.manual_seed(3)
    one, other = dropout(x, 0.5), dropout(x, 0.5)
    torch.manual_seed(3)
    assert dropout(x, 0.5).equal(one)
    assert not one.equal(other)


def test_the_gradient_passes_where_the_value_does():
    x = torch.rand(3, 7, requires_grad=True)
    dropped = dropout(x, 0.4)
    dropped.sum().backward()
    torch.testing.assert_close(x.grad * x.detach(), dropped.detach())


def test_nothing_and_everything_and_no_training():
    x = torch.rand(10)
    assert dropout(x, 0.0).equal(x)
    assert dropout(x, 1.0).equal(torch.zeros(10))
    assert Dropout(0.5).eval()(x) is x
    assert dropout(torch.rand(0, 4), 0.5).shape == (0, 4)
