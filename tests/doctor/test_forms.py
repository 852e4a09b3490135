"Backward passes in the forms in which people have them: the right one passes, and one with a factor 2 is named."
import numpy as np, pytest, torch
from fb_pass.doctor import check_layer
from fb_pass.doctor.adapters import is_gradient_name
from fb_pass.gradients import add_grad
from torch import nn

def R(*shape): return np.random.default_rng(sum(shape)).standard_normal(shape)
def T(*shape): return torch.from_numpy(R(*shape)).float()

F = 1. # the factor: of the first gradient that is a product with the input

# Classes that leave gradients in `.g`, without a base class

class PlainRelu:
    def __call__(self, inp):
        self.inp,self.out = inp,inp.clamp_min(0.)
        return self.out
    def backward(self): self.inp.g = F*(self.inp > 0).float()*self.out.g

class PlainLin:
    def __init__(self, w, b): self.w,self.b = w,b
    def __call__(self, inp):
        self.inp,self.out = inp,inp@self.w + self.b
        return self.out
    def backward(self):
        self.inp.g = self.out.g @ self.w.t()
        self.w.g = F*self.inp.t() @ self.out.g
        self.b.g = self.out.g.sum(0)

class PlainMse:
    def __call__(self, inp, targ):
        self.inp,self.targ = inp,targ
        self.out = (inp.squeeze(-1) - targ).pow(2).mean()
        return self.out
    def backward(self): self.inp.g = F*2.*(self.inp.squeeze(-1) - self.targ).unsqueeze(-1)/self.targ.shape[0]

class PlainModel:
    def __init__(self, w1, b1, w2, b2):
        self.layers,self.loss = [PlainLin(w1, b1), PlainRelu(), PlainLin(w2, b2)],PlainMse()
    def __call__(self, x, targ):
        for o in self.layers: x = o(x)
        return self.loss(x, targ)
    def backward(self):
        self.loss.backward()
        for o in reversed(self.layers): o.backward()

class LeavesGrad:
    def __init__(self): self.w = T(3, 2)
    def __call__(self, x):
        self.x = x
        return x@self.w
    def backward(self, g): self.w.grad,self.x.grad = F*self.x.t()@g,g@self.w.t()

# Layers of arrays

class Holder:
    def __init__(self, t): self.tensor,self.gradient = t,np.zeros_like(t)

class WithClosure:
    def __init__(self): self.weights,self.bias = Holder(R(3, 2)),Holder(R(2))
    def forward(self, X):
        def backward(D):
            self.weights.gradient += F*X.T@D
            self.bias.gradient += D.sum(0)
            return D@self.weights.tensor.T
        return X@self.weights.tensor + self.bias.tensor, backward

class Attributes:
    def __init__(self): self.W,self.b = R(3, 2),R(2)
    def forward(self, x):
        self.x = x
        return x@self.W + self.b
    def backward(self, dout):
        self.dW,self.db = F*self.x.T@dout,dout.sum(0)
        return dout@self.W.T

class NothingReturned:
    def __init__(self): self.weights,self.biases = R(3, 2),np.zeros((1, 2))
    def forward(self, inputs): self.inputs,self.output = inputs,inputs@self.weights + self.biases
    def backward(self, dvalues):
        self.dweights,self.dbiases = F*self.inputs.T@dvalues,dvalues.sum(0, keepdims=True)
        self.dinputs = dvalues@self.weights.T

class Lists:
    def __init__(self): self.params,self.grads = [R(3, 2), R(2)],[np.zeros((3, 2)), np.zeros(2)]
    def forward(self, x):
        self.x = x
        return x@self.params[0] + self.params[1]
    def backward(self, dout):
        self.grads[0][...],self.grads[1][...] = F*self.x.T@dout,dout.sum(0)
        return dout@self.params[0].T

class Dicts:
    def __init__(self): self.params,self.grads = dict(W1=R(3, 2), b1=R(2)),{}
    def forward(self, x):
        self.x = x
        return x@self.params['W1'] + self.params['b1']
    def backward(self, dout):
        self.grads = dict(W1=F*self.x.T@dout, b1=dout.sum(0))
        return dout@self.params['W1'].T

class Tuples:
    def forward(self, xs):
        self.xs = xs
        return xs[0]*xs[1]
    def backward(self, d): return F*d*self.xs[1], d*self.xs[0]

class Rnn:
    def __init__(self): self.Wx,self.Wh = R(2, 3),R(3, 3)
    def forward(self, xs):
        self.xs,self.hs = xs,[np.zeros((1, 3))]
        for t in range(len(xs)): self.hs.append(np.tanh(xs[t:t+1]@self.Wx + self.hs[-1]@self.Wh))
        return self.hs[-1]
    def backward(self, dh):
        self.dWx,self.dWh,dx = np.zeros_like(self.Wx),np.zeros_like(self.Wh),np.zeros_like(self.xs)
        for t in reversed(range(len(self.xs))):
            d = dh*(1 - self.hs[t+1]**2)
            self.dWx += F*self.xs[t:t+1].T@d
            self.dWh += self.hs[t].T@d
            dx[t],dh = (d@self.Wx.T)[0],d@self.Wh.T
        return dx

class BatchNorm:
    "Its running mean moves with each call, and its output does not depend on that."
    def __init__(self): self.gamma,self.beta,self.running_mean = np.ones(3),np.zeros(3),np.zeros(3)
    def forward(self, x):
        self.var = x.var(0)
        self.running_mean = .9*self.running_mean + .1*x.mean(0)
        self.h = (x - x.mean(0))/np.sqrt(self.var + 1e-5)
        return self.gamma*self.h + self.beta
    def backward(self, dout):
        self.dgamma,self.dbeta,d = F*(dout*self.h).sum(0),dout.sum(0),dout*self.gamma
        return (d - d.mean(0) - self.h*(d*self.h).mean(0))/np.sqrt(self.var + 1e-5)

class CrossEntropy:
    def forward(self, p, y):
        self.p,self.at = p,(np.arange(len(y)), y)
        return -np.log(p[self.at]).mean()
    def backward(self):
        d = np.zeros_like(self.p)
        d[self.at] = -F/self.p[self.at]/len(self.p)
        return d

class Network:
    def __init__(self): self.params = dict(W1=R(3, 5), b1=R(5), W2=R(5, 2), b2=R(2))
    def loss(self, X, y):
        p,at = self.params,(np.arange(len(X)), y)
        h = np.tanh(X@p['W1'] + p['b1'])
        q = np.exp(h@p['W2'] + p['b2'])
        q /= q.sum(1, keepdims=True)
        d = q.copy()
        d[at] -= 1
        d /= len(X)
        dh = d@p['W2'].T*(1 - h*h)
        return -np.log(q[at]).mean(), dict(W1=F*X.T@dh, b1=dh.sum(0), W2=h.T@d, b2=d.sum(0))

# Pairs of functions

def affine_forward(x, w, b): return x@w + b, (x, w, b)
def affine_backward(dout, cache):
    x,w,b = cache
    return dout@w.T, F*x.T@dout, dout.sum(0)

def tanh_fwd(x, w): return np.tanh(x@w), (x, w, np.tanh(x@w))
def tanh_bwd(res, g):
    x,w,y = res
    return g*(1 - y*y)@w.T, F*x.T@(g*(1 - y*y))

def net_forward(x, params): return np.tanh(x@params['W1'] + params['b1'])
def net_backward(dout, x, params):
    d = dout*(1 - net_forward(x, params)**2)
    return d@params['W1'].T, {'dW1': F*x.T@d, 'db1': d.sum(0)}

def other_name(chain, x, w): return chain@w.T, F*x.T@chain
def product(x, w): return x@w

labels = np.array([0, 1, 1, 0])
forms = {
    'relu without a base class': lambda: (PlainRelu(), T(4, 3)),
    'lin without a base class': lambda: (PlainLin(T(3, 2), T(2)), T(4, 3)),
    'mse without a base class': lambda: (PlainMse(), T(4, 1), T(4)),
    'model without a base class': lambda: (PlainModel(T(3, 5), T(5), T(5, 1), T(1)), T(4, 3), T(4)),
    'gradients left in .grad': lambda: (LeavesGrad(), T(4, 3)),
    'backward returned by forward': lambda: (WithClosure(), R(4, 3)),
    'self.dW': lambda: (Attributes(), R(4, 3)),
    'self.output and self.dweights': lambda: (NothingReturned(), R(4, 3)),
    'lists params and grads': lambda: (Lists(), R(4, 3)),
    'dictionaries params and grads': lambda: (Dicts(), R(4, 3)),
    'a tuple as argument': lambda: (Tuples(), (R(3), R(3) + 1)),
    'recurrent': lambda: (Rnn(), R(4, 2)),
    'batch norm': lambda: (BatchNorm(), R(5, 3)),
    'class of a loss': lambda: (CrossEntropy(), np.abs(R(4, 3)) + .1, labels),
    'method loss of a network': lambda: (Network().loss, R(4, 3), labels),
    'out and cache': lambda: ((affine_forward, affine_backward), R(4, 3), R(3, 2), R(2)),
    'bwd(res, g)': lambda: ((tanh_fwd, tanh_bwd), R(4, 3), R(3, 2)),
    'parameters in a dictionary': lambda: ((net_forward, net_backward), R(4, 3), dict(W1=R(3, 2), b1=R(2))),
    'another name for the upstream gradient': lambda: ((product, other_name), R(4, 3), R(3, 2)),
    'integers': lambda: ((product, other_name), np.array([[1, 2], [3, 4], [5, 7]]), np.array([[1, 2, 3], [4, 5, 6]])),
}

def look(name): return check_layer(*forms[name](), raise_exception=False, progress=False)

@pytest.mark.parametrize('name', forms)
def test_every_form(name, monkeypatch):
    report = look(name)
    assert report.ok and report.tested, report
    monkeypatch.setitem(globals(), 'F', 2.)
    report = look(name)
    assert [o.diagnosis.cause for o in report.rows if not o.ok][0] == 'scaled', report

def test_data_of_a_network_is_said_to_be_a_constant():
    assert [o.verdict for o in look('method loss of a network').rows] == ['a constant', *['right']*4]

def test_a_forgotten_entry_is_missing():
    class Forgets(Dicts):
        def backward(self, dout):
            res = super().backward(dout)
            del self.grads['b1']
            return res
    report = check_layer(Forgets(), R(4, 3), raise_exception=False)
    assert [(o.name, o.verdict) for o in report.rows if not o.ok] == [('b1', 'absent')]

def test_the_caller_keeps_what_he_has():
    layer,x = Attributes(), R(4, 3)
    before = layer.W.copy(),x.copy(),[*vars(layer)]
    check_layer(layer, x)
    assert np.array_equal(layer.W, before[0]) and np.array_equal(x, before[1]) and [*vars(layer)] == before[2]

@pytest.mark.parametrize('key,name,is_one', [
    ('dW1', 'W1', True), ('grad_W', 'W', True), ('W_grad', 'W', True), ('grads[0]', 'params[0]', True),
    ('grads.W1', 'params.W1', True), ('layers[0].dW', 'layers[0].W', True), ('w.gradient', 'w.tensor', True),
    ('W1', 'W1', False), ('dW2', 'W1', False), ('data[0]', 'params[0]', False)])
def test_names_of_gradients(key, name, is_one): assert is_gradient_name(key, name) == is_one

class KeepsDict: # in `d`, where gradients of `k` and `l` may stand as well
    def forward(self, d, x): self.d,self.x = d,x; return x*d['k'] + d['l']
    def backward(self, g): return {'k': g*self.x, 'l': g}, g*self.d['k']

def test_an_argument_that_is_kept_under_the_name_of_gradients_is_none():
    assert check_layer(KeepsDict(), dict(k=T(3), l=T(3)), T(3))

def test_none_stands_for_the_gradients_of_a_whole_dictionary():
    class Leaves(KeepsDict):
        def backward(self, g): return None, g*self.d['k']
    report = check_layer(Leaves(), dict(k=T(3), l=T(3)), T(3), raise_exception=False)
    assert [o.verdict for o in report.rows] == ['absent', 'absent', 'right']

def test_more_gradients_than_inputs_are_refused():
    report = check_layer((lambda x: 2*x, lambda g, x: (2*g, g, g)), T(3), raise_exception=False)
    assert [o.verdict for o in report.rows] == ['stopped'] and 'returned 3 gradients for 1 inputs, x' in str(report)

class RealPart(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z): return 3*z.real
    @staticmethod
    def backward(ctx, g): return 3*g

def test_a_real_gradient_of_a_complex_input():
    assert check_layer(RealPart, torch.complex(T(3), T(3)))

class Turned(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x*(1 + 2j)
    @staticmethod
    def backward(ctx, g): return g*(1 - 2j) # complex, and autograd takes the real part

def test_a_complex_gradient_of_a_real_input():
    assert check_layer(Turned, T(3))

# Containers

PAIR,DICT = (lambda p, x: x*p[0] + p[1]),(lambda p, x: x*p['a'] + p['b'])

@pytest.mark.parametrize('forward, backward, p', [
    (DICT, lambda g, p, x: {'of p': {'a': F*g*x, 'b': g}, 'x': g*p['a']}, dict(a=T(3), b=T(3))),
    (DICT, lambda g, p, x: ((F*g*x, g), g*p['a']), dict(a=T(3), b=T(3))),
    (PAIR, lambda g, p, x: ((F*g*x, g), g*p[0]), (T(3), T(3))),
    (PAIR, lambda g, p, x: ([F*g*x, g], g*p[0]), [T(3), T(3)])])
def test_gradients_in_containers(forward, backward, p, monkeypatch):
    assert check_layer((forward, backward), p, T(3))
    monkeypatch.setitem(globals(), 'F', 2.)
    wrong = [o.verdict for o in check_layer((forward, backward), p, T(3), raise_exception=False).rows]
    assert wrong == ['wrong', 'right', 'right']

def test_a_name_that_fits_twice_is_that_of_the_first():
    assert check_layer((lambda w, W: w*W, lambda g, w, W: {'dw': g*W, 'W': g*w}), T(3), R(3) + 1)

def test_two_outputs_with_gradients_of_their_own():
    def forward(x): return 2*x, 3*x
    def backward(out, x): add_grad(x, 2*out[0].g + 3*out[1].g)
    assert check_layer((forward, backward), T(3))

class Outputs:
    "Its output is `output`, and `out` and `y` are something else."
    def __init__(self): self.y = self.out = T(3)
    def forward(self, x): self.x,self.output = x,x**2
    def backward(self, g): return 2*g*self.x

def test_where_the_output_stands():
    class Returned(Outputs):
        def forward(self, x): self.x = x; return x**2
    for o in Outputs(), Returned(): assert check_layer(o, T(3))

def test_a_backward_that_comes_with_the_output_is_taken_before_a_method():
    class Both:
        def forward(self, x): return x**2, lambda g: 2*g*x
        def backward(self, g): raise AssertionError('this is something else')
    assert check_layer(Both(), T(3))

def test_gradients_in_a_tuple_inside_a_tuple():
    def backward(g, x, w, b): return g*w, (g*x, g)
    assert check_layer((lambda x, w, b: x*w + b, backward), T(3), R(3) + 1, T(3))

class Identity:
    "Its output is its input itself, and it has no gradient for it."
    def forward(self, x): return x
    def backward(self, g): pass

def test_the_upstream_gradient_of_an_output_that_is_the_input_is_no_gradient_of_it():
    assert [o.verdict for o in check_layer(Identity(), T(3), raise_exception=False).rows] == ['absent']

def test_another_call_before_the_backward_that_came_with_the_first():
    class Keeps:
        def forward(self, x):
            self.x = x # the next call replaces it
            return x**2, lambda g: 2*g*self.x
    with pytest.raises(AssertionError, match='x.*wrong'): check_layer(Keeps(), T(3))

class Embedding:
    "It takes integers, and holds the only floating-point numbers."
    def __init__(self, factor): self.W,self.factor = R(5, 3),factor
    def forward(self, idx):
        self.idx = idx
        return self.W[idx]
    def backward(self, g):
        self.dW = np.zeros_like(self.W)
        np.add.at(self.dW, self.idx, self.factor*g)

class RowLoss:
    "A network whose loss takes integers only, and comes with the gradients."
    def __init__(self, factor): self.params,self.factor = {'W': R(5, 3)},factor
    def loss(self, idx, targ):
        dW = np.zeros((5, 3))
        np.add.at(dW, (idx, targ), self.factor)
        return self.params['W'][idx, targ].sum(), {'W': dW}

def test_integers_stay_integers_where_the_layer_holds_numbers():
    idx,targ = np.array([0, 1, 1, 4]),np.array([0, 2, 1, 1])
    assert check_layer(Embedding(1), idx) and check_layer(RowLoss(1).loss, idx, targ)
    for layer,inputs in (Embedding(2), [idx]), (RowLoss(2).loss, [idx, targ]):
        report = check_layer(layer, *inputs, raise_exception=False)
        assert [(o.name, o.verdict) for o in report.rows] == [('W', 'wrong')]

class OwnBackward(nn.Module):
    "An nn.Module whose backward is its own, with a buffer and a frozen parameter."
    def __init__(self):
        super().__init__()
        self.lin,self.scale = nn.Linear(3, 2),nn.Parameter(torch.ones(2), requires_grad=False)
        self.register_buffer('shift', torch.ones(2))
    def forward(self, x):
        self.x = x
        return self.lin(x)*self.scale + self.shift
    def backward(self, g):
        with torch.no_grad():
            self.lin.weight.grad,self.lin.bias.grad = F*g.t()@self.x,g.sum(0)
            return g@self.lin.weight

class OwnSlots(OwnBackward):
    "It leaves its gradients in the module beside the parameters."
    def backward(self, g):
        self.lin.dweight,self.lin.dbias = F*g.t()@self.x,g.sum(0)
        return g@self.lin.weight

class StartsAutograd(OwnBackward):
    "Its backward is none: it starts that of autograd, as trainers have it."
    def backward(self, loss): loss.backward()

@pytest.mark.parametrize('cls', [OwnBackward, OwnSlots])
def test_an_nn_module_with_a_backward_of_its_own(cls, monkeypatch):
    report = check_layer(cls(), T(4, 3))
    assert [(o.name, o.verdict) for o in report.rows] == [(k, 'right') for k in ('x', 'lin.weight', 'lin.bias')]
    monkeypatch.setitem(globals(), 'F', 2.)
    report = check_layer(cls(), T(4, 3), raise_exception=False)
    assert [(o.name, o.verdict) for o in report.rows if not o.ok] == [('lin.weight', 'wrong')]
    assert 'multiplied by 2' in str(report)

def test_an_nn_module_whose_backward_takes_the_loss():
    assert "autograd's own backward pass was checked" in str(check_layer(StartsAutograd(), T(4, 3)))
