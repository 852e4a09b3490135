"""The figures that are known in advance, reproduced with the package on all of MNIST to the printed digits.

The seed decides everything else.
Skipped where all of MNIST is not to be found: set FB_PASS_DATA to the folder that has it.
"""
import pytest
import torch
import torch.nn.functional as F

from fb_pass.backward import forward_and_backward
from fb_pass.checks import check_grad
from fb_pass.library import as_torch, to_linear
from fb_pass.modules import Model
from fb_pass.normalization import normalize

n, m, c, nh = 50_000, 784, 10, 50
BIAS_GRADS = '''
-19.60  -2.40  -0.12   1.99  12.78 -15.32 -18.45   0.35   3.75  14.67
 10.81  12.20  -2.95 -28.33   0.76  69.15 -21.86  49.78  -7.08   1.45
 25.20  11.27 -18.15 -13.13 -17.69 -10.42  -0.13 -18.89 -34.81  -0.84
 40.89   4.45  62.35  31.70  55.15  45.13   3.25  12.75  12.45  -1.41
  4.55  -6.02 -62.51  -1.89  -1.41   7.00   0.49  18.72  -4.84  -6.52
'''.split()

def weights(layers_before=0):
    "Weights and zero biases from the stream of seed 42, after those of so many networks before."
    torch.manual_seed(42)
    for _ in range(layers_before + 1): w1,w2 = torch.randn(m, nh),torch.randn(nh, 1)
    return w1, torch.zeros(nh), w2, torch.zeros(1)

def printed(t, digits=2): return [f'{o:.{digits}f}' for o in t.flatten().tolist()]

def test_data(mnist):
    x_train,y_train,x_valid,y_valid = mnist
    assert x_train.shape == (n, m) and x_valid.shape == (10_000, m) and x_train.dtype == x_valid.dtype == torch.float32
    assert y_train.shape == (n,) and y_valid.shape == (10_000,) and y_train.dtype == y_valid.dtype == torch.int64
    assert y_train.unique().tolist() == list(range(c))
    assert x_train.max() == 255/256 and x_train.min() == 0 and not (x_train*256).frac().any()

def test_mean_and_std(mnist): assert printed(torch.stack([mnist[0].mean(), mnist[0].std()]), 4) == ['0.1304', '0.3073']

def test_normalized(mnist):
    x_train,_,x_valid,_ = mnist
    mean,std = x_train.mean(),x_train.std()
    train,valid = normalize(x_train, mean, std),normalize(x_valid, mean, std)
    assert abs(train.mean()) < 1e-3 and abs(1 - train.std()) < 1e-3
    assert printed(torch.stack([valid.mean(), valid.std()]), 4) == ['-0.0059', '0.9924']

@pytest.mark.parametrize('how', ['functions', 'modules', 'autograd'])
def test_loss_and_first_weights(mnist, how):
    "Loss and extreme gradients of the first layer, pixels not normalized."
    x,targ = mnist[0],mnist[1].float()
    params = w1,_,_,_ = weights()
    if how == 'functions': loss,grad = forward_and_backward(x, targ, *params),w1.g
    elif how == 'modules':
        model = Model(*params)
        loss = model(x, targ); model.backward()
        grad = w1.g
    else:
        net = as_torch(Model(*params))
        loss = net(x, targ); loss.backward()
        grad = net.layers[0].w.grad
    x.g = None # the pictures are shared, and their gradient is large
    assert printed(torch.stack([loss.detach(), grad.max(), grad.min()])) == ['4308.76', '151.95', '-70.73']

@pytest.mark.parametrize('how', ['library', 'modules', 'functions', 'autograd'])
def test_fifty_bias_gradients(mnist, how):
    "The second network of the stream, by the library and by the three ways that are ours."
    x,targ = mnist[0],mnist[1].float()
    params = w1,b1,w2,b2 = weights(1)
    if how == 'library':
        first,last = to_linear(w1, b1),to_linear(w2, b2)
        F.mse_loss(last(first(x).relu()), targ[:,None]).backward()
        grad = first.bias.grad
    elif how == 'modules':
        model = Model(*params)
        model(x, targ); model.backward()
        grad = b1.g
    elif how == 'functions':
        forward_and_backward(x, targ, *params)
        grad = b1.g
    else:
        net = as_torch(Model(*params))
        net(x, targ).backward()
        grad = net.layers[0].b.grad
    x.g = None
    assert printed(grad) == BIAS_GRADS

def test_float32_agrees_with_float64(mnist):
    "The printed digits are no accident of rounding: 5,000 pictures in both precisions."
    x,targ = mnist[0][:5000],mnist[1][:5000].float()
    params = weights()
    doubles = [p.double() for p in params]
    forward_and_backward(x, targ, *params); forward_and_backward(x.double(), targ.double(), *doubles)
    for name,p,d in zip(('w1', 'b1', 'w2', 'b2'), params, doubles): check_grad(p.g.double(), d.g, rtol=1e-5, name=name)
