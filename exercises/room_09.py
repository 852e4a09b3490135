"Exercises on training: softmax, a smoothed loss, an Adam with a fault, and a layer of dead units."
import torch
import torch.nn.functional as F
from fb_pass.checks import autograd_grad
from fb_pass.gradients import add_grad
from fb_pass.modules import Lin, Model, Relu
from fb_pass.training import CrossEntropy, Optimizer
from .asking import agree, ask_twice, exercise, rand, rands

def _softmax_back(f): return lambda inp, out: add_grad(inp, f(out, out.g))

@exercise('09.1', 'Write `softmax_grad(inp, out)`: the gradient that follows from `out.g` is added to `inp.g`.',
    'The upstream gradient minus its mean under the probabilities, times the probability. Attention has the same '
    'line.', slips={
    'This is how each probability answers to its own score. But a score also changes the other classes of its row, '
        'since all share the sum.': _softmax_back(lambda q, g: q*(1 - q)*g),
    'Add a number to all scores of a row, and nothing changes; so the gradient of a row must add up to zero. Something '
        'has to be taken off.': _softmax_back(lambda q, g: q*g),
    'The examples know nothing of each other. The sum runs along the row, over the classes.':
        _softmax_back(lambda q, g: q*(g - (q*g).sum(0))),
    'Almost: a mean is subtracted. But which mean? The classes do not all have the same weight.':
        _softmax_back(lambda q, g: q*(g - g.mean(1, keepdim=True)))})
def softmax_grad(backward):
    inp,u = rands((5, 4), (5, 4))
    out = inp.softmax(1); out.g = u
    want = autograd_grad(lambda x: (x.softmax(1)*u).sum(), inp)
    yield from ask_twice(lambda: backward(inp, out), inp, want, 'Write $q_k$ as a quotient and differentiate it by '
        '$o_j$, once for j = k and once for the others.',
                         values=dict(inp=inp, out=out), grads={'out.g': u})

def _smooth_back(truth, mean=True):
    "Softmax minus a truth made of the one-hot rows `h`, `eps` and the number of classes `c`."
    def back(inp, targ, eps):
        g = inp.softmax(1) - truth(F.one_hot(targ, inp.shape[1]).to(inp), eps, inp.shape[1])
        add_grad(inp, g/len(inp) if mean else g)
    return back

@exercise('09.3', 'Derive the gradient of the smoothed cross-entropy, and write `smooth_grad(inp, targ, eps)`: it adds '
    'to `inp.g`.', 'Probabilities minus the truth, whatever the truth is. It vanishes when the network is as sure as '
    'the truth, and no surer.', slips={
    'That is the gradient of the plain cross-entropy. Where does `eps` come in?': _smooth_back(lambda h, eps, c: h),
    'The rows are right, the length is not: the loss is a mean over the batch.':
        _smooth_back(lambda h, eps, c: (1 - eps)*h + eps/c, mean=False),
    'You give `eps` to the other classes. Here it is shared among all c classes, the right one included.':
        _smooth_back(lambda h, eps, c: (1 - eps)*h + eps/(c - 1)*(1 - h)),
    'Each row must add up to zero, as before. Your truth adds up to 1 - eps: who gets the rest?':
        _smooth_back(lambda h, eps, c: (1 - eps)*h)})
def smooth_grad(backward):
    inp,targ,eps = rand(5, 4),torch.tensor([3, 0, 0, 2, 1]),.25 # exact in float32, too
    want = autograd_grad(lambda o: F.cross_entropy(o, targ, label_smoothing=eps), inp)
    yield from ask_twice(lambda: backward(inp, targ, eps), inp, want, 'Probabilities minus the truth, over n. Only the '
        'truth is another one.')

def _adam(update):
    "Adam without weight decay; `update` gives the two means that the step is made of."
    class Adam(Optimizer):
        def __init__(self, params, lr, betas=(.9, .999), eps=1e-8):
            super().__init__(params, lr)
            self.betas,self.eps = betas,eps
            self.means,self.squares = [[torch.zeros_like(p) for p in self.params] for _ in range(2)]
        def update(self, i, p):
            (beta1,beta2),mean,square = self.betas,self.means[i],self.squares[i]
            mean.mul_(beta1).add_((1 - beta1)*p.g); square.mul_(beta2).add_((1 - beta2)*p.g**2)
            mean,square = update(mean, square, 1 - beta1**self.steps, 1 - beta2**self.steps, p.g)
            p.sub_(self.lr*mean/(square.sqrt() + self.eps))
    return Adam

class _Rebinding(_adam(None)):
    def update(self, i, p): p = p - self.lr*p.g.sign()

@exercise('09.4', 'Find the fault of `FaultyAdam`, and write its `update` again, in `RepairedAdam`.', 'The correction '
    'is for this step only. In place it got into the memory, and was applied again in every step after.', wrong=[
    ('The first step agrees', _adam(lambda m, s, c1, c2, g: (m.div_(c1), s.div_(c2)))),
    ('begin with zero', _adam(lambda m, s, c1, c2, g: (m, s))), ('in place', _Rebinding),
    ('The first step agrees', _adam(lambda m, s, c1, c2, g: (g, g**2)))])
def repaired_adam(cls):
    p,gs = rand(4),rands((4,), (4,), (4,))
    theirs = p.clone().requires_grad_()
    ours,torchs,start = cls([p], lr=.1),torch.optim.Adam([theirs], lr=.1),p.clone()
    for step,g in enumerate(gs):
        p.g,theirs.grad = g,g.clone()
        ours.step(); torchs.step()
        assert not torch.equal(p, start), ('The parameter has not moved. An optimizer changes the tensor in place; `p '
            '= ...` only gives the name to another one.')
        hint = ('The very first step is another one than that of `torch.optim.Adam`. Both means begin with zero, and '
            'are too small at first: is this made good for?')
        if step: hint = (f'The first step agrees with `torch.optim.Adam`, step {step + 1} does not. What has the step '
            'before left behind? After one step `means[0]` should be a tenth of the gradient; print it.')
        assert agree(p, theirs.detach()), hint

def moving():
    "Names of the parameters that have a gradient other than zero when the hidden layer is dead."
    ts = dict(w1=rand(6, 5), b1=torch.full((5,), -100.).double(), w2=rand(5, 3), b2=rand(3))
    model = Model.from_layers([Lin(ts['w1'], ts['b1']), Relu(), Lin(ts['w2'], ts['b2'])], CrossEntropy())
    model(rand(4, 6), torch.tensor([0, 2, 1, 1])); model.backward()
    return {k for k,t in ts.items() if t.g.any()}
