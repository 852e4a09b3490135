"Exercises on attention: the gradient of log-softmax, a bias that is added to scores, and two halves of a softmax."
from fb_pass.checks import autograd_grad
from .asking import ask, exercise, rands

@exercise('25.2', 'Write `log_softmax_grad(g, out)`, the gradient of `x` in `out = x.log_softmax(-1)`.',
    'If `g` is minus a one-hot row, its sum is -1, and `p - onehot` is left: the gradient of cross-entropy.', slips={
    'Each output contains all scores, through the sum that is subtracted. You have its own score only.':
        lambda g, out: g,
    'That is the gradient of the softmax without the logarithm. Here the output is the logarithm of a probability.':
        lambda g, out: out.exp()*(g - (g*out.exp()).sum(-1, keepdim=True)),
    'The output is a logarithm. What are the probabilities?': lambda g, out: g - out*g.sum(-1, keepdim=True),
    'Every output of the row contains the same sum, so the upstream gradients of all of them meet in it: is it g that '
        'is multiplied by p?': lambda g, out: g - out.exp()*g,
    'The contributions of all outputs are added, not averaged.': lambda g, out: g - out.exp()*g.mean(-1, keepdim=True),
    'The sum goes along a row: its length is the number of scores, not that of examples.':
        lambda g, out: g - out.exp()*g.sum(0, keepdim=True)})
def log_softmax_grad(answer):
    x,g = rands((4, 5), (4, 5))
    out = x.log_softmax(-1)
    want = autograd_grad(lambda x: (x.log_softmax(-1)*g).sum(), x)
    hint = 'Begin with one row: what is the derivative of `out[i]` with respect to `x[j]`, for i = j and for others?'
    yield ask(answer(g, out), want, 'x.g', hint, values=dict(x=x, out=out, p=out.exp()), grads={'out.g': g})

def _bias(scores_grad=None, total=lambda t: t.sum((0, 1)), factor=1.):
    "A wrong answer: with this gradient of the scores, or summed in another way, or with a factor."
    def grad(g, a, v):
        da = g@v.mT
        ds = scores_grad(da, a) if scores_grad else a*(da - (da*a).sum(-1, keepdim=True))
        return total(ds)*factor
    return grad

@exercise('25.3', 'Write `bias_grad(g, a, v)`, the gradient of the matrix that is added to the scores.',
    'What was broadcast in the forward pass is summed in the backward pass, here over sequences and heads.', slips={
    'In the softmax each weight depends on all scores of its row: a sum along the row is missing.':
        _bias(lambda da, a: a*da),
    'That is the derivative of the sigmoid. In the softmax each weight depends on all scores of its row.':
        _bias(lambda da, a: da*a*(1 - a)),
    'That is the gradient of the weights. Between them and the scores stands the softmax.': _bias(lambda da, a: da),
    'The bias is used once in each head of each sequence: contributions are added, not averaged.':
        _bias(total=lambda t: t.mean((0, 1))),
    'The bias was added to scores that were divided by the root already. What is the derivative of a sum?':
        _bias(factor=5**-.5)}, wrong=[
    ('has shape (3, 2, 4, 4)', _bias(total=lambda t: t)), ('has shape (2, 4, 4)', _bias(total=lambda t: t.sum(0)))])
def bias_grad(answer):
    q,k,v,g,bias = rands(*[(3, 2, 4, 5)]*4, (4, 4))
    def weights(bias): return (q@k.mT/5**.5 + bias).softmax(-1)
    a,want = weights(bias),autograd_grad(lambda b: ((weights(b)@v)*g).sum(), bias)
    yield ask(answer(g, a, v), want, 'bias.g', 'Which line of the backward pass of attention is the gradient of what '
              'the bias is added to? And what was broadcast has to be summed.')

def _half(s, v): return s.softmax(-1)@v, s.logsumexp(-1, keepdim=True)

def _plain_sums(out1, lse1, out2, lse2): return (out1*lse1.exp() + out2*lse2.exp())/(lse1.exp() + lse2.exp())

@exercise('25.4', 'Write `joined(out1, lse1, out2, lse2)`, the output for the keys of both halves.',
    'So attention can be shared by any number of machines: each sends a row and a number for each query.', slips={
    'Each half has divided by its own sum of exponentials. One of the two sums may be much larger than the other.':
        lambda out1, lse1, out2, lse2: (out1 + out2)/2,
    'Each output is a mean of values already. The sum of two means is not a mean.':
        lambda out1, lse1, out2, lse2: out1 + out2,
    '`lse` is a logarithm. By which numbers has each half divided?':
        lambda out1, lse1, out2, lse2: (out1*lse1 + out2*lse2)/(lse1 + lse2),
    'Which half gets which share? The one with the larger sum of exponentials counts more.':
        lambda out1, lse1, out2, lse2: out1*(lse2 - lse1).sigmoid() + out2*(lse1 - lse2).sigmoid()}, wrong=[
    ('overflow', _plain_sums)])
def joined(answer):
    s,v = rands((5, 8), (8, 3))
    large = ('For small scores it is right. With scores of 900 an exponential has an overflow: subtract the '
             'logarithm of the whole sum first.')
    for scores,hint in (3*s, 'What is the share of the first half in the sum of all exponentials?'), (s + 900., large):
        halves = *_half(scores[:,:4], v[:4]),*_half(scores[:,4:], v[4:])
        yield ask(answer(*halves), scores.softmax(-1)@v, 'the output', hint)
