"Exercises on the forward pass: a product with one loop, and a network in which a name is wrong."
import torch
from .asking import ask, exercise, rands

def _no_column(x, w, b):
    out = torch.zeros(len(x), w.shape[1], dtype=x.dtype) + b
    for j in range(w.shape[0]): out = out + x[:,j]*w[j]
    return out

@exercise('04.3', 'Write `lin_one_loop(x, w, b)` with one loop over the inputs.', 'A matrix product is a sum of such '
    'products of a column and a row. In the next room the gradient of the weights is one, with the loop over the '
    'examples.', slips={
    'On square matrices it runs, and gives something else than `x@w + b`. `x[:,j]` is a vector: against `w[j]` it is '
        'lined up from the right, entry with entry. Make a column of it, `(n,1)`, and every entry meets every other.':
        _no_column,
    'With three inputs, the bias is in it 3 times: it is added once, before the loop or after it.':
        lambda x, w, b: sum(x[:,j,None]*w[j] + b for j in range(len(w))),
    'That is `x@w.t()`: input `j` reaches the outputs through the row `j` of `w`, `w[j]`.':
        lambda x, w, b: sum(x[:,j,None]*w[:,j] for j in range(len(w))) + b})
def lin_one_loop(answer):
    x,w,b = rands((3, 3), (3, 3), (3,))
    yield ask(answer(x, w, b), x@w + b, 'the result', 'On square matrices it runs, and gives something else than `x@w '
        '+ b`.')
    x,w,b = rands((1, 4), (4, 2), (2,))
    yield ask(answer(x, w, b), x@w + b, 'the result for a batch of one', 'The shapes are (1, 4) and (4, 2).')

def _loss(inner, outer, column=True):
    "A loss with other activations, or that compares every prediction with every target."
    def loss(x, targ, w1, b1, w2, b2):
        out = outer(inner(x@w1 + b1)@w2 + b2)
        return ((out[:,0] if column else out) - targ).pow(2).mean()
    return loss
def _none(t): return t

@exercise('04.2', 'Write `loss_mended(x, targ, w1, b1, w2, b2)` without the bug.', 'A value that is computed and never '
    'used is what linters look for. Here no shape gave it away.', slips={
    'It is still linear: for this network `f(x) + f(-x) == 2*f(0)`, as for a single layer. Follow the names line by '
        'line: what goes into the second layer?': _loss(_none, _none),
    'Now it cannot answer with a negative number: ReLU belongs between the layers, and nowhere else.':
        _loss(_none, torch.relu),
    'It cannot answer with a negative number: ReLU belongs between the layers, and there is a second one after the '
        'last.': _loss(torch.relu, torch.relu),
    'Every prediction is now compared with every target: look at the shapes in the difference.':
        _loss(torch.relu, _none, column=False)})
def loss_mended(answer):
    ts = rands((8, 3), (8,), (3, 5), (5,), (5, 1), (1,))
    yield ask(torch.as_tensor(answer(*ts)), _loss(torch.relu, _none)(*ts), 'the loss', 'These were eight random '
        'examples. Only one line has to change.')
